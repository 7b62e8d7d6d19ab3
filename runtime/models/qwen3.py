"""Qwen 3 (dense): norms on each head's q and k, a head size of its own, no biases by default.

Knows: what its config.json may say. Must not know: tensors, kernels.
"""

from __future__ import annotations

from branchwork.runtime.models.spec import Fields, ModelSpec, dense, layer_windows


def spec(fields: Fields) -> ModelSpec:
    bias = fields.flag("attention_bias")
    return dense(
        fields,
        "qwen3",
        head_dim=128,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        windows=layer_windows(fields),
        context=32768,
    )
