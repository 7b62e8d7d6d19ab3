"""Tiny random checkpoints of every family, written by transformers, made once per test session.

Knows: transformers, tokenizers. Must not know: the runtime under test.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

VOCAB = 320
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,  # large enough that greedy choices are far from ties
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 4.0,
}

_EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 24}

# name -> (transformers config class, what differs from _SIZES)
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("LlamaConfig", {"head_dim": 20, "num_attention_heads": 4}),
    "llama-rope-llama3": ("LlamaConfig", {"rope_parameters": _LLAMA3}),
    "llama-rope-linear": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}},
    ),
    "llama-rope-dynamic": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}},
    ),
    "llama-rope-yarn": ("LlamaConfig", {"rope_parameters": _YARN}),
    "llama-sharded": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "mistral-full": ("MistralConfig", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 8}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {**_EXPERTS, "head_dim": 16, "mlp_only_layers": [1], "norm_topk_prob": True},
    ),
    "qwen2-moe": ("Qwen2MoeConfig", {**_EXPERTS, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2}),
}


@cache
def checkpoint(name: str) -> Path:
    """The directory of a checkpoint; do not write to it (copy_of gives one to break)."""
    config_class, changes = CHECKPOINTS[name]
    directory = _root() / name
    config = getattr(transformers, config_class)(**{**_SIZES, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(len(name))
    model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for parameter in model.parameters():  # biases and norms start as constants, which would hide that they are ignored
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, -0.3, 1.2)
    model.save_pretrained(directory, max_shard_size="40KB" if name.endswith("sharded") else "1GB")
    write_tokenizer(directory)
    return directory


def wide(where: Path) -> Path:
    """A Mixtral below `where` whose matrices have rows of whole blocks of 32."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.1}
    config = transformers.MixtralConfig(**{**_SIZES, "num_attention_heads": 4, "num_local_experts": 8, **sizes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(where / "wide")
    write_tokenizer(where / "wide")
    return where / "wide"


def copy_of(name: str, where: Path) -> Path:
    """A private copy of a checkpoint below `where`."""
    return Path(shutil.copytree(checkpoint(name), where / name))


@cache
def reference(name: str) -> Any:
    """The same checkpoint as transformers runs it, float32."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint(name), dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def edit_config(directory: Path, **changes: object) -> None:
    """Set fields of a private copy's config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE of VOCAB tokens with bos, eos and one special role token, as Hugging Face lays it out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>", "<|role|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog, then another one there"] * 4, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))


@cache
def _root() -> Path:
    root = tempfile.mkdtemp(prefix="branchwork-checkpoints-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Path(root)
