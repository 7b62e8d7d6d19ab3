"""Mixtral: a Mistral whose every feed-forward block is a mixture of experts.

Knows: what its config.json may say. Must not know: tensors, kernels.
"""

from __future__ import annotations

from branchwork.runtime.models.spec import ExpertSpec, Fields, ModelSpec, chosen, dense


def spec(fields: Fields) -> ModelSpec:
    layers = fields.count("num_hidden_layers")
    count, top_k = chosen(fields, "num_local_experts", 8)
    experts = ExpertSpec(count, top_k, fields.count("intermediate_size"), True, frozenset(range(layers)), "mixtral")
    window = fields.count("sliding_window") if fields.values.get("sliding_window") is not None else 0
    return dense(fields, "mixtral", windows=(window,) * layers, context=131072, experts=experts)
