"""Mixtures of experts on CPUs: each expert's rows side by side through the best product there is here.

Knows: the order of rows by expert. Must not know: models, how a product computes.

A row's result does not depend, to the bit, on the other rows: products do not, and its experts' parts are added in the
order in which `route` names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
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
    tokens, fan = experts.shape
    flat = experts.numpy().ravel()  # slot s is token s // fan's; numpy sorts few numbers faster than torch
    order = flat.argsort(kind="stable")
    sorted_ = flat[order]
    cuts = [0, *(np.flatnonzero(np.diff(sorted_)) + 1).tolist(), len(flat)]
    rows = x.index_select(0, torch.from_numpy(order // fan))  # by expert
    parts = torch.empty((len(flat), x.shape[1]), dtype=x.dtype)
    for begin, end in pairwise(cuts):
        if begin < end:
            name = int(sorted_[begin])
            parts[begin:end] = linear(gated(linear(rows[begin:end], gate_up[name], None)), down[name], None)
    slots = torch.from_numpy(order.argsort())  # where each slot's part lies
    by_token = parts.index_select(0, slots).float().view(tokens, fan, x.shape[1])
    out = by_token[:, 0] * gains[:, :1]
    for place in range(1, fan):
        out += by_token[:, place] * gains[:, place : place + 1]
    return out.to(x.dtype)
