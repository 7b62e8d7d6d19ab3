"""Rotary position embedding in the rotate-half layout: the definition.

Knows: torch. Must not know: how frequencies are scaled, models, hardware.
Source: Su et al., "RoFormer", 2021; the half-split layout is Hugging Face's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate q [T, H, D] and k [T, KVH, D] by cos, sin [T, D/2] (float32); returns new tensors in their dtypes."""
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().chunk(2, dim=-1)  # [T, heads, D/2] each
    c, s = cos.float()[:, None], sin.float()[:, None]
    return torch.cat((a * c - b * s, b * c + a * s), dim=-1).to(x.dtype)
