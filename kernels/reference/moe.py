"""Mixtures of experts: which experts a token goes to, and their feed-forward blocks: the definition.

Knows: torch. Must not know: models, hardware.
Source: Shazeer et al., "Outrageously Large Neural Networks", 2017.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from branchwork.kernels.reference.activation import silu_mul
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.linear import linear
from branchwork.kernels.reference.quant import Quantized

Stored = Tensor | Quantized | Float8


def route(logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """(gains float32 [T, top_k], experts int32 [T, top_k]) of router logits [T, E]: the most likely ones, best first.

    gains: the experts' probabilities, with `renormalize` divided by their sum. Equal logits go by expert.
    """
    chances, order = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    gains = chances[:, :top_k]
    if renormalize:
        gains = gains / gains.sum(-1, keepdim=True)
    return gains.contiguous(), order[:, :top_k].int().contiguous()


def pack_experts(
    blocks: Iterable[tuple[Stored, Stored]], count: int, dtype: torch.dtype
) -> tuple[Sequence[Stored], Sequence[Stored]]:
    """The experts' weights (gate over up [2F, C]) and (down [C, F]) as they are, by expert."""
    gate_up, down = zip(*blocks, strict=True)
    return gate_up, down


def expert_mlp(
    x: Tensor, gate_up: Tensor | Sequence[Stored], down: Tensor | Sequence[Stored], gains: Tensor, experts: Tensor
) -> Tensor:
    """Each token's experts' blocks, weighed and added: x [T, C], gate_up [E, 2F, C], down [E, C, F]. Returns [T, C].

    gains, experts [T, k] as `route` gives them. The sum over experts is float32.
    """
    out = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for expert in torch.unique(experts).tolist():
        token, place = (experts == expert).nonzero(as_tuple=True)
        hidden = silu_mul(linear(x[token], gate_up[expert], None))
        out.index_add_(0, token, linear(hidden, down[expert], None).to(out.dtype) * gains[token, place, None])
    return out.to(x.dtype)
