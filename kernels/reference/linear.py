"""Matrix products and table look-ups: the definition.

Knows: torch. Must not know: models, weight files, hardware.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from branchwork.kernels.reference import float8, quant
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import Quantized


def linear(x: Tensor, weight: Tensor | Quantized | Float8, bias: Tensor | None) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]. Returns [T, N]; quant.py, float8.py define the rest."""
    if isinstance(weight, Quantized):
        return quant.linear(x, weight, bias)
    if isinstance(weight, Float8):
        return float8.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def pack_linear(weight: Tensor | Quantized | Float8, dtype: torch.dtype | None = None) -> Tensor | Quantized | Float8:
    """The weight itself: the plain product wants no other layout."""
    return weight


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of table [V, C] at ids int64 [T]. Returns [T, C]."""
    return table.index_select(0, ids)
