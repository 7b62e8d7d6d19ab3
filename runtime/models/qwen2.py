"""Qwen 2 and 2.5: biases on q, k and v only; upper layers may attend to a sliding window.

Knows: what its config.json may say. Must not know: tensors, kernels.
"""

from __future__ import annotations

from branchwork.runtime.models.spec import Fields, ModelSpec, dense, layer_windows


def spec(fields: Fields) -> ModelSpec:
    return dense(fields, "qwen2", qkv_bias=True, windows=layer_windows(fields), context=32768)
