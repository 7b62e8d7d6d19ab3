"""A step's small operations by the native C library: on a small model torch's dispatch costs more than they do.

Knows: tensor layouts and the C calls. Must not know: requests, models, which op the table picks.
All take float32 or bfloat16, compute in float32 and round once.
"""

from __future__ import annotations

import torch

from branchwork.kernels.cpu import native
from branchwork.kernels.reference.kv import ROW_TAIL

available = native.available
why = native.why

_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1}
_WIDEST = 1024  # elements of a head that an int8 row can be made of


def _element(*tensors: torch.Tensor) -> int:
    dtype = tensors[0].dtype
    element = _ELEMENTS.get(dtype)
    if element is None or any(tensor.dtype != dtype for tensor in tensors):
        raise ValueError(f"one type, float32 or bfloat16, is needed, got {[str(tensor.dtype) for tensor in tensors]}")
    return element


def _heads(x: torch.Tensor) -> int:
    """Stride between the tokens of x [T, H, D], whose last two dimensions must be contiguous."""
    token, head, unit = x.stride()
    if unit != 1 or head != x.shape[2]:
        raise ValueError(f"the last two dimensions must be contiguous, got strides {x.stride()} for {tuple(x.shape)}")
    return token


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension; x [T, C] or [T, H, C] with any stride between tokens, weight [C]."""
    shape = x.shape
    width = shape[-1]
    inner = shape[1] if x.dim() == 3 else 1
    stride = x.stride()
    if x.dim() not in (2, 3) or stride[-1] != 1 or (inner > 1 and stride[1] != width) or weight.shape != (width,):
        raise ValueError(f"rms_norm takes [T, C] or [T, H, C] and [C], got {tuple(shape)} and {tuple(weight.shape)}")
    element = _element(x, weight)
    out = x.new_empty(shape)
    call = native.library().bw_rms_norm
    call(x.data_ptr(), 0, weight.data_ptr(), out.data_ptr(), 0, shape[0], inner, stride[0], width, eps, element)
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(residual + x), residual + x), the sum rounded to its type first; x and residual [T, C] contiguous."""
    rows, width = x.shape
    if residual.shape != x.shape or weight.shape != (width,) or not (x.is_contiguous() and residual.is_contiguous()):
        raise ValueError(
            f"add_rms_norm takes contiguous [T, C] twice and [C], got {x.shape}, {residual.shape}, {weight.shape}"
        )
    element = _element(x, residual, weight)
    out, total = torch.empty_like(x), torch.empty_like(x)
    call = native.library().bw_rms_norm
    call(
        x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(), total.data_ptr(),
        rows, 1, width, width, eps, element,
    )  # fmt: skip
    return out, total


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, [T, F]; gate_up [T, 2F] with the gate first, any stride between tokens."""
    rows, double = gate_up.shape
    stride, unit = gate_up.stride()
    if unit != 1 or double % 2:
        raise ValueError(f"silu_mul takes [T, 2F] with contiguous rows, got {tuple(gate_up.shape)}, {gate_up.stride()}")
    out = gate_up.new_empty((rows, double // 2))
    element = _element(gate_up)
    native.library().bw_silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, stride, double // 2, element)
    return out


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x times the normal distribution's share below x; x [T, F] contiguous."""
    if not x.is_contiguous():
        raise ValueError(f"gelu takes a contiguous [T, F], got {tuple(x.shape)}, {x.stride()}")
    rows, width = x.shape
    out = torch.empty_like(x)
    native.library().bw_gelu(x.data_ptr(), out.data_ptr(), rows, width, _element(x))
    return out


