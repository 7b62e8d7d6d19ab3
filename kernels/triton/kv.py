"""Keys and values written into the paged pool, with or without their rotation, for GPUs.

Knows: Triton, the head-major page layout, rows of floats, of int8 with a scale and of e4m3 bytes. Must not know: who
owns a page, which chip this is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.table import chip
from branchwork.kernels.triton.float8 import encoded
from branchwork.kernels.triton.language import available, blocks, jit, power_of_2, tl, why
from branchwork.kernels.triton.rope import rotated, turn_heads
from branchwork.kernels.triton.tuning import Specimen, launch

__all__ = ["SPECIMENS", "available", "rope_store_kv", "store_kv", "why"]

_BYTES = {torch.int8: "int8", torch.float8_e4m3fn: "e4m3"}  # how a pool's elements are written; floats are cast


@jit
def integers(value, scale, finite):
    """value / scale as int8, halves to the even neighbour: adding 1.5 * 2**23 leaves no bits for a fraction."""
    rounded = (tl.div_rn(value, scale) + 12582912.0) - 12582912.0
    return tl.where(finite, rounded, 0.0).to(tl.int8)


@jit
def write_rows(pool, first, second, live, half, pool_h, pool_d, head, KIND: tl.constexpr, HALF: tl.constexpr):
    """Both halves [HEADS, HALF], float32, of heads `head` into the slot at `pool`."""
    col = tl.arange(0, HALF)
    inside = live[:, None] & (col < half)[None, :]
    start = pool + head[:, None].to(tl.int64) * pool_h
    at = start + col[None, :] * pool_d
    if KIND == "int8":
        top = tl.maximum(tl.max(tl.abs(first), axis=1), tl.max(tl.abs(second), axis=1))
        wrong = tl.sum(first - first, axis=1) + tl.sum(second - second, axis=1)  # NaN where anything is not finite
        scale = tl.div_rn(top, 127.0) + wrong
        finite = (wrong == 0.0)[:, None]
        divisor = tl.where(scale > 0, scale, 1.0)[:, None]
        tl.store(at, integers(first, divisor, finite), mask=inside)
        tl.store(at + half * pool_d, integers(second, divisor, finite), mask=inside)
        tail = tl.arange(0, 8)
        bits = scale.to(tl.int32, bitcast=True)[:, None] >> (8 * (tail % 4))[None, :]
        byte = tl.where((tail < 4)[None, :], bits & 255, 0).to(tl.int8)
        tl.store(start + (2 * half + tail)[None, :] * pool_d, byte, mask=live[:, None] & (tail >= 0)[None, :])
    elif KIND == "e4m3":
        tl.store(at, encoded(first), mask=inside)
        tl.store(at + half * pool_d, encoded(second), mask=inside)
    else:
        tl.store(at, first.to(pool.dtype.element_ty), mask=inside)
        tl.store(at + half * pool_d, second.to(pool.dtype.element_ty), mask=inside)


@jit
def halves(x, head, x_h, half, live, HALF: tl.constexpr):
    """Both halves [HEADS, HALF] of heads of the token at x, in float32."""
    col = tl.arange(0, HALF)
    inside = live[:, None] & (col < half)[None, :]
    at = x + head[:, None] * x_h + col[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    return first, tl.load(at + half, mask=inside, other=0.0).to(tl.float32)


@jit
def store_kernel(
    q,
    k,
    v,
    cos,
    sin,
    q_out,
    k_pool,
    v_pool,
    slots,
    heads,
    kv_heads,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    angle_t,
    k_pool_p,
    k_pool_h,
    k_pool_s,
    k_pool_d,
    v_pool_p,
    v_pool_h,
    v_pool_s,
    v_pool_d,
    half,
    size,
    TURN: tl.constexpr,
    KIND: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """One token and HEADS of its heads: with TURN first blocks of q's heads, then blocks of key and value heads."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    of_q = tl.cdiv(heads, HEADS)
    if block < of_q:
        turn_heads(q, cos, sin, q_out, token, block, heads, q_t, q_h, angle_t, half, HEADS=HEADS, HALF=HALF)
    else:
        head = (block - of_q) * HEADS + tl.arange(0, HEADS)
        live = head < kv_heads
        slot = tl.load(slots + token).to(tl.int64)
        page, offset = slot // size, slot % size
        if TURN:
            first, second = rotated(
                k + token * k_t, cos + token * angle_t, sin + token * angle_t, head, k_h, half, live, HALF=HALF
            )
            first = first.to(k.dtype.element_ty).to(tl.float32)
            second = second.to(k.dtype.element_ty).to(tl.float32)
        else:
            first, second = halves(k + token * k_t, head, k_h, half, live, HALF=HALF)
        row = k_pool + page * k_pool_p + offset * k_pool_s
        write_rows(row, first, second, live, half, k_pool_h, k_pool_d, head, KIND=KIND, HALF=HALF)
        first, second = halves(v + token * v_t, head, v_h, half, live, HALF=HALF)
        row = v_pool + page * v_pool_p + offset * v_pool_s
        write_rows(row, first, second, live, half, v_pool_h, v_pool_d, head, KIND=KIND, HALF=HALF)


