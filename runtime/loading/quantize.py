"""Quantizing any checkpoint's matrices while they are read.

Knows: which matrices, to what kind. Must not know: file formats, layers, how scales are found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from branchwork.kernels import Float8, Quantized, quantize
from branchwork.kernels.reference import float8
from branchwork.kernels.reference.quant import BLOCK, dequantize
from branchwork.runtime.loading.checkpoint import Checkpoint
from branchwork.runtime.loading.errors import LoadError

BITS = {"int8": 8, "int4": 4}
FP8 = "fp8"  # e4m3 with a scale for each row, for GPUs
_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"


class Quantizing:
    """Another checkpoint whose matrices come out as `kind`; the head, which a coarse grid hurts most, in 8 bits at
    least, and beside e4m3 as it is.

    An embedding that is not the head too stays as it is, and so do integers' matrices whose rows are no multiple of 32
    long.
    """

    def __init__(self, inner: Checkpoint, kind: str) -> None:
        self._inner = inner
        self._head = _EMBEDDING
        self.bits = BITS.get(kind, 0)
        self.quantization = kind
        each = f"{kind} in groups of {BLOCK}" if self.bits else f"{kind} (e4m3) with a scale for each row"
        self.notes = [*inner.notes, f"matrices quantized to {each} while loading"]
        if inner.quantization == FP8:
            self.notes.append(f"the files hold {FP8}, which this rounds once more")

    @classmethod
    def of(cls, inner: Checkpoint, quantize: str, model: Path) -> Quantizing:
        """quantize: a key of BITS, or FP8. Raises LoadError (unsupported) where it would not make the weights
        smaller."""
        if quantize not in (*BITS, FP8):
            raise LoadError(
                "unsupported", f"quantize={quantize!r} is not supported; use {', '.join((*BITS, FP8))}, or none"
            )
        if inner.quantization if quantize == FP8 else 0 < inner.bits <= BITS[quantize]:
            raise LoadError(
                "unsupported",
                f"{model} is quantized already ({inner.quantization}): quantize={quantize} would lose accuracy and "
                "save nothing; leave it out, or start from the unquantized checkpoint",
            )
        return cls(inner, quantize)

    def verify(self, expected: Mapping[str, tuple[int, ...]], ignorable: re.Pattern[str]) -> None:
        """As in `Checkpoint`."""
        self._inner.verify(expected, ignorable)
        self._head = _HEAD if _HEAD in expected else _EMBEDDING

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As in `Checkpoint`."""
        return self._inner.read(name, dtype, device)

    def matrix(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor | Quantized | Float8:
        """As in `Checkpoint`."""
        found = self._inner.matrix(name, dtype, device)
        if name == _EMBEDDING != self._head or (name == self._head and not self.bits):
            return found
        if isinstance(found, Float8):
            found = float8.dequantize(found)
        if not self.bits:
            assert isinstance(found, Tensor)
            return float8.quantize(found, (1, found.shape[1]))
        bits = max(self.bits, 8) if name == self._head else self.bits
        if isinstance(found, Quantized):
            return found if found.bits <= bits else quantize(dequantize(found), bits)
        return quantize(found.float(), bits) if found.shape[1] % BLOCK == 0 else found
