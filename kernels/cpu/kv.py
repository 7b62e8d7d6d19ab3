"""Writing keys and values into the paged pool with torch's index_copy, which beats general indexing 2 to 3 times.

Knows: torch, the head-major page layout. Must not know: who owns a page.
"""

from __future__ import annotations

from torch import Tensor

from branchwork.kernels.reference import kv as reference
from branchwork.kernels.reference.rope import rope


def store_kv(k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor) -> None:
    """As `kernels.store_kv`. Pages of one token are rows of a plain table; larger ones take the general way."""
    if k_pool.shape[2] != 1:
        reference.store_kv(k, v, k_pool, v_pool, slots)
        return
    k_pool.squeeze(2).index_copy_(0, slots, reference.as_rows(k, k_pool.dtype))
    v_pool.squeeze(2).index_copy_(0, slots, reference.as_rows(v, v_pool.dtype))


def rope_store_kv(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor
) -> Tensor:
    """`rope`, then `store_kv` of the rotated k and of v. Returns the rotated q."""
    q, k = rope(q, k, cos, sin)
    store_kv(k, v, k_pool, v_pool, slots)
    return q
