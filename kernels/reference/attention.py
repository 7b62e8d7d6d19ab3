"""Causal attention of ragged rows over paged keys and values: the definition.

Knows: torch, the head-major page layout. Must not know: requests, who owns a page, hardware.
Source: Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", 2023.
"""

from __future__ import annotations

import torch
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
) -> Tensor:
    """Attention of q [T, H, D] over pools [P, KVH, S, D] (of int8: D + 8); returns [T, H, D] in q's dtype.

    Sums are float32.

    page_table int32 [R, maxpages]: position p of row r lies in page page_table[r, p // S], slot p % S.
    cu_rows int32 [R + 1]: row r owns q[cu_rows[r] : cu_rows[r + 1]]; its i-th token of n is at position
    kv_len[r] - n + i and attends to every position up to its own, or to the last `window` of them when window > 0.
    Query head h reads key head h // (H // KVH).
    """
    heads, dim = q.shape[1:]
    kv_heads, size = k_pool.shape[1:3]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    cuts = cu_rows.tolist()
    for r, length in enumerate(kv_len.tolist()):
        begin, end = cuts[r], cuts[r + 1]
        pages = page_table[r, : -(-length // size)].long()
        k, v = (  # [H, length, D]
            vectors(pool[pages], torch.float32)
            .transpose(1, 2)
            .reshape(-1, kv_heads, dim)[:length]
            .transpose(0, 1)
            .float()
            for pool in (k_pool, v_pool)
        )
        k, v = (part.repeat_interleave(heads // kv_heads, dim=0) for part in (k, v))
        at = torch.arange(length - (end - begin), length, device=q.device)[:, None]
        key = torch.arange(length, device=q.device)[None]
        hidden = (key > at) | (key <= at - window) if window > 0 else key > at
        scores = q[begin:end].transpose(0, 1).float() @ k.transpose(1, 2) * scale  # [H, n, length]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[begin:end] = (weights @ v).transpose(0, 1).to(q.dtype)
    return out
