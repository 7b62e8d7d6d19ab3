"""Tensors of a checkpoint in safetensors files, one or sharded: names and shapes first, data when asked.

Knows: files, names, shapes, dtypes. Must not know: architectures; they say which names and shapes they expect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from branchwork.runtime.loading.errors import LoadError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
_SHOWN = 8  # names listed in an error before "and N more"


class Weights:
    """An opened checkpoint of plain floats, as `Checkpoint`. `shapes`, `kinds` (safetensors' names): every tensor's.

    Raises LoadError (not_found, weights_missing, weights_damaged) naming the file.
    """

    quantization = ""
    bits = 0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.notes: list[str] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kinds: dict[str, str] = {}
        self._files: dict[str, Any] = {}  # tensor name -> open safetensors handle
        self._paths: dict[str, Path] = {}
        for path in _files(directory):
            handle = _open(path)
            for name in handle.keys():  # noqa: SIM118 - a handle is no mapping
                header = handle.get_slice(name)
                self.shapes[name], self.kinds[name] = tuple(header.get_shape()), header.get_dtype()
                self._files[name] = handle
                self._paths[name] = path

    def verify(self, expected: Mapping[str, tuple[int, ...]], ignorable: re.Pattern[str]) -> None:
        """As in `Checkpoint`."""
        check_names(f"the weights in {self.directory}", "config.json", self.shapes, expected, ignorable)

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As in `Checkpoint`: a view of the mapped file where it is stored in this dtype."""
        return self.stored(name).to(device=device, dtype=dtype)

    def matrix(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As `read`."""
        return self.read(name, dtype, device)

    def stored(self, name: str) -> Tensor:
        """A tensor as it lies in the file. Raises LoadError (weights_damaged) when its bytes cannot be read."""
        try:
            tensor: Tensor = self._files[name].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise _damaged(self._paths[name], error) from error
        return tensor


def check_names(
    what: str,
    config: str,
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    ignorable: re.Pattern[str],
) -> None:
    """Raises LoadError (weights_mismatch) unless `shapes` and `expected` agree but for names matching `ignorable`.

    what: the weights in words; config: where `expected` comes from.
    """
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected and not ignorable.search(name)]
    problems = []
    if missing:
        problems.append(f"missing tensors: {_list(missing)}")
    if extra:
        problems.append(f"unexpected tensors: {_list(extra)}")
    for name, shape in expected.items():
        here = shapes.get(name, shape)
        if here != shape:
            problems.append(f"tensor {name} has shape {list(here)} where {config} implies {list(shape)}")
    if problems:
        raise LoadError(
            "weights_mismatch",
            f"{what} do not fit their {config}: {'; '.join(problems[:_SHOWN])}. "
            "Check that both come from the same model and that nothing was renamed.",
        )


def choose_dtype(choice: str, stored: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in. choice: auto | float32 | bfloat16; stored: the checkpoint's own.

    auto keeps bfloat16 where the device computes in it natively, and takes it for float16, whose range is too short for
    CPUs' kernels; elsewhere, and for float32, it is float32: a CPU without bfloat16 instructions is slower with it.
    Raises LoadError for another choice.
    """
    if choice in ("float32", "bfloat16"):
        return torch.float32 if choice == "float32" else torch.bfloat16
    if choice != "auto":
        raise LoadError("unsupported", f"dtype {choice!r} is not supported; use auto, float32 or bfloat16")
    if device.type != "cpu":
        return torch.float32 if stored == "float32" else torch.bfloat16
    native = stored in ("bfloat16", "float16") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _damaged(index, error) from error
        absent = [name for name in names if not (directory / name).is_file()]
        if absent:
            raise LoadError(
                "weights_missing",
                f"{directory} lacks {len(absent)} of {len(names)} weight files named by {INDEX}: {_list(absent)}. "
                "Download the model again; the download resumes where it stopped.",
            )
        return [directory / name for name in names]
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    others = sorted(path.name for pattern in _OTHER_FORMATS for path in directory.glob(pattern))
    found = f"; it has {_list(others)}, a format that is not read: convert it to safetensors" if others else ""
    raise LoadError("weights_missing", f"{directory} has neither {SINGLE} nor {INDEX}{found}")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> LoadError:
    return LoadError(
        "weights_damaged",
        f"{path} ({path.stat().st_size:,} bytes) is damaged or incomplete: {error}. "
        "Delete this file and download the model again.",
    )


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
