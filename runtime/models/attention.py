"""One layer's self-attention over the paged KV pool.

Knows: kernels, a Step, the pool's tensors of its layer. Must not know: families, weight names, who owns a page.
"""

from __future__ import annotations

from torch import Tensor

from branchwork import kernels
from branchwork.runtime.models.layers import Linear
from branchwork.runtime.models.spec import AttentionSpec
from branchwork.runtime.models.step import Step


class Attention:
    """q, k, v from one fused product; optional per-head norms (Qwen 3); grouped-query attention; output product."""

    __slots__ = ("eps", "norms", "out", "qkv", "scale", "sizes", "window")

    def __init__(
        self,
        spec: AttentionSpec,
        qkv: Linear,
        out: Linear,
        *,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        window: int,
    ) -> None:
        self.sizes = (spec.heads, spec.kv_heads, spec.head_dim)
        self.qkv = qkv
        self.out = out
        self.norms = norms
        self.eps = eps
        self.window = window
        self.scale = spec.head_dim**-0.5

    def __call__(self, x: Tensor, step: Step, angles: tuple[Tensor, Tensor], k_pool: Tensor, v_pool: Tensor) -> Tensor:
        """x [T, C] to [T, C]; writes this step's keys and values before it attends."""
        heads, kv_heads, dim = self.sizes
        fused = self.qkv(x).view(-1, heads + 2 * kv_heads, dim)  # [T, H + 2 KVH, D]
        q, k, v = fused[:, :heads], fused[:, heads : heads + kv_heads], fused[:, heads + kv_heads :]
        if self.norms is not None:
            q, k = kernels.rms_norm(q, self.norms[0], self.eps), kernels.rms_norm(k, self.norms[1], self.eps)
        q = kernels.rope_store_kv(q, k, v, *angles, k_pool, v_pool, step.slots)
        plan = step.plans.get(self.window)
        mixed = kernels.paged_attention(
            q, k_pool, v_pool, step.page_table, step.cu_rows, step.kv_len, self.scale, self.window, plan
        )
        return self.out(mixed.view(-1, heads * dim))
