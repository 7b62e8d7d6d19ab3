"""Qwen 2 with experts: the dense model's attention, mixtures, and a block beside them that every token takes.

Knows: what its config.json may say. Must not know: tensors, kernels.
"""

from __future__ import annotations

from branchwork.runtime.models.spec import Fields, ModelSpec, dense, sparse


def spec(fields: Fields) -> ModelSpec:
    fields.require("use_sliding_window", False)
    return dense(
        fields,
        "qwen2_moe",
        qkv_bias=fields.flag("qkv_bias", True),
        context=32768,
        experts=sparse(fields, shared=fields.count("shared_expert_intermediate_size")),
    )
