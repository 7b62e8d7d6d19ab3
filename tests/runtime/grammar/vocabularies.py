"""The vocabularies that the tests of this room share: one made here, and real ones where they are at hand."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from branchwork.runtime.grammar.vocabulary import Vocabulary

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "tokenizers"

_PIECES = ["ab", "abc", "bc", "aa", "the", " the", "12", "123", "00", '": "', '", "', "é", "京", "北京", "  ", "\n\n"]
_BYTES = [bytes([byte]) for byte in range(256)]
_TOKENS = [*_BYTES, *(piece.encode() for piece in _PIECES), b"\xe4\xba", b"ab", b"", b""]


def _greedy(data: bytes) -> list[int]:
    ids = []
    data.decode()
    while data:
        token = max((token for token in _TOKENS if token and data.startswith(token)), key=len)
        ids.append(_TOKENS.index(token))
        data = data[len(token) :]
    return ids


# every byte, some merges, a piece of a character, two tokens with the same bytes, a special token and an end token
SMALL = Vocabulary.of(_TOKENS, [len(_TOKENS) - 1], _greedy, len(_TOKENS) + 40)


@cache
def real(name: str) -> Vocabulary:
    """gpt2 (50 thousand tokens) or qwen2 (152 thousand), skipping the test where the file is absent."""
    path = SHARED / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return Vocabulary.from_file(path)


def gpt2() -> Vocabulary:
    return real("gpt2")
