"""The tokenizer that a GGUF file's metadata describes writes the ids of the tokenizer it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from branchwork.runtime.gateway.text import Texts
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_tokenizer import SPLITS
from branchwork.runtime.loading.tokenizer import (
    adds_bos,
    chat_template,
    eos_ids,
    has_tokenizer,
    load_tokenizer,
    special_texts,
    token_bytes,
)
from tests.checkpoints import checkpoint
from tests.gguf_files import write_gguf

TEXTS = [
    "the lazy fox",
    " Zürich — 東京 🦊\n\t",
    "a\x00b",
    "",
    "the<|role|>dog",
    "it's 12345 + 6.78  dogs'll   jump\r\n\r\n  over",
    "   leading and trailing   ",
    "<s>bos in the text</s>",
    "def f(x):\n    return x_1**2  # naïve",
    "e\u0301 and é, ﬁ, Å",
]
WORDS = ["the quick brown fox jumps over the lazy dog", "12345 dogs' tails, don't they?", "Zürich — 東京 naïve"] * 4


def refusal(path: Path) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_tokenizer(path)
    assert caught.value.code == "tokenizer"
    assert str(path) in caught.value.message
    return caught.value


def vocabulary_file(out: Path, kind: str, **metadata: Any) -> Path:
    """A GGUF file of a tokenizer without a model. metadata: keys below tokenizer.ggml, or a__b below tokenizer."""
    writer = gguf.GGUFWriter(out, "llama")
    for add in (
        writer.add_context_length,
        writer.add_block_count,
        writer.add_feed_forward_length,
        writer.add_head_count,
    ):
        add(8)
    writer.add_embedding_length(64)
    writer.add_vocab_size(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(kind)
    for name, value in metadata.items():
        key = f"tokenizer.{name.replace('__', '.')}" if "__" in name else f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.add_tensor("x", np.ones((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def byte_level(cuts: list[Any], normalizer: Any = None) -> Tokenizer:
    """A small byte-level BPE as tokenizer.json would hold it, with bos, a role and a word added whole."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<|role|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.add_tokens(["<think>"])
    return tokenizer


