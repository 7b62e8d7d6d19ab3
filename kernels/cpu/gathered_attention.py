"""Paged attention without native code: gather each row's pages, then torch's scaled_dot_product_attention.

Knows: torch, the head-major page layout. Must not know: requests, the native kernel.
Measured: 4 to 5 times faster than a gather padded over the batch, 15 times faster than sdpa's own enable_gqa.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from branchwork.kernels.reference.kv import vectors


def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    page_table: Tensor,
    cu_rows: Tensor,
    kv_len: Tensor,
    scale: float,
    window: int,
    plan: object = None,
) -> Tensor:
    """As `kernels.paged_attention`. Touches only pages that a row's tokens can see."""
    size = k_pool.shape[2]
    out = torch.empty(q.shape, dtype=q.dtype)
    cuts = cu_rows.tolist()
    for r, length in enumerate(kv_len.tolist()):
        begin, end = cuts[r], cuts[r + 1]
        # positions  [ 0 .. low | low .. length )  seen by some token of the row; low's page starts at first * size
        low = max(0, length - (end - begin) + 1 - window) if window > 0 else 0
        first = low // size
        pages = page_table[r, first : -(-length // size)]
        k, v = (
            _gather(pool, pages, q.dtype)[:, low - first * size : length - first * size] for pool in (k_pool, v_pool)
        )
        attend = _one_token if end - begin == 1 else _many_tokens
        out[begin:end] = attend(q[begin:end], k, v, scale, window)
    return out


def _gather(pool: Tensor, pages: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values of consecutive pages as [KVH, tokens, D]; a view where pages hold one token."""
    parts = vectors(pool.index_select(0, pages), dtype)  # [pages, KVH, S, D]
    return parts.transpose(0, 1).flatten(1, 2)


def _one_token(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """A decode row: the query heads of one key head become the rows of one small product. q [1, H, D]."""
    kv_heads, _, dim = k.shape
    mixed = F.scaled_dot_product_attention(q.view(1, kv_heads, -1, dim), k[None], v[None], scale=scale)
    return mixed.view(1, -1, dim)


def _many_tokens(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """A prefill row: key heads as the batch, their query heads side by side. q [n, H, D], k and v [KVH, L, D]."""
    n, heads, dim = q.shape
    kv_heads, length, _ = k.shape
    group = heads // kv_heads
    whole = n == length and window <= 0
    mask = None if whole else _mask(n, length, window)
    mixed = F.scaled_dot_product_attention(
        q.view(n, kv_heads, group, dim).permute(1, 2, 0, 3),
        k[:, None].expand(kv_heads, group, length, dim),
        v[:, None].expand(kv_heads, group, length, dim),
        attn_mask=mask,
        is_causal=whole,
        scale=scale,
    )  # [KVH, G, n, D]
    return mixed.permute(2, 0, 1, 3).reshape(n, heads, dim)


def _mask(n: int, length: int, window: int) -> Tensor:
    """True where the i-th of the last n positions may see position j of `length`. [n, length]."""
    seen = torch.ones(n, length, dtype=torch.bool).tril_(length - n)
    return seen.triu_(length - n + 1 - window) if window > 0 else seen
