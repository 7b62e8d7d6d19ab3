"""GGUF containers: metadata and tensors of one file, memory-mapped, nothing of the data read before it is asked for.

Knows: the container format (GGUF 2 and 3, little-endian). Must not know: torch, architectures, what the metadata means.
The `gguf` package's own reader makes an array object of every metadata element, 9 seconds for a Llama 3 vocabulary;
block sizes, and dequantization of the rarer types, do come from that package.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from branchwork.runtime.loading.errors import LoadError

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST = 1 << 32  # elements of an array, bytes of a string: more is a damaged count


class GgufTensor(NamedTuple):
    """kind: type name such as Q4_K. shape: rows first. data: its bytes, uint8, in the file's private map."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class GgufFile(NamedTuple):
    """metadata: numbers, texts and lists by key. tensors: by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def text(self, key: str, default: str = "") -> str:
        """A text, `default` where absent. Raises LoadError (config)."""
        return str(self._typed(key, str, default))

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number, `default` where absent; absent without one raises LoadError (config)."""
        return int(self._typed(key, int, default))

    def number(self, key: str, default: float | None = None) -> float:
        """A number, as `count`."""
        return float(self._typed(key, (int, float), default))

    def listed(self, key: str) -> list[Any]:
        """A list, empty where absent."""
        return list(self._typed(key, list, []))

    def _typed(self, key: str, kind: Any, default: Any) -> Any:
        value = self.metadata.get(key, default)
        if value is None:
            raise LoadError("config", f"{self.path}: metadata {key} is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise LoadError("config", f"{self.path}: metadata {key} has a value of the wrong type: {value!r:.80}")
        return value


def is_gguf(model: Path) -> bool:
    """Whether a model's path is a GGUF file rather than a directory."""
    return model.suffix == SUFFIX and model.is_file()


def open_gguf(path: Path) -> GgufFile:
    """Headers of a file, read once a process. Raises LoadError (weights_damaged, unsupported) naming file and part."""
    status = path.stat()
    return _opened(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _opened(path: Path, _modified: int, size: int) -> GgufFile:
    if size < 24:
        raise damaged(path, "it is too short for a header")
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    if data[:4] != _MAGIC:
        raise damaged(path, "it does not begin with the letters GGUF")
    cursor = _Cursor(path, data)
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise LoadError("unsupported", f"{path}: GGUF version {version} is not supported (2 and 3 are, little-endian)")
    tensors, entries = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.text("metadata")
        metadata[key] = cursor.value(cursor.number("I"), f"metadata {key}")
    if metadata.get("split.count", 1) > 1:
        raise LoadError(
            "unsupported",
            f"{path} is part {metadata.get('split.no', 0) + 1} of {metadata['split.count']}; split files are not read: "
            "join them with llama.cpp's `llama-gguf-split --merge FIRST.gguf WHOLE.gguf`",
        )
    return GgufFile(path, metadata, _tensors(cursor, tensors, metadata.get("general.alignment", 32)))


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    path, heads = cursor.path, []
    for _ in range(count):
        name = cursor.text("the list of tensors")
        shape = tuple(reversed([cursor.number("Q") for _ in range(cursor.number("I", below=5))]))
        heads.append((name, shape, cursor.number("I"), cursor.number("Q")))
    if alignment < 1 or alignment & (alignment - 1):
        raise damaged(path, f"its alignment is {alignment}, no power of two")
    begin = -(-cursor.at // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for name, shape, number, offset in heads:
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise LoadError(
                "unsupported", f"{path}: tensor {name} has type {number}, which is not known here"
            ) from None
        block, size = GGML_QUANT_SIZES[kind]
        length = math.prod(shape) * size // block
        if name in found or (shape and shape[-1] % block):
            raise damaged(path, f"tensor {name} occurs twice or its rows are no whole blocks of {block}")
        if begin + offset + length > len(cursor.data):
            raise damaged(path, f"tensor {name} reaches to byte {begin + offset + length:,}")
        data = np.frombuffer(cursor.data, np.uint8, length, begin + offset)
        found[name] = GgufTensor(name, kind.name, shape, data)
    return found


class _Cursor:
    """Reads the header front to back; whatever leads out of the file raises LoadError (weights_damaged)."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.at = len(_MAGIC)

    def number(self, code: str, below: int | None = None) -> Any:
        return self.numbers(code, 1, "the header", below)[0]

    def numbers(self, code: str, count: int, what: str, below: int | None = None) -> tuple[Any, ...]:
        form = f"<{count}{code}"
        end = self.at + struct.calcsize(form)
        if end > len(self.data):
            raise damaged(self.path, f"it ends within {what}")
        values = struct.unpack_from(form, self.data, self.at)
        if below is not None and values[0] >= below:
            raise damaged(self.path, f"a count of {values[0]:,} stands in {what}")
        self.at = end
        return values

    def text(self, what: str) -> str:
        (length,) = self.numbers("Q", 1, what, _MOST)
        end = self.at + length
        if end > len(self.data):
            raise damaged(self.path, f"it ends within {what}")
        raw = bytes(self.data[self.at : end])
        self.at = end
        return raw.decode("utf-8", "surrogateescape")

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind], 1, what)[0]
        if kind != _ARRAY:
            raise damaged(self.path, f"{what} has the unknown type {kind}")
        inner, count = self.numbers("I", 1, what)[0], self.numbers("Q", 1, what, _MOST)[0]
        if inner in _SCALARS:
            return list(self.numbers(_SCALARS[inner], count, what))
        if count > len(self.data):
            raise damaged(self.path, f"a count of {count:,} stands in {what}")
        return [self.value(inner, what) for _ in range(count)]


def damaged(path: Path, what: str) -> LoadError:
    """The error of a file that is not whole: `what` ends the sentence."""
    return LoadError(
        "weights_damaged",
        f"{path} ({path.stat().st_size:,} bytes) is damaged or incomplete: {what}. Get this file again.",
    )
