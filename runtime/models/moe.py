"""Mixtures of experts: names and shapes of their tensors, reading them, and the block that runs them.

Knows: specs, readers, kernels, Hugging Face's tensor names. Must not know: config.json, attention, requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from branchwork import kernels
from branchwork.runtime.models.layers import Linear, Mlp
from branchwork.runtime.models.reader import Reader
from branchwork.runtime.models.spec import ExpertSpec, ModelSpec
from branchwork.runtime.models.stored import beside


class Naming(NamedTuple):
    """What a family calls the mixture of a layer and the three matrices of an expert."""

    block: str
    gate: str
    up: str
    down: str


NAMES = {
    "mixtral": Naming("block_sparse_moe", "w1", "w3", "w2"),
    "qwen": Naming("mlp", "gate_proj", "up_proj", "down_proj"),
}
_EXPERT = re.compile(r"\.experts\.\d+\.(?:w[123]|\w+_proj)\.weight$")


def is_expert(name: str) -> bool:
    """Whether a tensor is a matrix of one expert."""
    return _EXPERT.search(name) is not None


def idle(experts: ExpertSpec) -> float:
    """The share of the experts' weights that one token does not use."""
    return 1 - experts.top_k / experts.count


def mixture_shapes(spec: ModelSpec, experts: ExpertSpec, i: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of layer i's mixture."""
    naming, c = NAMES[experts.naming], spec.hidden
    at = f"model.layers.{i}.{naming.block}."
    shapes: dict[str, tuple[int, ...]] = {f"{at}gate.weight": (experts.count, c)}
    blocks = [(f"{at}experts.{e}.", experts.ffn) for e in range(experts.count)]
    if experts.shared:
        blocks.append((f"{at}shared_expert.", experts.shared))
        shapes[f"{at}shared_expert_gate.weight"] = (1, c)
    for block, width in blocks:
        shapes[f"{block}{naming.gate}.weight"] = shapes[f"{block}{naming.up}.weight"] = (width, c)
        shapes[f"{block}{naming.down}.weight"] = (c, width)
    return shapes


def read_mixture(experts: ExpertSpec, reader: Reader, i: int) -> kernels.Experts:
    """Layer i's mixture; its experts are read when they are asked for."""
    naming = NAMES[experts.naming]
    at = f"model.layers.{i}.{naming.block}."

    def gated(block: str) -> kernels.Gated:
        return kernels.Gated(*(reader.affine(block, False, name) for name in (naming.gate, naming.up, naming.down)))

    shared = (gated(f"{at}shared_expert."), reader.read(f"{at}shared_expert_gate.weight")) if experts.shared else None
    return kernels.Experts(
        router=reader.read(f"{at}gate.weight"),
        total=experts.count,
        top_k=experts.top_k,
        renormalize=experts.renormalize,
        block=lambda e: gated(f"{at}experts.{e}."),
        shared=shared,
    )


class MixtureMlp:
    """x [T, C] to [T, C]: the weighed blocks of each token's likeliest experts, and the shared one's if any."""

    __slots__ = ("down", "gate_up", "renormalize", "router", "shared", "top_k")

    def __init__(self, parts: kernels.Experts, dtype: torch.dtype) -> None:
        self.router = Linear(parts.router, None, dtype)
        self.top_k = parts.top_k
        self.renormalize = parts.renormalize
        self.gate_up, self.down = kernels.pack_experts(_blocks(parts, dtype), parts.total, dtype, parts.router.device)
        self.shared = parts.shared and (Mlp(parts.shared[0], dtype), Linear(parts.shared[1], None, dtype))

    def __call__(self, x: Tensor) -> Tensor:
        gains, experts = kernels.route(self.router(x), self.top_k, self.renormalize)
        mixed = kernels.expert_mlp(x, self.gate_up, self.down, gains, experts)
        if self.shared is None:
            return mixed
        block, gate = self.shared
        # a softmax beside 0 is a sigmoid; torch's own rounds by where in a vector register a row happens to lie
        share = F.pad(gate(x).float(), (0, 1)).softmax(-1)[:, :1]
        return mixed + share.to(x.dtype) * block(x)


def _blocks(parts: kernels.Experts, dtype: torch.dtype) -> Iterator[tuple[kernels.Stored, kernels.Stored]]:
    for e in range(parts.total):
        gate, up, down = parts.block(e)
        yield beside(gate, up, dtype).weight, down.weight
