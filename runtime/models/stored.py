"""Matrices in whatever way they are stored: below each other, as floats, a table's rows.

Knows: kernels. Must not know: layers, families, files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from branchwork import kernels
from branchwork.kernels.reference import float8, quant
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import Quantized


def joined(parts: Sequence[kernels.Stored], dtype: torch.dtype) -> kernels.Stored:
    """Matrices below each other; floats of this dtype where they are stored in different ways."""
    if len(parts) == 1:
        return parts[0]
    whole = [part for part in parts if isinstance(part, Quantized)]
    if len(whole) == len(parts):
        return quant.cat(whole)
    eights = [part for part in parts if isinstance(part, Float8)]
    if len(eights) == len(parts):
        return float8.cat(eights)
    return torch.cat([floats(part, dtype) for part in parts])


def floats(part: kernels.Stored, dtype: torch.dtype) -> Tensor:
    """A matrix as numbers of this dtype; a tensor as it is."""
    if isinstance(part, Tensor):
        return part
    return quant.dequantize(part, dtype) if isinstance(part, Quantized) else float8.dequantize(part, dtype)


def beside(one: kernels.Affine, other: kernels.Affine, dtype: torch.dtype) -> kernels.Affine:
    """Two products of the same inputs as one."""
    bias = None if one.bias is None or other.bias is None else torch.cat((one.bias, other.bias))
    return kernels.Affine(joined((one.weight, other.weight), dtype), bias)
