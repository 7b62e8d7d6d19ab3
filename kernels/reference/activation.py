"""The activations of the feed-forward block, gated and plain: the definition.

Knows: torch. Must not know: models, hardware.
Source: Shazeer, "GLU Variants Improve Transformer", 2020 (SwiGLU, GEGLU); Hendrycks and Gimpel, "Gaussian Error Linear
Units", 2016.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate_up [T, 2F] holds gate in its first half. Returns [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up with gelu in its tanh form, gate in the first half of gate_up [T, 2F]. Returns [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution's share below x, in its exact form. x [T, F]."""
    return F.gelu(x)
