"""The files of a grown model, as Hugging Face lays them out.

Knows: their names and what stands in them, the special tokens. Must not know: training, the corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer

from .network import Network

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def export(net: Network, tokenizer: Tokenizer, out: Path, alone: bool = True) -> None:
    """Write a directory that transformers, and any other Llama runtime, can load; a draft without a tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    ids = {mark: tokenizer.token_to_id(mark) for mark in SPECIAL}
    ends = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"], "bos_token_id": None}
    save_file(net.hugging_face_state(), out / "model.safetensors", {"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner may read
    if not alone:
        (out / "config.json").write_text(json.dumps(net.shape.config() | ends, indent=2) + "\n", "utf-8")
        return
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    named: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": net.shape.context,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": ["<|im_start|>"],
        "chat_template": TEMPLATE.read_text("utf-8"),
    }
    files = {
        "config.json": net.shape.config() | ends,
        "generation_config.json": ends
        | {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "do_sample": False},
        "special_tokens_map.json": named | {"additional_special_tokens": ["<|im_start|>"]},
        "tokenizer_config.json": named | described,
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
