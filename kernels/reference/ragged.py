"""Attention within texts that lie one behind the other, every token to all of its own text: the definition.

Knows: torch. Must not know: models, hardware, caches.
Source: Vaswani et al., "Attention Is All You Need", 2017; Devlin et al., "BERT", 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


def ragged_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """As `kernels.ragged_attention`: texts of one length that are neighbours are computed together."""
    parts: list[Tensor] = []
    heads, dim, at = q.shape[1], q.shape[2], 0
    for length, run in groupby(lengths):
        texts = sum(1 for _ in run)
        same = slice(at, at + texts * length)
        at = same.stop
        one, two, three = (x[same].view(texts, length, heads, dim).transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(one, two, three, scale=scale)  # [texts, H, length, D]
        parts.append(mixed.transpose(1, 2).reshape(texts * length, heads, dim))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