def store_kv(k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor) -> None:
    """As `kernels.store_kv`; pools of float8_e4m3fn, too, whose numbers beyond 448 become 448."""
    _store(None, k, v, None, None, k_pool, v_pool, slots)


def rope_store_kv(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor
) -> Tensor:
    """As `kernels.rope_store_kv`, in one launch."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _store(q, k, v, (cos, sin), out, k_pool, v_pool, slots)
    return out


def _store(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    angles: tuple[Tensor, Tensor] | None,
    out: Tensor | None,
    k_pool: Tensor,
    v_pool: Tensor,
    slots: Tensor,
) -> None:
    tokens, kv_heads, dim = k.shape
    if not tokens:
        return
    if dim % 2:
        raise ValueError(f"heads of an even dimension are needed, got {dim}")
    kind = _BYTES.get(k_pool.dtype, "float")
    if kind == "e4m3":
        k_pool, v_pool = k_pool.view(torch.uint8), v_pool.view(torch.uint8)
    heads, strides = (0, (0, 0)) if q is None else (q.shape[1], q.stride()[:2])
    cos, sin = angles or (k, k)
    row = launch("store", chip(k.device))
    store_kernel[(tokens, blocks(heads, row["HEADS"]) + blocks(kv_heads, row["HEADS"]))](
        k if q is None else q,
        k,
        v,
        cos,
        sin,
        k if out is None else out,
        k_pool,
        v_pool,
        slots,
        heads,
        kv_heads,
        *strides,
        *k.stride()[:2],
        *v.stride()[:2],
        cos.stride(0),
        *k_pool.stride(),
        *v_pool.stride(),
        dim // 2,
        k_pool.shape[2],
        TURN=q is not None,
        KIND=kind,
        HALF=power_of_2(dim // 2),
        **row,
    )


def _signature(element: str) -> dict[str, str]:
    names = store_kernel.arg_names if available else []
    pointers = dict.fromkeys(("q", "k", "v", "q_out"), "*bf16") | {"cos": "*fp32", "sin": "*fp32"}
    pointers |= {"k_pool": element, "v_pool": element, "slots": "*i64"}
    odd = {"heads": "i32", "kv_heads": "i32", "size": "i32"}
    constexprs = {"TURN", "KIND", "HEADS", "HALF", "k_pool_d", "v_pool_d"}
    numbers = "i32" if element == "*i8" else "i32:16"  # int8 rows are eight bytes longer than their head
    return {name: pointers.get(name, odd.get(name, numbers)) for name in names if name not in constexprs}


SPECIMENS = [
    Specimen(
        f"{'rope_store_kv' if turn else 'store_kv'} {kind}",
        store_kernel,
        _signature(element),
        {"TURN": turn, "KIND": kind, "HALF": 64, "k_pool_d": 1, "v_pool_d": 1},
        ("store", ""),
    )
    for kind, element in (("float", "*bf16"), ("int8", "*i8"), ("e4m3", "*u8"))
    for turn in (True, False)
]
