"""Llama (1 to 3.x) and its kin: optional biases, rotary scaling, tied or untied head.

Knows: what its config.json may say. Must not know: tensors, kernels.
"""

from __future__ import annotations

from branchwork.runtime.models.spec import Fields, ModelSpec, dense


def spec(fields: Fields) -> ModelSpec:
    bias = fields.flag("attention_bias")
    return dense(fields, "llama", qkv_bias=bias, out_bias=bias, mlp_bias=fields.flag("mlp_bias"), context=2048)
