"""Writing keys and values into the paged pool: the definition.

Knows: torch, the head-major page layout. Must not know: who owns a page.
"""

from __future__ import annotations

from torch import Tensor

from branchwork.kernels.reference.rope import rope


def store_kv(k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor) -> None:
    """Write k, v [T, KVH, D] to the pools [P, KVH, S, D] at slots int64 [T], slot = page * S + offset. In place.

    Slots of one call are distinct.
    """
    size = k_pool.shape[2]
    page, offset = slots // size, slots % size
    k_pool[page, :, offset] = k
    v_pool[page, :, offset] = v


def rope_store_kv(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor
) -> Tensor:
    """`rope`, then `store_kv` of the rotated k and of v. Returns the rotated q."""
    q, k = rope(q, k, cos, sin)
    store_kv(k, v, k_pool, v_pool, slots)
    return q
