"""Qwen 3 with experts: the dense model's attention, and mixtures in all layers or in some.

Knows: what its config.json may say. Must not know: tensors, kernels.
"""

from __future__ import annotations

from branchwork.runtime.models.spec import Fields, ModelSpec, dense, sparse


def spec(fields: Fields) -> ModelSpec:
    bias = fields.flag("attention_bias")
    window = fields.count("sliding_window", 4096) if fields.flag("use_sliding_window") else 0
    return dense(
        fields,
        "qwen3_moe",
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        windows=(window,) * fields.count("num_hidden_layers"),
        context=32768,
        experts=sparse(fields),
    )