def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q [T, H, D] and k [T, KVH, D] rotated (rotate-half) by cos, sin [T, D/2] float32; any stride between tokens."""
    element = _element(q, k)
    _check_angles(q, cos, sin)
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    call = native.ROTARY.pack(
        q.data_ptr(), k.data_ptr(), 0, cos.data_ptr(), sin.data_ptr(), q_out.data_ptr(), k_out.data_ptr(), 0, 0, 0,
        q.shape[0], _heads(q), _heads(k), 0, 0, 0, 0, q.shape[1], k.shape[1], q.shape[2], 1, 0,
    )  # fmt: skip
    native.library().bw_rotary(call, element)
    return q_out, k_out


def rope_store_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """`rope` and `store_kv` in one pass: the rotated q; rotated k and plain v go into the pool's slots.

    Raises IndexError, with nothing written, when a slot lies outside the pool.
    """
    element = _element(q, k, v)
    _check_angles(q, cos, sin)
    kv8 = _check_pool(k, v, k_pool, v_pool, slots)
    q_out = q.new_empty(q.shape)
    pages, kv_heads, size, _ = k_pool.shape
    strides = k_pool.stride()
    call = native.ROTARY.pack(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), cos.data_ptr(), sin.data_ptr(), q_out.data_ptr(), 0,
        k_pool.data_ptr(), v_pool.data_ptr(), slots.data_ptr(),
        q.shape[0], _heads(q), _heads(k), _heads(v), strides[0], strides[1],
        pages, q.shape[1], kv_heads, k.shape[2], size, kv8,
    )  # fmt: skip
    native.check(native.library().bw_rotary(call, element))
    return q_out


def store_kv(k: torch.Tensor, v: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, slots: torch.Tensor) -> None:
    """Write k, v [T, KVH, D] into pools [P, KVH, S, D] (of int8: D + 8) at slots int64 [T], slot = page * S + offset.

    Raises IndexError, with nothing written, when a slot lies outside the pool.
    """
    element = _element(k, v)
    kv8 = _check_pool(k, v, k_pool, v_pool, slots)
    pages, kv_heads, size, _ = k_pool.shape
    strides = k_pool.stride()
    call = native.ROTARY.pack(
        0, k.data_ptr(), v.data_ptr(), 0, 0, 0, 0, k_pool.data_ptr(), v_pool.data_ptr(), slots.data_ptr(),
        k.shape[0], 0, _heads(k), _heads(v), strides[0], strides[1], pages, 0, kv_heads, k.shape[2], size, kv8,
    )  # fmt: skip
    native.check(native.library().bw_store_kv(call, element))


def _check_angles(q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    shape = (q.shape[0], q.shape[2] // 2)
    if cos.shape != shape or sin.shape != shape or cos.dtype != torch.float32 or sin.dtype != torch.float32:
        raise ValueError(f"cos and sin must be float32 {shape}, got {cos.dtype} {tuple(cos.shape)}, {tuple(sin.shape)}")
    if not (cos.is_contiguous() and sin.is_contiguous()):
        raise ValueError("cos and sin must be contiguous")


def _check_pool(
    k: torch.Tensor, v: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, slots: torch.Tensor
) -> bool:
    """Whether the pools are int8."""
    strides = k_pool.stride()
    kv8 = k_pool.dtype == torch.int8
    if v_pool.dtype != k_pool.dtype or not (kv8 or k_pool.dtype == k.dtype):
        raise ValueError(f"the pools must be int8 or both {k.dtype}, got {k_pool.dtype} and {v_pool.dtype}")
    if (
        k.shape != v.shape
        or k_pool.shape != v_pool.shape
        or k.shape[1] != k_pool.shape[1]
        or k.shape[2] + ROW_TAIL * kv8 != k_pool.shape[3]
        or (kv8 and k.shape[2] > _WIDEST)
    ):
        raise ValueError(f"k {tuple(k.shape)}, v {tuple(v.shape)} do not fit pools {tuple(k_pool.shape)}")
    if strides[2:] != (k_pool.shape[3], 1) or v_pool.stride() != strides:
        raise ValueError("the last two dimensions of the pools must be contiguous")
    if slots.dtype != torch.int64 or slots.shape != (k.shape[0],) or slots.stride(0) != 1:
        raise ValueError(f"slots must be contiguous int64 [{k.shape[0]}], got {slots.dtype} {tuple(slots.shape)}")
    return kv8
