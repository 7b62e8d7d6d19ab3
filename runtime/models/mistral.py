"""Mistral: a Llama without biases whose every layer may attend to a sliding window only.

Knows: what its config.json may say. Must not know: tensors, kernels.
"""

from __future__ import annotations

from branchwork.runtime.models.spec import Fields, ModelSpec, dense


def spec(fields: Fields) -> ModelSpec:
    layers = fields.count("num_hidden_layers")
    # absent means the family's own default; null means no window
    window = fields.count("sliding_window") if fields.values.get("sliding_window", 4096) is not None else 0
    return dense(fields, "mistral", windows=(window,) * layers, context=131072)
