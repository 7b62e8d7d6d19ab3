"""Texts that are to become vectors: written as the model's own tokenizer writes them, and cut inside its frame."""

from __future__ import annotations

from pathlib import Path

from encoders import encoder

from branchwork.runtime.gateway.text import Texts


def test_a_text_stands_between_the_special_tokens_that_its_tokenizer_adds(tmp_path: Path) -> None:
    texts = Texts(encoder("bert", tmp_path))
    assert texts.encode_whole("The QUICK brown fox jumps") == [2, 4, 5, 6, 7, 8, 9, 3]
    assert texts.encode_whole("") == [2, 3]


def test_a_text_is_cut_and_keeps_what_ends_it(tmp_path: Path) -> None:
    texts = Texts(encoder("bert", tmp_path))
    assert texts.encode_whole("the quick brown fox", 4) == [2, 4, 5, 3]
    assert texts.encode_whole("the quick", 4) == [2, 4, 5, 3]


def test_names_of_special_tokens_in_a_text_are_ordinary_text(tmp_path: Path) -> None:
    ids = Texts(encoder("bert", tmp_path)).encode_whole("the [SEP] fox")
    assert ids[:2] == [2, 4] and ids[-2:] == [7, 3]
    assert 3 not in ids[:-1]


def test_word_pieces_read_as_the_words_they_make(tmp_path: Path) -> None:
    texts = Texts(encoder("bert", tmp_path))
    assert texts.text_of(texts.encode_whole("the fox jumped")) == "[CLS] the fox jumped[SEP]"
