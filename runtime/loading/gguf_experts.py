"""Mixtures of experts in GGUF files: their metadata in config.json's words, their tensors one for each expert.

Knows: metadata keys and tensor names of experts, as llama.cpp's converter writes them. Must not know: torch, layers.
"""

from __future__ import annotations

import re
from typing import Any

from branchwork.runtime.loading.gguf_file import GgufFile, GgufTensor

CLASSES = {"llama": "MixtralForCausalLM", "qwen2moe": "Qwen2MoeForCausalLM", "qwen3moe": "Qwen3MoeForCausalLM"}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_EXPERTS = {
    "ffn_gate_exps": ("w1", "gate_proj"),
    "ffn_up_exps": ("w3", "up_proj"),
    "ffn_down_exps": ("w2", "down_proj"),
}
_SHARED = {
    "ffn_gate_inp_shexp": "shared_expert_gate",
    "ffn_gate_shexp": "shared_expert.gate_proj",
    "ffn_up_shexp": "shared_expert.up_proj",
    "ffn_down_shexp": "shared_expert.down_proj",
}


def expert_fields(file: GgufFile, kind: str) -> dict[str, Any]:
    """What a config.json says of experts, empty where there are none. kind: the file's architecture.

    Raises LoadError (config) naming the key.
    """
    total = file.count(f"{kind}.expert_count", 0)
    if not total:
        return {}
    fields: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "num_local_experts": total,
        "num_experts_per_tok": file.count(f"{kind}.expert_used_count"),
    }
    if kind == "llama":
        return fields
    layers = range(file.count(f"{kind}.block_count"))
    fields |= {
        "moe_intermediate_size": file.count(f"{kind}.expert_feed_forward_length"),
        "norm_topk_prob": kind == "qwen3moe",  # the format has no word for it
        "mlp_only_layers": [i for i in layers if f"blk.{i}.ffn_gate_inp.weight" not in file.tensors],
    }
    if kind == "qwen2moe":
        fields["shared_expert_intermediate_size"] = file.count(f"{kind}.expert_shared_feed_forward_length")
    return fields


def of_experts(tensor: GgufTensor, kind: str) -> dict[str, GgufTensor]:
    """A tensor of a mixture under Hugging Face's names, that of all experts as one for each; empty for any other."""
    block = _BLOCK.fullmatch(tensor.name)
    if block is None:
        return {}
    mixtral = kind == "llama"
    at, name = f"model.layers.{block[1]}.{'block_sparse_moe' if mixtral else 'mlp'}.", block[2]
    if name == "ffn_gate_inp":
        return {f"{at}gate.weight": tensor}
    if name in _SHARED:  # the gate of a shared expert is a vector there, and a matrix of one row here
        whole = tensor if len(tensor.shape) > 1 else tensor._replace(shape=(1, *tensor.shape))
        return {f"{at}{_SHARED[name]}.weight": whole}
    if name not in _EXPERTS:
        return {}
    total, *shape = tensor.shape
    size = len(tensor.data) // total
    inner = _EXPERTS[name][0 if mixtral else 1]
    return {
        f"{at}experts.{e}.{inner}.weight": GgufTensor(
            f"{tensor.name}[{e}]", tensor.kind, tuple(shape), tensor.data[e * size : (e + 1) * size]
        )
        for e in range(total)
    }
