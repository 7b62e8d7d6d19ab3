"""Every token's bytes, end tokens and chat template come out of the files as the model means them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.tokenizer import (
    adds_bos,
    chat_template,
    eos_ids,
    load_tokenizer,
    special_texts,
    token_bytes,
)
from tests.checkpoints import VOCAB, checkpoint, copy_of, edit_config

TEXTS = ["the lazy fox", " Zürich — 東京 🦊\n\t", "a\x00b", "", "the<|role|>dog"]


def sentencepiece(where: Path, **config: object) -> Path:
    """A Llama-2-like vocabulary: ▁ for a space, <0xNN> for bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("a", "b")], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(where / "tokenizer.json"))
    (where / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", **config}))
    return where


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_a_byte_level_vocabulary_join_to_the_text(text: str) -> None:
    directory = checkpoint("llama")
    table, tokenizer = token_bytes(directory), load_tokenizer(directory)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(table[i] for i in ids) == text.replace("<|role|>", "").encode()


def test_bytes_of_a_sentencepiece_vocabulary_join_to_the_text(tmp_path: Path) -> None:
    directory = sentencepiece(tmp_path)
    table, tokenizer = token_bytes(directory), load_tokenizer(directory)
    ids = tokenizer.encode(" ab a é", add_special_tokens=False).ids
    assert b"".join(table[i] for i in ids).decode().lstrip() == "ab a é"
    assert table[3 + 0xC3] == b"\xc3"
    assert table[1] == b""


def test_special_tokens_have_no_bytes_and_ordinary_added_ones_have(tmp_path: Path) -> None:
    directory = copy_of("llama", tmp_path)
    tokenizer = load_tokenizer(directory)
    tokenizer.add_tokens([AddedToken("<think>", special=False), "é!"])
    tokenizer.save(str(directory / "tokenizer.json"))
    table = token_bytes(directory)
    assert table[:3] == [b"", b"", b""]
    added = tokenizer.get_vocab(with_added_tokens=True)
    assert table[added["<think>"]] == b"<think>"
    assert table[added["é!"]] == "é!".encode()


def test_padded_vocabularies_have_an_entry_for_every_row_of_the_head(tmp_path: Path) -> None:
    directory = copy_of("llama", tmp_path)
    edit_config(directory, vocab_size=VOCAB + 64)
    table = token_bytes(directory)
    assert len(table) == VOCAB + 64
    assert table[-1] == b""


def test_end_tokens_of_all_files_count(tmp_path: Path) -> None:
    directory = copy_of("llama", tmp_path)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    edit_config(directory, eos_token_id=7)
    assert eos_ids(directory) == (1, 2, 7)
    (directory / "generation_config.json").unlink()
    edit_config(directory, eos_token_id=None)
    assert eos_ids(directory) == (1,)


def test_special_texts_may_be_strings_or_objects(tmp_path: Path) -> None:
    directory = copy_of("llama", tmp_path)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": None, "eos_token": {"content": "</s>", "special": True}})
    )
    assert special_texts(directory) == {"eos_token": "</s>"}


def test_bos_is_wanted_when_the_files_say_so(tmp_path: Path) -> None:
    assert not adds_bos(checkpoint("llama"))
    assert adds_bos(sentencepiece(tmp_path))
    assert not adds_bos(sentencepiece(tmp_path, add_bos_token=False))


def test_the_template_file_wins_over_the_one_in_the_config(tmp_path: Path) -> None:
    directory = copy_of("llama", tmp_path)
    inline = chat_template(directory)
    assert inline is not None
    assert inline.startswith("{{ bos_token }}")
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert chat_template(directory) == "plain"
    (directory / "chat_template.jinja").write_text("from the file")
    assert chat_template(directory) == "from the file"


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(LoadError, match="save it again with transformers"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    with pytest.raises(LoadError, match="cannot be read") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "tokenizer"


def test_a_vocabulary_whose_bytes_are_unknown_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.CTC()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(LoadError, match="neither byte-level, sentencepiece-like nor WordPiece"):
        token_bytes(tmp_path)
