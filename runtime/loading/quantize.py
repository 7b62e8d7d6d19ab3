"""Quantizing any checkpoint's matrices while they are read.

Knows: which matrices, to how many bits. Must not know: file formats, layers, how scales are found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from branchwork.kernels import Quantized, quantize
from branchwork.kernels.reference.quant import BLOCK, dequantize
from branchwork.runtime.loading.checkpoint import Checkpoint
from branchwork.runtime.loading.errors import LoadError

BITS = {"int8": 8, "int4": 4}
_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"


class Quantizing:
    """Another checkpoint whose matrices come out in `bits`; the head, which a coarse grid hurts most, in 8 at least.

    An embedding that is not the head too, and a matrix whose rows are no multiple of 32 long, stay as they are.
    """

    def __init__(self, inner: Checkpoint, bits: int) -> None:
        self._inner = inner
        self._head = _EMBEDDING
        self.bits = bits
        self.quantization = f"int{bits}"
        self.notes = [*inner.notes, f"matrices quantized to int{bits} in groups of {BLOCK} while loading"]

    @classmethod
    def of(cls, inner: Checkpoint, quantize: str, model: Path) -> Quantizing:
        """quantize: a key of BITS. Raises LoadError (unsupported) where it would not make the weights smaller."""
        if quantize not in BITS:
            raise LoadError("unsupported", f"quantize={quantize!r} is not supported; use {' or '.join(BITS)}, or none")
        if 0 < inner.bits <= BITS[quantize]:
            raise LoadError(
                "unsupported",
                f"{model} is quantized already ({inner.quantization}): quantize={quantize} would lose accuracy and "
                "save nothing; leave it out, or start from the unquantized checkpoint",
            )
        return cls(inner, BITS[quantize])

    def verify(self, expected: Mapping[str, tuple[int, ...]], ignorable: re.Pattern[str]) -> None:
        """As in `Checkpoint`."""
        self._inner.verify(expected, ignorable)
        self._head = _HEAD if _HEAD in expected else _EMBEDDING

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As in `Checkpoint`."""
        return self._inner.read(name, dtype, device)

    def matrix(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor | Quantized:
        """As in `Checkpoint`."""
        found = self._inner.matrix(name, dtype, device)
        if name == _EMBEDDING != self._head:
            return found
        bits = max(self.bits, 8) if name == self._head else self.bits
        if isinstance(found, Quantized):
            return found if found.bits <= bits else quantize(dequantize(found), bits)
        return quantize(found.float(), bits) if found.shape[1] % BLOCK == 0 else found
