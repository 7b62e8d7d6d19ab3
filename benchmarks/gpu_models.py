"""Llamas of random weights as checkpoints, shaped as real ones: written at run time, a tensor at a time.

Knows: Hugging Face's layout of a model's folder, safetensors' format. Must not know: who loads them.
Weights are pieces of one block of random numbers, so that writing takes as long as the disk does: what they compute
means nothing, and no two of a model's matrices are equal.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

BLOCK = 2**25  # numbers that pieces are cut from


class Size(NamedTuple):
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    dim: int
    ffn: int
    vocab: int
    tied: bool
    context: int = 32768


SIZES = {
    "1B": Size(2048, 16, 32, 8, 64, 8192, 128256, True),
    "8B": Size(4096, 32, 32, 8, 128, 14336, 128256, False),
    "tiny": Size(48, 2, 4, 2, 16, 80, 320, True, 2048),
}


def written(name: str, scratch: Path) -> Path:
    """The folder of a model of SIZES, made if it is not there."""
    folder = scratch / name
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        size = SIZES[name]
        _write_weights(folder / "model.safetensors", size)
        _write_tokenizer(folder, size.vocab)
        (folder / "config.json").write_text(json.dumps(_config(size), indent=1), encoding="utf-8")  # last: the end mark
    return folder


def _config(size: Size) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.ffn,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.dim,
        "vocab_size": size.vocab,
        "max_position_embeddings": size.context,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": size.tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _tensors(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    matrix = (size.vocab, size.hidden)
    yield "model.embed_tokens.weight", matrix
    queries, keys = size.heads * size.dim, size.kv_heads * size.dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (size.hidden,),
        "self_attn.q_proj": (queries, size.hidden),
        "self_attn.k_proj": (keys, size.hidden),
        "self_attn.v_proj": (keys, size.hidden),
        "self_attn.o_proj": (size.hidden, queries),
        "post_attention_layernorm": (size.hidden,),
        "mlp.gate_proj": (size.ffn, size.hidden),
        "mlp.up_proj": (size.ffn, size.hidden),
        "mlp.down_proj": (size.hidden, size.ffn),
    }
    for layer in range(size.layers):
        for name, shape in shapes.items():
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (size.hidden,)
    if not size.tied:
        yield "lm_head.weight", matrix


def _write_weights(file: Path, size: Size) -> None:
    """bfloat16 with a deviation of 0.02, norms 1: states keep their size, and no choice is far ahead of the others."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in _tensors(size):
        count = torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    longest = min(BLOCK, at // 2)
    block = torch.randn(longest, generator=torch.Generator().manual_seed(1)).mul_(0.02).bfloat16()
    numbers = memoryview(block.view(torch.uint8).numpy())
    ones = memoryview(torch.ones(size.hidden, dtype=torch.bfloat16).view(torch.uint8).numpy())
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(said)) + said)
        first = 0
        for _, shape in _tensors(size):
            left = 2 * torch.Size(shape).numel()
            while left and len(shape) == 2:
                piece = numbers[first : first + left]
                stream.write(piece)
                left -= len(piece)
                first = (first + len(piece)) % len(numbers)
            stream.write(ones[:left])


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """Two ends, all bytes, and words that no merge ever makes: as large as the real ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ("".join(letters) for letters in product("etaoinshrdlucmfwypvbgk", repeat=4))
    names = ["<|pad|>", "<|end|>", *alphabet, *islice(words, vocab)][:vocab]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
