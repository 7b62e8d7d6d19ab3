"""Causal attention of ragged rows over paged keys and values, and of rows that end in a draft tree: the definition.

Knows: torch, the head-major page layout. Must not know: requests, who owns a page, hardware.
Sources: Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", 2023; Miao et al.,
"SpecInfer", 2024 (trees of drafts verified at once).
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.reference.kv import vectors

TREE = 64  # tokens of a row that a mask of ancestors can speak of


def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    page_table: Tensor,
    cu_rows: Tensor,
    kv_len: Tensor,
    scale: float,
    window: int,
    softcap: float = 0.0,
    plan: object = None,
) -> Tensor:
    """Attention of q [T, H, D] over pools [P, KVH, S, D] (of int8: D + 8); returns [T, H, D] in q's dtype.

    Sums are float32, or float64 for q of float64.

    page_table int32 [R, maxpages]: position p of row r lies in page page_table[r, p // S], slot p % S.
    cu_rows int32 [R + 1]: row r owns q[cu_rows[r] : cu_rows[r + 1]]; its i-th token of n is at position
    kv_len[r] - n + i and attends to every position up to its own, or to the last `window` of them when window > 0.
    Query head h reads key head h // (H // KVH). softcap > 0 makes the scores softcap * tanh(scores / softcap).
    plan: nothing is planned here.
    """
    return _attention(q, k_pool, v_pool, page_table, cu_rows, kv_len, None, scale, window, softcap)


def tree_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    page_table: Tensor,
    cu_rows: Tensor,
    kv_len: Tensor,
    ancestors: Tensor,
    scale: float,
    window: int,
    softcap: float = 0.0,
    plan: object = None,
) -> Tensor:
    """`paged_attention` of rows whose last min(n, 64) tokens are a tree: siblings do not see each other.

    ancestors int32 [T, 2]: bit j of a token's 64 says that it sees the j-th of these tokens of its row. Its own bit is
    set, those of later tokens are not; a token before the tree has none. The window applies to what is before the tree,
    counted from a token's depth in it.
    """
    return _attention(q, k_pool, v_pool, page_table, cu_rows, kv_len, ancestors, scale, window, softcap)


def _attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    page_table: Tensor,
    cu_rows: Tensor,
    kv_len: Tensor,
    ancestors: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    heads, dim = q.shape[1:]
    kv_heads, size = k_pool.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    cuts = cu_rows.tolist()
    for r, length in enumerate(kv_len.tolist()):
        begin, end = cuts[r], cuts[r + 1]
        pages = page_table[r, : -(-length // size)].long()
        k, v = (  # [H, length, D]
            vectors(pool[pages], wide).transpose(1, 2).reshape(-1, kv_heads, dim)[:length].transpose(0, 1).to(wide)
            for pool in (k_pool, v_pool)
        )
        k, v = (part.repeat_interleave(heads // kv_heads, dim=0) for part in (k, v))
        seen = _seen(end - begin, length, window, None if ancestors is None else ancestors[begin:end])
        scores = q[begin:end].transpose(0, 1).to(wide) @ k.transpose(1, 2) * scale  # [H, n, length]
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.masked_fill(~seen.to(q.device), -torch.inf).softmax(-1)
        out[begin:end] = (weights @ v).transpose(0, 1).to(q.dtype)
    return out


def _seen(n: int, length: int, window: int, ancestors: Tensor | None) -> Tensor:
    """Whether each of a row's last n tokens sees each of its positions. bool [n, length]."""
    at, key = torch.arange(length - n, length)[:, None], torch.arange(length)[None]
    if ancestors is None:
        return (key <= at) & (key > at - window) if window > 0 else key <= at
    words = ancestors.cpu()[:, :, None] >> torch.arange(32)
    bits = (words & 1).bool().flatten(1)  # [n, 64]
    start = length - min(n, TREE)
    at = torch.where(at >= start, start + bits.sum(1, keepdim=True) - 1, at)
    seen = key <= at
    if window > 0:
        seen = seen & (key > at - window)
    seen[:, start:] = bits[:, : length - start]
    return seen
