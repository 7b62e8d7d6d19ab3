"""Matrix products with weights packed once by oneDNN.

Knows: oneDNN through torch. Must not know: models, weight files.
Measured against torch's own product of plain weights (256 x 4096, one thread): float32 1.3 times as fast for 1 row and
1.4 for 64, bfloat16 2 times for 1 row and level from 16 on. A row's result does not depend, to the bit, on the other
rows or on the number of threads (1 to 300 rows, 1 to 4 threads), which MKL's float32 product does not give.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.cpu import linear as plain
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import Quantized

available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
why = "" if available else "this build of torch has no oneDNN"
_BFLOAT16 = available and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_linear(weight: Tensor | Quantized | Float8, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of weight [N, K] in oneDNN's layout; a weight of a type it does not compute in comes back as it is, a
    Quantized or Float8 is first made the numbers it stands for."""
    weight = plain.pack_linear(weight, dtype)
    if weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _BFLOAT16):
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        return packed
    return weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `kernels.linear`, for packed and plain weights."""
    if not weight.is_mkldnn:
        return plain.linear(x, weight, bias)
    rows = x.shape[0]
    padded = _bucket(rows)
    if padded != rows:
        wider = x.new_empty(padded, x.shape[1])
        wider[:rows] = x
        x = wider
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out[:rows] if padded != rows else out


def _bucket(rows: int) -> int:
    """How many rows to compute for `rows`: oneDNN compiles a kernel per count (0.7 ms), and a batch has any count."""
    if rows <= 4:
        return rows
    step = 4 if rows <= 32 else 8 if rows <= 64 else 16 if rows <= 256 else 64
    return -(-rows // step) * step
