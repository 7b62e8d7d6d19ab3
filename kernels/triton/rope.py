"""Rotary position embedding for GPUs, and the rotation of some heads of one token, which the KV write shares.

Knows: Triton, the rotate-half layout. Must not know: how frequencies are scaled, pages, which chip this is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.table import chip
from branchwork.kernels.triton.language import available, blocks, jit, power_of_2, tl, why
from branchwork.kernels.triton.tuning import Specimen, launch

__all__ = ["SPECIMENS", "available", "rope", "rotated", "why"]


@jit
def rotated(x, cos, sin, head, x_h, half, live, HALF: tl.constexpr):
    """Both halves [HEADS, HALF] of heads `head` of the token at x, rotated, in float32. cos, sin: the token's rows."""
    col = tl.arange(0, HALF)
    inside = live[:, None] & (col < half)[None, :]
    at = x + head[:, None] * x_h + col[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + col, mask=col < half, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + col, mask=col < half, other=0.0).to(tl.float32)[None, :]
    return first * c - second * s, second * c + first * s


@jit
def turn_heads(x, cos, sin, out, token, block, heads, x_t, x_h, angle_t, half, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Heads block * HEADS and on of one token, rotated, into the contiguous out [T, heads, 2 * half]."""
    head = block * HEADS + tl.arange(0, HEADS)
    live = head < heads
    first, second = rotated(
        x + token * x_t, cos + token * angle_t, sin + token * angle_t, head, x_h, half, live, HALF=HALF
    )
    col = tl.arange(0, HALF)
    inside = live[:, None] & (col < half)[None, :]
    at = out + (token * heads + head)[:, None] * (2 * half) + col[None, :]
    tl.store(at, first.to(out.dtype.element_ty), mask=inside)
    tl.store(at + half, second.to(out.dtype.element_ty), mask=inside)


@jit
def rope_kernel(
    q,
    k,
    cos,
    sin,
    q_out,
    k_out,
    heads,
    kv_heads,
    q_t,
    q_h,
    k_t,
    k_h,
    angle_t,
    half,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    of_q = tl.cdiv(heads, HEADS)
    if block < of_q:
        turn_heads(q, cos, sin, q_out, token, block, heads, q_t, q_h, angle_t, half, HEADS=HEADS, HALF=HALF)
    else:
        turn_heads(k, cos, sin, k_out, token, block - of_q, kv_heads, k_t, k_h, angle_t, half, HEADS=HEADS, HALF=HALF)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As `kernels.rope`."""
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    tokens, heads, dim = q.shape
    if tokens:
        row = launch("rope", chip(q.device))
        grid = (tokens, blocks(heads, row["HEADS"]) + blocks(k.shape[1], row["HEADS"]))
        rope_kernel[grid](
            q,
            k,
            cos,
            sin,
            q_out,
            k_out,
            heads,
            k.shape[1],
            *q.stride()[:2],
            *k.stride()[:2],
            cos.stride(0),
            dim // 2,
            HALF=power_of_2(dim // 2),
            **row,
        )
    return q_out, k_out


SPECIMENS = [
    Specimen(
        "rope 128",
        rope_kernel,
        {"q": "*bf16", "k": "*bf16", "cos": "*fp32", "sin": "*fp32", "q_out": "*bf16", "k_out": "*bf16"}
        | {"heads": "i32:16", "kv_heads": "i32"}
        | dict.fromkeys(("q_t", "q_h", "k_t", "k_h", "angle_t", "half"), "i32:16"),
        {"HALF": 64},
        ("rope", ""),
    )
]
