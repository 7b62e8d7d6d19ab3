"""What a whole decoder's layers consist of, for implementations that run them in one call; the definition has none.

Knows: torch. Must not know: families, weight names, files, hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from branchwork.kernels.reference.quant import Quantized


class Affine(NamedTuple):
    """x [T, K] times weight [N, K] transposed, plus bias [N]."""

    weight: Tensor | Quantized
    bias: Tensor | None = None


class LayerParts(NamedTuple):
    """One layer. norm, post_norm [C]; qk_norm: [D] each, of q's and of k's heads; window: 0 for all positions."""

    norm: Tensor
    qkv: Affine  # [(H + 2 KVH) D, C]: q, k and v below each other
    qk_norm: tuple[Tensor, Tensor] | None
    out: Affine  # [C, H D]
    post_norm: Tensor
    gate: Affine  # [F, C]
    up: Affine  # [F, C]
    down: Affine  # [C, F]
    window: int


class StackParts(NamedTuple):
    """The layers between a table of embeddings [V, C] and a head [V, C], which may be one. layer(i) reads layer i.
    Norms are of the type that the model computes in, float32 or bfloat16.

    angles: positions int64 [T] to cos, sin float32 [T, D/2]. bytes: of all weights, known before any layer is read.
    """

    embed: Tensor | Quantized
    norm: Tensor
    head: Tensor | Quantized
    layer: Callable[[int], LayerParts]
    angles: Callable[[Tensor], tuple[Tensor, Tensor]]
    layers: int
    heads: int
    kv_heads: int
    dim: int
    ffn: int
    eps: float
    bytes: int


class Stack(Protocol):
    """All layers in one call. Arguments as in runtime.models.step; k and v are the pools by layer."""

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        page_table: Tensor,
        cu_rows: Tensor,
        kv_len: Tensor,
        slots: Tensor,
        wanted: Tensor,
        k: Sequence[Tensor],
        v: Sequence[Tensor],
    ) -> Tensor:
        """The last normed hidden states at tokens `wanted` [L], float32 [L, C]; writes the tokens' keys and values."""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [L, C] to logits [L, V], float32."""


def stack(parts: StackParts) -> Stack | None:
    """None: the model runs op by op."""
    return None
