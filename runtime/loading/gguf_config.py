"""A GGUF file's metadata in the spelling of Hugging Face's JSON files, and its tensors' names in ours.

Knows: metadata keys and tensor names of the supported architectures. Must not know: torch, block formats, layers.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_experts import CLASSES, expert_fields
from branchwork.runtime.loading.gguf_file import GgufFile

ROPE_FACTORS = "rope_freqs.weight"  # Llama 3: what each rotary frequency is divided by
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_CLASSES |= {kind: name for kind, name in CLASSES.items() if kind not in _CLASSES}
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")  # their prompts begin with bos unless the file says otherwise
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
_USUAL_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")
_FLOATS = {"F32": "float32", "F16": "float16"}


def our_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; a name that is not known stays as it is."""
    block = _BLOCK.fullmatch(name)
    if block and block[2] in _INNER:
        return f"model.layers.{block[1]}.{_INNER[block[2]]}.{block[3]}"
    return _OUTER.get(name, name)


def their_name(name: str) -> str:
    """The other way round."""
    layer = _LAYER.fullmatch(name)
    if layer:
        inner = next((theirs for theirs, ours in _INNER.items() if ours == layer[2]), layer[2])
        return f"blk.{layer[1]}.{inner}.{layer[3]}"
    return next((theirs for theirs, ours in _OUTER.items() if ours == name), name)


def config_of(file: GgufFile) -> dict[str, Any]:
    """What a config.json would say. Raises LoadError (unsupported, config) naming the key."""
    kind = file.text("general.architecture")
    if kind not in _CLASSES:
        raise LoadError(
            "unsupported",
            f"{file.path}: general.architecture {kind!r} is not supported; supported: {', '.join(_CLASSES)}",
        )

    def count(key: str, default: int | None = None) -> int:
        return file.count(f"{kind}.{key}", default)

    heads, width = count("attention.head_count"), count("embedding_length")
    head_dim = count("attention.key_length", width // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if count(key, head_dim) != head_dim:
            raise LoadError(
                "unsupported", f"{file.path}: {kind}.{key}={count(key)} differs from the head size {head_dim}"
            )
    embedding = file.tensors.get("token_embd.weight")
    values: dict[str, Any] = {
        "architectures": [_CLASSES[kind]],
        "hidden_size": width,
        "intermediate_size": count("feed_forward_length"),
        "num_hidden_layers": count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": count("context_length"),
        "rms_norm_eps": _short(file.number(f"{kind}.attention.layer_norm_rms_epsilon")),
        "vocab_size": embedding.shape[0] if embedding else count("vocab_size"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "torch_dtype": _stored(file),
        "rope_parameters": _rope(file, kind, head_dim),
        "eos_token_id": _ends(file),
    }
    values |= expert_fields(file, kind)
    window = count("attention.sliding_window", 0)
    if window and kind == "llama":
        values["sliding_window"] = window
        if values["architectures"] == ["LlamaForCausalLM"]:
            values["architectures"] = ["MistralForCausalLM"]
    elif window:
        values |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    return values


def tokenizer_config_of(file: GgufFile) -> dict[str, Any]:
    """What a tokenizer_config.json would say: special tokens, whether prompts begin with bos, chat template."""
    tokens = file.listed("tokenizer.ggml.tokens")
    values: dict[str, Any] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(number, int) and number < len(tokens):
            values[f"{name}_token"] = tokens[number]
    said = file.metadata.get("tokenizer.ggml.add_bos_token")
    usual = file.text("tokenizer.ggml.model") == "llama" or file.text("tokenizer.ggml.pre") in LLAMA3
    values["add_bos_token"] = usual if said is None else bool(said)
    template = file.metadata.get("tokenizer.chat_template")
    return values | ({"chat_template": template} if isinstance(template, str) else {})


def _ends(file: GgufFile) -> list[int]:
    """Ids that end an answer or a turn: those named by id, and the usual ends among the control tokens."""
    named = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    tokens, types = file.listed("tokenizer.ggml.tokens"), file.listed("tokenizer.ggml.token_type")
    usual = [tokens.index(text) for text in _USUAL_ENDS if text in tokens]
    usual = [number for number in usual if types[number : number + 1] == [CONTROL]]
    return sorted({number for number in (*named, *usual) if isinstance(number, int) and number < len(tokens)})


def _rope(file: GgufFile, kind: str, head_dim: int) -> dict[str, Any]:
    at = f"{kind}.rope."
    values: dict[str, Any] = {"rope_theta": _short(file.number(f"{at}freq_base", 10000.0))}
    if ROPE_FACTORS in file.tensors:
        factors = file.tensors[ROPE_FACTORS]
        if factors.kind != "F32" or factors.shape != (head_dim // 2,):
            raise LoadError(
                "unsupported",
                f"{file.path}: tensor {ROPE_FACTORS} must be F32 [{head_dim // 2}], it is {factors.kind} "
                f"{list(factors.shape)}",
            )
        return {**values, "rope_type": "factors", "factors": factors.data.view(np.float32).tolist()}
    scaling = file.text(f"{at}scaling.type", "linear" if f"{at}scale_linear" in file.metadata else "none")
    if scaling == "none":
        return values
    factor = file.number(f"{at}scaling.factor", file.number(f"{at}scale_linear", 1.0))
    if scaling == "linear":
        return {**values, "rope_type": "linear", "factor": factor} if factor != 1.0 else values
    if scaling != "yarn":
        raise LoadError("unsupported", f"{file.path}: {at}scaling.type {scaling!r} is not supported (linear, yarn are)")
    context = file.count(f"{kind}.context_length")
    values |= {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": file.count(f"{at}scaling.original_context_length", context),
    }
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if f"{at}scaling.{theirs}" in file.metadata:
            values[ours] = file.number(f"{at}scaling.{theirs}")
    if f"{at}scaling.attn_factor" in file.metadata:  # on top of yarn's own factor there, instead of it here
        own = 0.1 * float(np.log(factor)) + 1.0 if factor > 1 else 1.0
        values["attention_factor"] = file.number(f"{at}scaling.attn_factor") * own
    return values


def _stored(file: GgufFile) -> str:
    """The dtype that the file's matrices ask for: float32 or float16 where all of them are, else bfloat16."""
    kinds = {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) == 2}
    return _FLOATS.get(kinds.pop(), "bfloat16") if len(kinds) == 1 else "bfloat16"


def _short(value: float) -> float:
    """The shortest decimal number with the same float32: metadata holds 1e-5 as 9.99999974e-06."""
    return float(str(np.float32(value)))