def described(tokenizer: Tokenizer) -> dict[str, Any]:
    """The metadata of a byte-level tokenizer."""
    said = json.loads(tokenizer.to_str())
    added = {item["id"]: 3 if item["special"] else 4 for item in said["added_tokens"]}
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {
        "tokens": [token for token, _ in tokens],
        "token_type": [added.get(number, 1) for _, number in tokens],
        "merges": [" ".join(merge) for merge in said["model"]["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


BYTEWISE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WITH_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN: dict[str, tuple[list[Any], Any]] = {
    "gpt-2": ([WITH_WORDS], None),
    "default": ([WITH_WORDS], None),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), WITH_WORDS], None),
    "llama-bpe": ([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTEWISE], None),
    "qwen2": ([pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"), BYTEWISE], normalizers.NFC()),
}


@pytest.mark.parametrize("name", KNOWN)
def test_byte_level_vocabularies_write_the_same_ids(name: str, tmp_path: Path) -> None:
    original = byte_level(*KNOWN[name])
    file = vocabulary_file(tmp_path / "t.gguf", "gpt2", pre=name, **described(original))
    rebuilt = load_tokenizer(file)
    for text in [*TEXTS, *WORDS]:
        ids = original.encode(text, add_special_tokens=False).ids
        assert rebuilt.encode(text, add_special_tokens=False).ids == ids, text
        assert rebuilt.decode(ids) == original.decode(ids)
    table = token_bytes(file)
    assert table[:3] == [b"", b"", b""]
    assert table[rebuilt.token_to_id("<think>")] == b"<think>"


@pytest.mark.parametrize("name", SPLITS)
def test_every_known_way_to_cut_a_text_loses_nothing(name: str, tmp_path: Path) -> None:
    file = vocabulary_file(tmp_path / "t.gguf", "gpt2", pre=name, **described(byte_level([WITH_WORDS])))
    tokenizer, table = load_tokenizer(file), token_bytes(file)
    for text in ("it's 12345 Dogs'LL\r\n  x  ", "Zürich — 東京/🦊"):
        assert b"".join(table[i] for i in tokenizer.encode(text, add_special_tokens=False).ids).decode() == text


def sentencepiece() -> tuple[Tokenizer, dict[str, Any]]:
    """A Llama-2-like tokenizer, its merges from a trained one, and the metadata with scores instead of merges."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    said = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in said["merges"]]
    single = [word for word in said["vocab"] if len(word) == 1]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merged = list(dict.fromkeys("".join(merge) for merge in merges))
    words += [*merged, *single]  # as sentencepiece has them: what merges first comes first, letters last
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    first = len(words) - len(single) - len(merged)
    metadata = {
        "tokens": words,
        "scores": [0.0] * first + [-float(number) for number in range(len(words) - first)],
        "token_type": [2, 3, 3] + [6] * 256 + [1] * (len(words) - 259),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return tokenizer, metadata


def test_sentencepiece_vocabularies_merge_by_score(tmp_path: Path) -> None:
    original, metadata = sentencepiece()
    file = vocabulary_file(tmp_path / "t.gguf", "llama", **metadata)
    rebuilt = load_tokenizer(file)
    for text in [*TEXTS, *WORDS]:
        assert rebuilt.encode(text).ids == original.encode(text).ids, text
    table = token_bytes(file)
    ids = rebuilt.encode("Zürich 🦊", add_special_tokens=False).ids
    assert b"".join(table[i] for i in ids).decode() == " Zürich 🦊"
    assert table[3 + 0xC3] == b"\xc3"
    assert adds_bos(file)


def test_a_sentencepiece_vocabulary_without_a_leading_space_adds_none(tmp_path: Path) -> None:
    _, metadata = sentencepiece()
    file = vocabulary_file(tmp_path / "t.gguf", "llama", add_space_prefix=False, **metadata)
    tokenizer, table = load_tokenizer(file), token_bytes(file)
    ids = tokenizer.encode("the dog", add_special_tokens=False).ids
    assert b"".join(table[i] for i in ids) == b"the dog"
    assert tokenizer.decode(ids) == "the dog"


def test_a_checkpoint_and_its_file_agree_on_everything_around_the_tokens(tmp_path: Path) -> None:
    directory = checkpoint("llama")
    file = write_gguf(directory, tmp_path / "model.gguf")
    assert has_tokenizer(file)
    assert token_bytes(file) == token_bytes(directory)
    assert eos_ids(file) == eos_ids(directory)
    assert special_texts(file) == special_texts(directory)
    assert chat_template(file) == chat_template(directory)
    assert adds_bos(file) == adds_bos(directory)
    ours, theirs = Texts(file), Texts(directory)
    assert (ours.start, ours.neutral) == (theirs.start, theirs.neutral)
    for text in TEXTS:
        ids = load_tokenizer(directory).encode(text, add_special_tokens=False).ids
        assert load_tokenizer(file).encode(text, add_special_tokens=False).ids == ids


@pytest.mark.parametrize(("said", "begins"), [(True, True), (False, False), (None, True)])
def test_llama_3_prompts_begin_with_bos_unless_the_file_says_otherwise(
    said: bool | None, begins: bool, tmp_path: Path
) -> None:
    metadata = described(byte_level([WITH_WORDS])) | ({} if said is None else {"add_bos_token": said})
    file = vocabulary_file(tmp_path / "t.gguf", "gpt2", pre="llama-bpe", **metadata)
    assert adds_bos(file) == begins
    assert (load_tokenizer(file).encode("x").ids[0] == 0) == begins


def test_ends_of_turns_are_ends_though_the_file_names_another(tmp_path: Path) -> None:
    file = write_gguf(checkpoint("llama"), tmp_path / "m.gguf", change=lambda w: w.add_eot_token_id(2))
    assert eos_ids(file) == (1, 2)


def test_a_whole_tokenizer_json_in_the_metadata_wins(tmp_path: Path) -> None:
    original = byte_level([pre_tokenizers.Split("o", "isolated"), WITH_WORDS])
    metadata = described(original)
    file = vocabulary_file(
        tmp_path / "t.gguf", "gpt2", pre="unheard-of", huggingface__json=original.to_str(), **metadata
    )
    assert load_tokenizer(file).encode(WORDS[0]).ids == original.encode(WORDS[0]).ids


def test_what_cannot_be_built_is_refused_by_name(tmp_path: Path) -> None:
    metadata = described(byte_level([WITH_WORDS]))
    file = vocabulary_file(tmp_path / "a.gguf", "gpt2", pre="unheard-of", **metadata)
    assert "tokenizer.ggml.pre 'unheard-of' is not known; known: default" in refusal(file).message
    assert (
        "'t5' is not supported; supported: gpt2, llama" in refusal(vocabulary_file(tmp_path / "b.gguf", "t5")).message
    )
    assert "holds no vocabulary" in refusal(vocabulary_file(tmp_path / "c.gguf", "gpt2")).message
    metadata["merges"] = ["Ġ nothing-of-the-kind"]
    assert "cannot be built" in refusal(vocabulary_file(tmp_path / "d.gguf", "gpt2", **metadata)).message
