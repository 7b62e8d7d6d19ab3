"""Models for benchmarks/peers.py: a random Llama with a trained tokenizer, and any model directory as a GGUF file.

Knows: safetensors, tokenizers, the gguf package. Must not know: servers, workloads.
Everything made is kept under one cache folder and made once: the random model, and a GGUF file for each model and bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.sapling.corpus import SKILLS, held_out

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "branchwork" / "peers"
RANDOM = "random-450m"
KINDS = {
    "bf16": gguf.GGMLQuantizationType.BF16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
    "int4": gguf.GGMLQuantizationType.Q4_0,
}
BITS = tuple(KINDS)
_FILE_TYPES = {
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "int8": gguf.LlamaFileType.MOSTLY_Q8_0,
    "int4": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Size(NamedTuple):
    """Shape of a random Llama, its output tied to its embedding."""

    hidden: int = 1024
    layers: int = 24
    heads: int = 16
    kv_heads: int = 4
    ffn: int = 4864
    vocab: int = 32_000
    context: int = 4096


def model_directory(name: str) -> Path:
    """The safetensors directory of `random-450m` (made if it is not there), of sapling, or of a directory."""
    if name != RANDOM:
        return find_model(name)
    directory = CACHE / RANDOM
    if not (directory / "config.json").is_file():
        write_random(directory, Size())
    return directory


def gguf_file(directory: Path, bits: str) -> Path:
    """The model as GGUF with its matrices in `bits` (bf16, int8 = Q8_0, int4 = Q4_0) and its norms in float32.

    Made once for each state of the directory's weights. Raises ValueError for a family or a tokenizer that llama.cpp
    would not read from it.
    """
    weights = sorted(directory.glob("*.safetensors"))
    state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
    mark = hashlib.sha256(repr((str(directory.resolve()), state)).encode()).hexdigest()[:12]
    path = CACHE / "gguf" / f"{directory.name}-{mark}-{bits}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}.part")
        _write_gguf(directory, half, bits)
        half.rename(path)
    return path


def read_once(*paths: Path) -> None:
    """Read the files (all weights of a directory), so that they lie in the page cache."""
    block = bytearray(1 << 24)
    for path in paths:
        for file in path.glob("*.safetensors") if path.is_dir() else [path]:
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(block):
                    pass


# --- the random model


def write_random(directory: Path, size: Size) -> None:
    """A Llama of random bfloat16 weights, scaled so that its states keep their size and its logits are not flat."""
    directory.mkdir(parents=True, exist_ok=True)
    _train_tokenizer(size.vocab).save(str(directory / "tokenizer.json"))
    head = size.hidden // size.heads
    generator = torch.Generator().manual_seed(450)

    def normal(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        weight = torch.randn(rows, columns, generator=generator) * (scale / columns**0.5)
        return weight.to(torch.bfloat16)

    # a tied output sees normed states: 3 / sqrt(hidden) gives logits with a deviation of about 3
    tensors = {"model.embed_tokens.weight": normal(size.vocab, size.hidden, 3.0)}
    for layer in range(size.layers):
        at = f"model.layers.{layer}."
        shapes = {
            "self_attn.q_proj": (size.heads * head, size.hidden),
            "self_attn.k_proj": (size.kv_heads * head, size.hidden),
            "self_attn.v_proj": (size.kv_heads * head, size.hidden),
            "self_attn.o_proj": (size.hidden, size.heads * head),
            "mlp.gate_proj": (size.ffn, size.hidden),
            "mlp.up_proj": (size.ffn, size.hidden),
            "mlp.down_proj": (size.hidden, size.ffn),
        }
        tensors |= {f"{at}{name}.weight": normal(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = torch.ones(size.hidden, dtype=torch.bfloat16)
    tensors["model.norm.weight"] = torch.ones(size.hidden, dtype=torch.bfloat16)
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})
    names = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": size.context,
        "chat_template": _CHATML,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(names, indent=2), encoding="utf-8")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.ffn,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": head,
        "vocab_size": size.vocab,
        "max_position_embeddings": size.context,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")  # last: it marks the end


def _train_tokenizer(vocab: int) -> Tokenizer:
    """A byte-level BPE with GPT-2's splits, trained on English of sapling's corpus and on made-up words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    missing = vocab - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"<|unused{n}|>", special=True) for n in range(missing)])
    return tokenizer


