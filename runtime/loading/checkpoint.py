"""What every format of weights offers to a model.

Knows: names, shapes, tensors. Must not know: formats, architectures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from branchwork.kernels import Float8
from branchwork.kernels.reference.quant import Quantized


class Checkpoint(Protocol):
    """An opened checkpoint; nothing of the data has been read yet. Names are Hugging Face's.

    quantization: what its matrices are stored as, "" for plain floats. bits: of the widest matrix of integers, 0
    without one. notes: what is converted on the way, a line each.
    """

    quantization: str
    bits: int
    notes: list[str]

    def verify(self, expected: Mapping[str, tuple[int, ...]], ignorable: re.Pattern[str]) -> None:
        """Both ways: every expected tensor is here in its shape, and nothing else but names matching `ignorable`.

        Raises LoadError (weights_mismatch) listing names, or the tensor with both shapes.
        """

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """One tensor as floats; a view of the file's map where that is possible. Raises LoadError (weights_damaged)."""

    def matrix(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor | Quantized | Float8:
        """A matrix [N, K] as it is stored, quantized or of e4m3, or else floats as from `read`."""
