"""`branchwork quantize`: a model's files again, its matrices in 8 or 4 bits, ready to be mapped and run.

Knows: what a model directory holds. Must not know: the terminal, block formats, how scales are found.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from branchwork.kernels import Float8, Quantized
from branchwork.kernels.reference.quant import BLOCK
from branchwork.runtime.loading.checkpoint import Checkpoint
from branchwork.runtime.loading.companions import companion, stored_bytes
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.float8 import fp8_config, fp8_parts
from branchwork.runtime.loading.formats import open_checkpoint
from branchwork.runtime.loading.gguf_file import SUFFIX, is_gguf
from branchwork.runtime.loading.packed import own_parts
from branchwork.runtime.loading.quantize import BITS, FP8
from branchwork.runtime.loading.tokenizer import has_tokenizer, load_tokenizer
from branchwork.runtime.loading.weights import INDEX, SINGLE
from branchwork.runtime.models.decoder import ignorable, is_matrix, tensors
from branchwork.runtime.models.registry import load_spec

_CPU = torch.device("cpu")
_SHARD = 2 * 2**30  # bytes of a file, and about what is held in memory at once
_COMPANIONS = ("*.json", "*.jinja", "README*", "LICENSE*")
_DTYPES = {"float32": torch.float32, "float16": torch.float16}  # any other is bfloat16


def write_quantized(
    model: Path, out: Path, kind: str, *, shard: int = _SHARD, progress: Callable[[float], None] | None = None
) -> tuple[int, int]:
    """Write model directory `out`: `model` with matrices as `kind`, of BITS or FP8. Returns (bytes before, after).

    shard: most bytes of one file. progress hears the fraction of weights done. Raises LoadError; for an `out` that
    exists with code exists. What was written is removed again when anything fails.
    """
    if out.suffix == SUFFIX:
        raise LoadError("unsupported", f"{out}: GGUF files are read, not written; give the name of a new directory")
    if out.exists():
        raise LoadError("exists", f"{out} exists already; remove it, or give another name")
    spec = load_spec(model)
    expected = tensors(spec)
    checkpoint = open_checkpoint(model, kind)
    checkpoint.verify(expected, ignorable(spec))
    out.mkdir(parents=True)
    try:
        _write_weights(checkpoint, expected, spec.tied, out, _DTYPES.get(spec.stored, torch.bfloat16), shard, progress)
        _write_companions(model, out, _said(kind))
    except BaseException:
        shutil.rmtree(out)
        raise
    return stored_bytes(model), stored_bytes(out)


def _write_weights(
    checkpoint: Checkpoint,
    expected: dict[str, tuple[int, ...]],
    tied: bool,
    out: Path,
    dtype: torch.dtype,
    shard: int,
    progress: Callable[[float], None] | None,
) -> None:
    """All tensors in files of about `shard` bytes, and an index of them where one is not enough."""
    total, done = sum(map(math.prod, expected.values())), 0
    held: dict[str, torch.Tensor] = {}
    files: list[list[str]] = []

    def flush() -> None:
        if held:
            save_file({name: part.contiguous() for name, part in held.items()}, out / f"{len(files)}.part")
            files.append(list(held))
            held.clear()

    for name, shape in expected.items():
        part = (checkpoint.matrix if is_matrix(name, tied) else checkpoint.read)(name, dtype, _CPU)
        if isinstance(part, Quantized):
            held |= own_parts(name, part)
        else:
            held |= fp8_parts(name, part) if isinstance(part, Float8) else {name: part}
        done += math.prod(shape)
        if progress is not None:
            progress(done / total)
        if sum(tensor.nbytes for tensor in held.values()) >= shard:
            flush()
    flush()
    if len(files) == 1:
        (out / "0.part").rename(out / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        (out / f"{number}.part").rename(out / file)
        weight_map |= dict.fromkeys(names, file)
    (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1))


def _said(kind: str) -> dict[str, Any]:
    """The quantization_config of matrices of this kind."""
    if kind == FP8:
        return fp8_config()
    return {"quant_method": "branchwork", "bits": BITS[kind], "group_size": BLOCK}


def _write_companions(model: Path, out: Path, said: dict[str, Any]) -> None:
    """config.json with how the weights are quantized, the tokenizer, and whatever else describes the model."""
    config = companion(model, "config.json")
    if is_gguf(model):
        (out / "tokenizer_config.json").write_text(json.dumps(companion(model, "tokenizer_config.json"), indent=1))
        if has_tokenizer(model):
            load_tokenizer(model).save(str(out / "tokenizer.json"))
    else:
        for pattern in _COMPANIONS:
            for file in model.glob(pattern):
                if file.name not in ("config.json", INDEX):
                    shutil.copy(file, out)
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": said}, indent=1))