def _training_text() -> Iterator[str]:
    for skill in SKILLS:
        yield from (case.prompt for case in held_out(skill, 60))
    rng = random.Random(450)
    syllables = ["".join((a, b, c)) for a in "bcdfghklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "t")]
    words = ["".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3)))) for _ in range(60_000)]
    ranks = [1 / (rank + 10) for rank in range(len(words))]
    for _ in range(6_000):
        yield " ".join(rng.choices(words, ranks, k=60)).capitalize() + "."


# --- GGUF


def _write_gguf(directory: Path, path: Path, bits: str) -> None:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    family = config.get("model_type")
    if family not in _ARCHITECTURES:
        raise ValueError(f"{directory}: model_type {family!r} is not one of {', '.join(_ARCHITECTURES)}")
    architecture = _ARCHITECTURES[family]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _write_shape(writer, config)
    writer.add_file_type(_FILE_TYPES[bits])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_tokenizer(writer, directory, config)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    paired = architecture is gguf.MODEL_ARCH.LLAMA  # its rotary pairs are neighbours there, halves of a head here
    for name, tensor in _tensors(directory):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise ValueError(f"{directory}: GGUF has no name for tensor {name!r}")
        values = tensor.float().numpy()
        if paired and (heads := re.search(r"\.(q|k)_proj\.", name)):
            values = _neighbours(values, config[_HEADS[heads[1]]])
        kind = KINDS[bits] if values.ndim == 2 and not name.endswith("bias") else gguf.GGMLQuantizationType.F32
        if values.shape[-1] % 32 and kind.name.startswith("Q"):
            kind = gguf.GGMLQuantizationType.BF16  # a row of a quantized matrix is whole blocks of 32
        data = values if kind is gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(values, kind)
        writer.add_tensor(new, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_HEADS = {"q": "num_attention_heads", "k": "num_key_value_heads"}


def _neighbours(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head reordered from (first half, second half) to pairs."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(str(file), "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (the file's own method)
                yield name, weights.get_tensor(name)


def _write_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_name(config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.get("rope_theta") or rope.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _write_tokenizer(writer: gguf.GGUFWriter, directory: Path, config: dict[str, Any]) -> None:
    text = (directory / "tokenizer.json").read_text(encoding="utf-8")
    said = json.loads(text)
    if said["model"]["type"] != "BPE" or '"ByteLevel"' not in text:
        raise ValueError(f"{directory}/tokenizer.json is no byte-level BPE; this script writes no other kind to GGUF")
    tokens = [f"[PAD{n}]" for n in range(config["vocab_size"])]
    kinds = [int(gguf.TokenType.UNUSED)] * len(tokens)
    for token, number in said["model"]["vocab"].items():
        tokens[number], kinds[number] = token, int(gguf.TokenType.NORMAL)
    for added in said["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splits(json.dumps(said["pre_tokenizer"])))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in said["model"]["merges"]])
    writer.add_add_bos_token(False)
    eos = config.get("eos_token_id")
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    if isinstance(config.get("pad_token_id"), int):
        writer.add_pad_token_id(config["pad_token_id"])
    about = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    own = directory / "chat_template.jinja"
    template = own.read_text(encoding="utf-8") if own.is_file() else about.get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(template)


def _splits(pre_tokenizer: str) -> str:
    """llama.cpp's name of the splits nearest to a tokenizer's own."""
    if r"\\p{N}{1,3}" in pre_tokenizer:
        return "llama-bpe"
    if r"\\p{N}|" in pre_tokenizer:
        return "qwen2"
    return "smollm" if '"Digits"' in pre_tokenizer else "gpt-2"
