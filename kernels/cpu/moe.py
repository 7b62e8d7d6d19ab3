"""Mixtures of experts on CPUs: each expert's rows side by side through the best product there is here.

Knows: the order of rows by expert. Must not know: models, how a product computes.

A row's result does not depend, to the bit, on the other rows: products do not, and its experts' parts are added in the
order in which `route` names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import Quantized
from branchwork.kernels.table import implementation


def pack_experts(
    blocks: Iterable[tuple[Tensor | Quantized | Float8, Tensor | Quantized | Float8]], count: int, dtype: torch.dtype
) -> tuple[Sequence[Any], Sequence[Any]]:
    """As `kernels.pack_experts`: every weight as pack_linear makes it."""
    pack = implementation("pack_linear", "cpu")
    gate_up, down = zip(*((pack(first, dtype), pack(second, dtype)) for first, second in blocks), strict=True)
    return gate_up, down


def expert_mlp(
    x: Tensor, gate_up: Tensor | Sequence[Any], down: Tensor | Sequence[Any], gains: Tensor, experts: Tensor
) -> Tensor:
    """As `kernels.expert_mlp`; the sum over experts is float32."""
    linear, gated = implementation("linear", "cpu"), implementation("silu_mul", "cpu")
    names, order = experts.flatten().sort(stable=True)  # slot s is token s // k's
    rows = x.index_select(0, order // experts.shape[1])  # [T k, C], by expert
    found, counts = torch.unique_consecutive(names, return_counts=True)
    parts, begin = [], 0
    for name, count in zip(found.tolist(), counts.tolist(), strict=True):
        hidden = gated(linear(rows[begin : begin + count], gate_up[name], None))
        parts.append(linear(hidden, down[name], None))
        begin += count
    slots = torch.empty_like(order)
    slots[order] = torch.arange(len(order))  # where each slot's part lies
    by_token = torch.cat(parts)[slots].float().view(*experts.shape, -1) if parts else x.new_zeros(0, 1, x.shape[1])
    out = by_token[:, 0] * gains[:, :1]
    for place in range(1, by_token.shape[1]):
        out += by_token[:, place] * gains[:, place : place + 1]
    return out.to(x.dtype)
