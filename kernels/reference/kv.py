"""Rows of keys and values in the paged pool, written and read: the definition.

Knows: torch, the head-major page layout. Must not know: who owns a page.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.reference.rope import rope

ROW_TAIL = 8  # bytes behind the D integers of an int8 row: their float32 scale, and four unused


def kv_row(dim: int, dtype: torch.dtype) -> int:
    """Elements of a pool's row for one head vector of `dim` elements."""
    return dim + ROW_TAIL if dtype == torch.int8 else dim


def store_kv(k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor) -> None:
    """Write k, v [T, KVH, D] to the pools [P, KVH, S, D], or int8 [P, KVH, S, D + 8], at slots int64 [T]. In place.

    Pools of float8_e4m3fn round to the nearest number, what is beyond 448 to that.

    slot = page * S + offset; slots of one call are distinct.
    """
    size = k_pool.shape[2]
    page, offset = slots // size, slots % size
    k_pool[page, :, offset] = as_rows(k, k_pool.dtype)
    v_pool[page, :, offset] = as_rows(v, v_pool.dtype)


def rope_store_kv(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor
) -> Tensor:
    """`rope`, then `store_kv` of the rotated k and of v. Returns the rotated q."""
    q, k = rope(q, k, cos, sin)
    store_kv(k, v, k_pool, v_pool, slots)
    return q


def as_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Vectors [.., D] as rows of a pool of this type: int8 rows are [.., D + 8], x / scale rounded half to even, then
    the scale absmax / 127; e4m3 has no scale and no infinity."""
    if dtype == torch.float8_e4m3fn:
        return x.float().clamp(-448, 448).to(dtype)
    if dtype != torch.int8:
        return x
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / 127.0
    values = (x / torch.where(scale > 0, scale, 1.0)).round().to(torch.int8)
    return torch.cat((values, scale.view(torch.int8), torch.zeros_like(scale).view(torch.int8)), -1)


def vectors(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a pool as vectors [.., D]; of int8 and e4m3 pools in `dtype` (int8 rounds), of others as they are."""
    if rows.dtype == torch.float8_e4m3fn:
        return rows.to(dtype)
    if rows.dtype != torch.int8:
        return rows
    dim = rows.shape[-1] - ROW_TAIL
    scale = rows[..., dim : dim + 4].contiguous().view(torch.float32)
    return (rows[..., :dim].float() * scale).to(dtype)
