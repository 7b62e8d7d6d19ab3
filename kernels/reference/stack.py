"""What a whole decoder's layers consist of, for implementations that run them in one call; the definition has none.

Knows: torch. Must not know: families, weight names, files, hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import Quantized


class Affine(NamedTuple):
    """x [T, K] times weight [N, K] transposed, plus bias [N]."""

    weight: Tensor | Quantized | Float8
    bias: Tensor | None = None


class Gated(NamedTuple):
    """A feed-forward block, down(silu(gate(x)) * up(x)): gate, up [F, C], down [C, F]."""

    gate: Affine
    up: Affine
    down: Affine


class Experts(NamedTuple):
    """A mixture of `total` blocks, of which a token takes the `top_k` that the router [total, C] finds likeliest.

    block(e) reads expert e. renormalize: as in `route`. shared: a block that every token takes as well, weighed by
    the sigmoid of its gate [1, C].
    """

    router: Tensor
    total: int
    top_k: int
    renormalize: bool
    block: Callable[[int], Gated]
    shared: tuple[Gated, Tensor] | None = None


class LayerParts(NamedTuple):
    """One layer. norm, post_norm [C]; qk_norm: [D] each, of q's and of k's heads; window: 0 for all positions."""

    norm: Tensor
    qkv: Affine  # [(H + 2 KVH) D, C]: q, k and v below each other
    qk_norm: tuple[Tensor, Tensor] | None
    out: Affine  # [C, H D]
    post_norm: Tensor
    mlp: Gated | Experts
    window: int


class StackParts(NamedTuple):
    """The layers between a table of embeddings [V, C] and a head [V, C], which may be one. layer(i) reads layer i.
    Norms are of the type that the model computes in, float32 or bfloat16.

    angles: positions int64 [T] to cos, sin float32 [T, D/2]. bytes: of all weights, known before any layer is read.
    dense: no layer has experts.
    """

    embed: Tensor | Quantized | Float8
    norm: Tensor
    head: Tensor | Quantized | Float8
    layer: Callable[[int], LayerParts]
    angles: Callable[[Tensor], tuple[Tensor, Tensor]]
    layers: int
    heads: int
    kv_heads: int
    dim: int
    ffn: int
    eps: float
    bytes: int
    dense: bool = True


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
