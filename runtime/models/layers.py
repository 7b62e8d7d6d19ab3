"""The parts that every family is made of: embedding, linear, gated feed-forward, rotary angles.

Knows: kernels, how matrices may be stored. Must not know: families, weight names, files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork import kernels
from branchwork.kernels.reference.quant import Quantized, dequantize, rows
from branchwork.runtime.models.rope import frequencies
from branchwork.runtime.models.spec import RopeSpec
from branchwork.runtime.models.stored import beside, floats


class Embedding:
    """ids int64 [T] to [T, C] of `dtype`. Of a quantized table only the rows that are asked for become floats."""

    __slots__ = ("dtype", "table")

    def __init__(self, table: kernels.Stored, dtype: torch.dtype) -> None:
        self.table = table if isinstance(table, Quantized) else floats(table, dtype)
        self.dtype = dtype

    def __call__(self, ids: Tensor) -> Tensor:
        if isinstance(self.table, Quantized):
            return dequantize(rows(self.table, ids), self.dtype)
        return kernels.embedding(ids, self.table)


class Linear:
    """x [T, K] of `dtype` to [T, N]. Keeps its own packing of the weight [N, K]."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: kernels.Stored, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = kernels.pack_linear(weight, dtype)
        self.bias = bias  # [N]

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.weight, self.bias)


class Mlp:
    """down(silu(gate(x)) * up(x)); gate and up are one fused product."""

    __slots__ = ("down", "gate_up")

    def __init__(self, parts: kernels.Gated, dtype: torch.dtype) -> None:
        self.gate_up = Linear(*beside(parts.gate, parts.up, dtype), dtype)
        self.down = Linear(*parts.down, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(kernels.silu_mul(self.gate_up(x)))


class Rotary:
    """Angles of a step's positions, the same for all layers."""

    __slots__ = ("factor", "frequencies")

    def __init__(self, spec: RopeSpec, dim: int, device: torch.device) -> None:
        plain, self.factor = frequencies(spec, dim)
        self.frequencies = plain.to(device)  # [D/2]

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions int64 [T] to cos, sin float32 [T, D/2]."""
        angles = positions[:, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if self.factor == 1.0 else (cos * self.factor, sin * self.factor)
