"""How large a model is, from its spec alone: parameters, and what a token of context takes.

Knows: the names and shapes of a decoder's tensors. Must not know: weights, files, devices.
"""

from __future__ import annotations

import math

from branchwork.runtime.models.decoder import tensors
from branchwork.runtime.models.moe import idle, is_expert
from branchwork.runtime.models.spec import ModelSpec


def parameters(spec: ModelSpec) -> int:
    """All numbers of a model, a matrix that embedding and head share counted once."""
    return sum(math.prod(shape) for shape in tensors(spec).values())


def looked_up(spec: ModelSpec) -> int:
    """Those of an embedding that is not the head as well: a forward reads a row of it a token, and no more."""
    return 0 if spec.tied else spec.vocab * spec.hidden


def in_layers(spec: ModelSpec) -> int:
    """Those that a token of a prompt is multiplied with: without embedding, head and the experts it does not take."""
    return parameters(spec) - looked_up(spec) - spec.vocab * spec.hidden - _idle(spec)


def kv_numbers(spec: ModelSpec) -> int:
    """Numbers that one token of context leaves in the KV cache, keys and values of all layers."""
    return 2 * spec.layers * spec.attention.kv_heads * spec.attention.head_dim


def _idle(spec: ModelSpec) -> int:
    """Those of experts that one token does not take."""
    if spec.experts is None:
        return 0
    held = sum(math.prod(shape) for name, shape in tensors(spec).items() if is_expert(name))
    return round(held * idle(spec.experts))
