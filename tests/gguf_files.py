"""Checkpoints written as GGUF files by the gguf package, the way llama.cpp's converter lays them out.

Knows: the gguf package, safetensors. Must not know: the runtime under test.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
EXPERTS = {  # of the last two parts of a name
    "experts.w1": "ffn_gate_exps",
    "experts.w3": "ffn_up_exps",
    "experts.w2": "ffn_down_exps",
    "experts.gate_proj": "ffn_gate_exps",
    "experts.up_proj": "ffn_up_exps",
    "experts.down_proj": "ffn_down_exps",
}
NAMES |= {f"{block}.{name}": theirs for block in ("mlp", "block_sparse_moe") for name, theirs in EXPERTS.items()}
NAMES |= {f"{block}.gate": "ffn_gate_inp" for block in ("mlp", "block_sparse_moe")}
NAMES |= {f"mlp.shared_expert.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")}
NAMES |= {"mlp.shared_expert_gate": "ffn_gate_inp_shexp"}
ARCHITECTURES = {"Llama": "llama", "Mistral": "llama", "Mixtral": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3"}
ARCHITECTURES |= {"Qwen2Moe": "qwen2moe", "Qwen3Moe": "qwen3moe"}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, float32."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return {name: tensor.float() for name, tensor in found.items()}


def stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors with those of a layer's experts behind each other, and a shared expert's gate as a vector."""
    found: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if expert := re.search(r"\.experts\.(\d+)\.", name):
            parts.setdefault(name.replace(expert[0], ".experts."), {})[int(expert[1])] = tensor
        else:
            found[name] = tensor[0] if name.endswith("shared_expert_gate.weight") else tensor
    return found | {name: torch.stack([held[e] for e in sorted(held)]) for name, held in parts.items()}


def gguf_name(name: str) -> str:
    module, _, part = name.rpartition(".")
    if module in OUTER:
        return f"{OUTER[module]}.{part}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{part}"


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head as a rotation of neighbours wants them: the converter's own formula."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_gguf(
    directory: Path,
    out: Path,
    kind: Kind = Kind.F32,
    *,
    change: Any = None,
    without: str = "",
    through: Any = None,
    whole_tokenizer: bool = False,
) -> Path:
    """`directory` as the file `out`, its matrices as `kind`.

    change: called with the writer before it writes. without: a tensor to leave out. through: matrices are rounded to
    this type before they are written as `kind`. whole_tokenizer: add tokenizer.json as it is, for one that cuts
    texts in a way that has no name.
    """
    config = json.loads((directory / "config.json").read_text())
    arch = ARCHITECTURES[config["architectures"][0].removesuffix("ForCausalLM")]
    writer = gguf.GGUFWriter(out, arch)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    writer.add_rope_freq_base(rope["rope_theta"])
    _scaling(writer, rope, head_dim)
    if config.get("sliding_window") and config["architectures"][0].startswith(("Mistral", "Mixtral")):
        writer.add_sliding_window(config["sliding_window"])
    _experts(writer, config)
    _tokenizer(writer, directory)
    if whole_tokenizer:
        writer.add_string("tokenizer.huggingface.json", (directory / "tokenizer.json").read_text())
    if change is not None:
        change(writer)
    for name, tensor in stacked(tensors_of(directory)).items():
        here = gguf_name(name)
        if arch == "llama" and ".attn_q." in here:
            tensor = permuted(tensor, heads)
        if arch == "llama" and ".attn_k." in here:
            tensor = permuted(tensor, kv_heads)
        if here == without:
            continue
        data = tensor.numpy()
        if through is not None:
            chosen = _possible(through, tensor)
            data = gguf.quants.dequantize(gguf.quants.quantize(data, chosen), chosen)
        chosen = _possible(kind, tensor)
        writer.add_tensor(here, gguf.quants.quantize(data, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _experts(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    total = config.get("num_local_experts") or config.get("num_experts")
    if not total:
        return
    writer.add_expert_count(total)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _possible(kind: Kind, tensor: torch.Tensor) -> Kind:
    fits = tensor.ndim >= 2 and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
    return kind if fits else Kind.F32


def _scaling(writer: gguf.GGUFWriter, rope: dict[str, Any], head_dim: int) -> None:
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    if kind == "llama3":
        plain = 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
        wave, low, high = 2 * np.pi / plain, rope["low_freq_factor"], rope["high_freq_factor"]
        blend = np.clip((rope["original_max_position_embeddings"] / wave - low) / (high - low), 0, 1)
        factors = 1 / ((1 - blend) / rope["factor"] + blend)
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))


def _tokenizer(writer: gguf.GGUFWriter, directory: Path) -> None:
    """A byte-level BPE, or a sentencepiece-like one, and the special tokens of its companion files."""
    said = json.loads((directory / "tokenizer.json").read_text())
    config = json.loads((directory / "tokenizer_config.json").read_text())
    by_id = {number: token for token, number in said["model"]["vocab"].items()}
    types = dict.fromkeys(by_id, gguf.TokenType.NORMAL)
    for added in said["added_tokens"]:
        by_id[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id[number] for number in range(len(by_id))])
    writer.add_token_types([types[number] for number in range(len(by_id))])
    merges = said["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    number_of = {text: number for number, text in by_id.items()}
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if config.get(f"{name}_token"):
            add(number_of[config[f"{name}_token"]])
    writer.add_chat_template(config["chat_template"])
