"""The gated activation of the feed-forward block: the definition.

Knows: torch. Must not know: models, hardware.
Source: Shazeer, "GLU Variants Improve Transformer", 2020 (SwiGLU).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate_up [T, 2F] holds gate in its first half. Returns [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
