"""Matrix products and table look-ups: the definition.

Knows: torch. Must not know: models, weight files, hardware.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]. Returns [T, N]."""
    return F.linear(x, weight, bias)


def pack_linear(weight: Tensor) -> Tensor:
    """The weight itself: the plain product wants no other layout."""
    return weight


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of table [V, C] at ids int64 [T]. Returns [T, C]."""
    return table.index_select(0, ids)
