"""Paged attention by the native C library.

Knows: tensor layouts and the C call. Must not know: requests, models, which op the table picks.
"""

from __future__ import annotations

import torch

from branchwork.kernels.cpu import native
from branchwork.kernels.reference.kv import ROW_TAIL

available = native.available
why = native.why

_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1}


def paged_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    kv_len: torch.Tensor,
    scale: float,
    window: int = 0,
    plan: object = None,
) -> torch.Tensor:
    """Causal grouped-query attention of ragged rows over paged KV; returns [T, H, D] like q, contiguous.

    q [T, H, D] (any token stride); k_pool, v_pool [P, KVH, S, D] (same strides); float32 or bfloat16, all alike, or
    pools of int8 [P, KVH, S, D + 8]; D % 8 == 0. page_table int32 [R, maxpages], cu_rows int32 [R+1], kv_len int32 [R].
    Row r owns q[cu_rows[r]:cu_rows[r+1]]; the i-th of its n tokens stands at position kv_len[r] - n + i and attends to
    all positions up to its own, or to the last `window` of them (itself included) when window > 0. Sums are float32.
    A token's result does not depend, to the bit, on the other rows, on how its row is cut into chunks or on the
    number of threads. Only attended positions are read.

    Raises ValueError for shapes, types or strides that do not fit and IndexError for a page outside the pool.
    """
    element = _ELEMENTS.get(q.dtype)
    kv8 = k_pool.dtype == torch.int8
    tokens, heads, dim = q.shape
    pages, kv_heads, slots, kv_dim = k_pool.shape
    q_stride, head_stride, unit = q.stride()
    strides = k_pool.stride()
    if element is None or v_pool.dtype != k_pool.dtype or not (kv8 or k_pool.dtype == q.dtype):
        raise ValueError(
            "q and the pools must share float32 or bfloat16, or the pools be int8, "
            f"got {q.dtype}, {k_pool.dtype}, {v_pool.dtype}"
        )
    if kv_dim != dim + ROW_TAIL * kv8 or dim % 8 or heads % kv_heads or v_pool.shape != k_pool.shape:
        raise ValueError(f"q {tuple(q.shape)} does not fit pools {tuple(k_pool.shape)} and {tuple(v_pool.shape)}")
    if unit != 1 or head_stride != dim or strides[2:] != (kv_dim, 1) or v_pool.stride() != strides:
        raise ValueError("the last two dimensions of q and of the pools must be contiguous")
    rows = kv_len.shape[0]
    for name, tensor, shape in (("cu_rows", cu_rows, (rows + 1,)), ("kv_len", kv_len, (rows,))):
        if tensor.dtype != torch.int32 or tensor.shape != shape or tensor.stride(0) != 1:
            raise ValueError(f"{name} must be contiguous int32 {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
    if page_table.dtype != torch.int32 or page_table.shape[0] != rows or page_table.stride(1) != 1:
        raise ValueError(
            f"page_table must be int32 [{rows}, maxpages], got {page_table.dtype} {tuple(page_table.shape)}"
        )
    out = q.new_empty(q.shape)
    call = native.ATTENTION.pack(
        q.data_ptr(),
        k_pool.data_ptr(),
        v_pool.data_ptr(),
        out.data_ptr(),
        page_table.data_ptr(),
        cu_rows.data_ptr(),
        kv_len.data_ptr(),
        q_stride,
        strides[0],
        strides[1],
        page_table.stride(0),
        rows,
        heads,
        kv_heads,
        dim,
        slots,
        pages,
        window,
        page_table.shape[1],
        tokens,
        scale,
        0,
        kv8,
    )
    native.check(native.library().bw_paged_attention(call, element))
    return out
