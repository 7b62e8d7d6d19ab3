"""Matrix products whose rows do not depend, to the bit, on how many other rows ride along.

Knows: how MKL's and oneDNN's products treat few rows. Must not know: models, batches' meaning.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from branchwork.kernels.reference import float8
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import Quantized, dequantize

# MKL's float32 product sums 1, 2 or 3 leftover rows in another order than blocks of 4; oneDNN's bfloat16 does not.
# Measured with 1 to 16 threads and 1 to 700 rows; the price is 70 us more for one row of a 256 x 1408 product.
_BLOCK = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `kernels.linear`: x [T, K], weight [N, K], bias [N]. float32 is padded to whole blocks of rows."""
    lacking = -x.shape[0] % _BLOCK
    if lacking and x.dtype == torch.float32:
        return F.linear(F.pad(x, (0, 0, 0, lacking)), weight, bias)[: x.shape[0]]
    return F.linear(x, weight, bias)


def pack_linear(weight: Tensor | Quantized | Float8, dtype: torch.dtype | None = None) -> Tensor:
    """The weight itself; a Quantized or Float8 as the numbers it stands for, of `dtype` (bfloat16 if none is given)."""
    if isinstance(weight, Float8):
        return float8.dequantize(weight, dtype or torch.bfloat16)
    return dequantize(weight, dtype or torch.bfloat16) if isinstance(weight, Quantized) else weight
