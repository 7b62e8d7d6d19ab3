"""The gated activations of the feed-forward block, for GPUs.

Knows: Triton. Must not know: models, which chip this is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.table import chip
from branchwork.kernels.triton.language import available, blocks, jit, tl, why
from branchwork.kernels.triton.tuning import Specimen, launch

__all__ = ["SPECIMENS", "available", "gelu_mul", "silu_mul", "why"]


@jit
def gate_kernel(gate_up, out, row_stride, size, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK outputs of one row of `size`; GELU in its tanh form, which is gate * sigmoid(2 u)."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = col < size
    gate = tl.load(gate_up + row * row_stride + col, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * row_stride + size + col, mask=live, other=0.0).to(tl.float32)
    slope = gate
    if GELU:
        slope = 1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate)
    value = gate / (1.0 + tl.exp(-slope)) * up
    tl.store(out + row * size + col, value.to(out.dtype.element_ty), mask=live)


def silu_mul(gate_up: Tensor) -> Tensor:
    """As `kernels.silu_mul`; float32 until the product is rounded."""
    return _gated(gate_up, gelu=False)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """As `kernels.gelu_mul`; float32 until the product is rounded."""
    return _gated(gate_up, gelu=True)


def _gated(gate_up: Tensor, gelu: bool) -> Tensor:
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        row = launch("gate", chip(gate_up.device))
        grid = (rows, blocks(size, row["BLOCK"]))
        gate_kernel[grid](gate_up, out, gate_up.stride(0), size, GELU=gelu, **row)
    return out


_SIGNATURE = {"gate_up": "*bf16", "out": "*bf16", "row_stride": "i32:16", "size": "i32:16"}
SPECIMENS = [
    Specimen("silu_mul", gate_kernel, _SIGNATURE, {"GELU": False}, ("gate", "")),
    Specimen("gelu_mul", gate_kernel, _SIGNATURE, {"GELU": True}, ("gate", "")),
]
