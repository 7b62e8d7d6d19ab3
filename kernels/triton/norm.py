"""RMS norm, alone and fused with the residual addition, for GPUs.

Knows: Triton, one program per few rows. Must not know: models, which chip this is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.table import chip
from branchwork.kernels.triton.language import available, blocks, jit, power_of_2, tl, why
from branchwork.kernels.triton.tuning import Specimen, launch

__all__ = ["SPECIMENS", "add_rms_norm", "available", "rms_norm", "why"]


@jit(do_not_specialize=["count"])
def norm_kernel(
    x,
    residual,
    weight,
    out,
    total,
    count,
    heads,
    x_t,
    x_h,
    residual_t,
    channels,
    eps,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """ROWS of `count` rows, row r being head r % heads of token r // heads. total: residual + x, rounded; with ADD."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    live = (row < count)[:, None] & (col < channels)[None, :]
    start = (row // heads) * x_t + (row % heads) * x_h
    value = tl.load(x + start[:, None] + col[None, :], mask=live, other=0.0).to(tl.float32)
    place = row[:, None] * channels + col[None, :]
    if ADD:
        value += tl.load(residual + row[:, None] * residual_t + col[None, :], mask=live, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask=live)
        value = rounded.to(tl.float32)
    mean = tl.sum(value * value, axis=1) / channels
    gain = tl.load(weight + col, mask=col < channels, other=0.0).to(tl.float32)
    scaled = value * tl.rsqrt(mean + eps)[:, None] * gain[None, :]
    tl.store(out + place, scaled.to(out.dtype.element_ty), mask=live)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `kernels.rms_norm`; only x's last dimension need be contiguous."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        strides = (x.stride(0), 0) if x.dim() == 2 else (x.stride(0), x.stride(1))
        _launch(x, x, weight, out, out, 1 if x.dim() == 2 else x.shape[1], strides, 0, eps, add=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `kernels.add_rms_norm`, in one pass."""
    out, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    if out.numel():
        _launch(x, residual, weight, out, total, 1, (x.stride(0), 0), residual.stride(0), eps, add=True)
    return out, total


def _launch(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    out: Tensor,
    total: Tensor,
    heads: int,
    strides: tuple[int, int],
    residual_stride: int,
    eps: float,
    add: bool,
) -> None:
    channels = x.shape[-1]
    count, cols = x.numel() // channels, power_of_2(channels)
    row = launch("norm", chip(x.device), "wide" if cols > 1024 else "narrow")
    rows = _rows(row.pop("TILE"), cols)
    norm_kernel[(blocks(count, rows),)](
        x,
        residual,
        weight,
        out,
        total,
        count,
        heads,
        *strides,
        residual_stride,
        channels,
        eps,
        ADD=add,
        ROWS=rows,
        COLS=cols,
        **row,
    )


def _rows(tile: int, cols: int) -> int:
    """Rows of one program."""
    return max(1, tile // cols)


_SIGNATURE = dict.fromkeys(("x", "residual", "weight", "out", "total"), "*bf16") | {
    "count": "i32",
    "heads": "i32",
    "x_t": "i32:16",
    "x_h": "i32:16",
    "residual_t": "i32:16",
    "channels": "i32:16",
    "eps": "fp32",
}
SPECIMENS = [
    Specimen(
        name,
        norm_kernel,
        _SIGNATURE,
        {"ADD": add, "COLS": cols, "ROWS": lambda row, cols=cols: _rows(row["TILE"], cols)},
        ("norm", key),
    )
    for name, add, cols, key in (
        ("rms_norm heads of 128", False, 128, "narrow"),
        ("add_rms_norm 4096", True, 4096, "wide"),
        ("add_rms_norm 8192", True, 8192, "wide"),
    )
]
