"""Matrix products on GPUs: torch's library for floats, our kernels for weights of fewer bits.

Knows: which weight goes where. Must not know: weight files, which chip this is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from branchwork.kernels.reference import float8
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import Quantized, check
from branchwork.kernels.triton import quant
from branchwork.kernels.triton.language import available, why

__all__ = ["available", "linear", "pack_linear", "why"]


def linear(x: Tensor, weight: Tensor | Quantized | Float8, bias: Tensor | None) -> Tensor:
    """As `kernels.linear`; but no row is rounded to integers, whatever the weight."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    return quant.linear(x, weight, bias)


def pack_linear(weight: Tensor | Quantized | Float8, dtype: torch.dtype | None = None) -> Tensor | Quantized | Float8:
    """The weight itself: our kernels read what files hold. Raises ValueError for one whose parts do not fit."""
    if isinstance(weight, Quantized):
        check(weight)
    elif isinstance(weight, Float8):
        float8.check(weight)
    return weight
