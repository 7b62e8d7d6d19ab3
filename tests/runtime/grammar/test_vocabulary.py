"""Vocabularies from tables and files, and the trie over their tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from branchwork.runtime.grammar.trie import Trie
from branchwork.runtime.grammar.vocabulary import Vocabulary, encoder, pack, unpack
from branchwork.runtime.loading.errors import LoadError
from tests.runtime.grammar.vocabularies import SHARED, SMALL, gpt2, real

TOKENS = st.lists(st.binary(max_size=5) | st.sampled_from([b"ab", b"abc", b"b", b""]), max_size=40)


def test_ends_and_gaps_are_never_text() -> None:
    vocabulary = Vocabulary.of([b"a", b"</s>", b"", b"b"], [1], lambda data: [], 40)
    assert vocabulary.tokens[:5] == [b"a", b"", b"", b"b", b""] and len(vocabulary.tokens) == vocabulary.size == 40
    assert vocabulary.words == 2 and vocabulary.eos == (1,)
    assert unpack(vocabulary.ordinary_mask).tolist() == [0, 3]
    assert unpack(vocabulary.eos_mask).tolist() == [1]
    assert unpack(vocabulary.specials_mask).tolist() == [1, 2, *range(4, 40)]


@given(st.sets(st.integers(0, 99)))
def test_mask_words_have_the_bits_of_their_ids(ids: set[int]) -> None:
    words = pack(sorted(ids), 4)
    assert words.dtype == "int32" and words.shape == (4,)
    assert {i for i in range(128) if int(words[i // 32]) >> (i % 32) & 1} == ids
    assert unpack(words).tolist() == sorted(ids)


def test_the_fingerprint_tells_vocabularies_apart() -> None:
    def named(tokens: list[bytes], eos: list[int], size: int | None = None) -> str:
        return Vocabulary.of(tokens, eos, lambda data: [], size).fingerprint

    base = named([b"a", b"bc", b""], [2])
    assert base == named([b"a", b"bc", b""], [2, 2])
    others = [named([b"ab", b"c", b""], [2]), named([b"a", b"bc", b""], []), named([b"a", b"bc", b""], [2], 9)]
    assert len({base, *others}) == 4


def test_a_tokenizer_file_alone_ends_with_its_usual_end_token() -> None:
    vocabulary = gpt2()
    assert vocabulary.size == 50257 and vocabulary.eos == (50256,)
    assert vocabulary.tokens[50256] == b"" and all(vocabulary.tokens[:50256])
    text = "Grüße, 北京 <|endoftext|>\n  x".encode()
    assert b"".join(vocabulary.tokens[token] for token in vocabulary.encode(text)) == text  # specials are plain text
    with pytest.raises(UnicodeDecodeError):
        vocabulary.encode(b"\xff")


def test_a_folder_names_its_end_tokens_and_its_padded_size(tmp_path: Path) -> None:
    gpt2()  # skips without the file
    (tmp_path / "tokenizer.json").write_bytes((SHARED / "gpt2.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 50304, "eos_token_id": [50256, 7]}))
    vocabulary = Vocabulary.from_file(tmp_path)
    assert (vocabulary.size, vocabulary.eos, vocabulary.tokens[7]) == (50304, (7, 50256), b"")
    assert vocabulary.tokens[:7] == gpt2().tokens[:7]


def test_qwen2_has_both_of_its_ends() -> None:
    vocabulary = real("qwen2")
    assert vocabulary.eos == (151643, 151645)
    assert [vocabulary.tokens[end] for end in vocabulary.eos] == [b"", b""]


def test_what_is_no_tokenizer_is_a_load_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(LoadError):
        Vocabulary.from_file(tmp_path / "x.json")
    with pytest.raises(LoadError):
        Vocabulary.from_file(tmp_path)


def test_text_that_continues_gets_no_space_in_a_sentencepiece_vocabulary() -> None:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    assert [pieces[i] for i in tokenizer.encode("ab").ids] == ["▁ab"]
    encode = encoder(tokenizer)
    for text, expected in [
        ("ab", ["ab"]),
        (" ab", ["▁ab"]),
        ("aa b", ["a", "a", "▁", "b"]),
        ("é", ["<0xC3>", "<0xA9>"]),
    ]:
        assert [pieces[i] for i in encode(text.encode())] == expected
    assert encode(b"") == []


def test_importing_it_does_not_import_torch() -> None:
    code = (
        "import sys, branchwork.runtime.grammar.dfa, branchwork.runtime.grammar.frontend; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


# --- the trie


@given(TOKENS)
def test_the_trie_has_every_token_at_the_end_of_its_path(tokens: list[bytes]) -> None:
    trie = Trie(tokens)
    found: dict[bytes, int] = {}
    path: list[int] = []
    for j, (skip, token, depth, byte, _) in enumerate(trie.nodes.tolist()):
        path = [*path[: depth - 1], byte]
        assert len(path) == depth
        if token >= 0:
            found[bytes(path)] = token
        inside = trie.nodes["depth"][j + 1 : skip]
        assert (inside > depth).all() and (skip == len(trie.nodes) or trie.nodes["depth"][skip] <= depth)
    assert found == {token: tokens.index(token) for token in set(tokens) - {b""}}
    assert trie.longest == max(map(len, tokens), default=0)
    twins = {(tokens.index(token), i) for i, token in enumerate(tokens) if token and tokens.index(token) != i}
    assert set(map(tuple, trie.twins.tolist())) == twins


@given(TOKENS, st.binary(max_size=3) | st.sampled_from([b"a", b"ab", b"abc"]))
def test_find_gives_the_tokens_that_properly_extend_a_prefix(tokens: list[bytes], prefix: bytes) -> None:
    trie = Trie(tokens)
    first, behind = trie.find(prefix)
    ids = [token for token in trie.nodes["token"][first:behind].tolist() if token >= 0]
    assert {tokens[i] for i in ids} == {token for token in tokens if token.startswith(prefix) and token != prefix}


def test_the_small_vocabulary_covers_what_the_other_tests_rely_on() -> None:
    assert set(SMALL.tokens[:256]) == {bytes([byte]) for byte in range(256)}
    assert len(SMALL.trie.twins) == 1 and SMALL.size > len(SMALL.eos) + 300
