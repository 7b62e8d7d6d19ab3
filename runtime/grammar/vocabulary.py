"""A tokenizer as constrained decoding sees it: every token's bytes, the end tokens, canonical encoding, a trie.

Knows: bytes, ids, int32 mask words. Must not know: torch, grammars, prompts, chat templates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from branchwork.runtime.grammar.trie import Trie
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.tokenizer import eos_ids, load_tokenizer, spell, token_bytes

Encode = Callable[[bytes], list[int]]

_SENTINEL = "\U0010fffd"  # a private-use character: its byte tokens merge with nothing that follows
_USUAL_ENDS = ("<|endoftext|>", "<|im_end|>", "</s>", "<|eot_id|>", "<|end_of_text|>", "<eos>", "<end_of_turn>")


class Vocabulary:
    """The tokens of one model. Immutable; made once, shared by every grammar and thread.

    tokens: bytes by id, b"" for special tokens, end tokens and ids without a token: none of them is ever text.
    eos: ids that end an answer, ascending. size: ids, at least len(tokens) (weights are often padded). words:
    ceil(size / 32), the length of a mask. encode: UTF-8 bytes of text that continues other text -> its canonical ids
    (raises UnicodeDecodeError for other bytes). fingerprint: hex, the same for the same tokens, ends and size.
    """

    def __init__(self, tokens: list[bytes], eos: Iterable[int], encode: Encode, size: int | None = None) -> None:
        self.eos = tuple(sorted(set(eos)))
        self.size = max(len(tokens), size or 0, *(number + 1 for number in self.eos), 0)
        self.tokens = tokens + [b""] * (self.size - len(tokens))
        for number in self.eos:
            self.tokens[number] = b""
        self.encode = encode
        self.words = -(-self.size // 32)

    @classmethod
    def of(cls, tokens: list[bytes], eos: Iterable[int], encode: Encode, size: int | None = None) -> Vocabulary:
        """From a table that somebody has already."""
        return cls(list(tokens), eos, encode, size)

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """From a tokenizer.json, its folder or a GGUF file. Companion files and metadata name the end tokens and
        the size; a tokenizer.json alone ends with those of the usual end tokens that it has. Raises LoadError."""
        path = Path(path)
        ends: tuple[int, ...] = ()
        if path.suffix != ".json":
            tokenizer = load_tokenizer(path)
            tokens, ends = token_bytes(path, tokenizer), eos_ids(path, tokenizer)
        else:
            try:
                tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # tokenizers raises bare Exception for every fault of the file
                raise LoadError("tokenizer", f"{path} cannot be read: {error}") from error
            tokens = spell(tokenizer, path)
        if not ends:
            numbers = map(tokenizer.token_to_id, _USUAL_ENDS)
            ends = tuple(number for number in numbers if number is not None and not tokens[number])
        return cls(tokens, ends, encoder(tokenizer))

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.eos, self.size)).encode())
        digest.update(np.array([len(token) for token in self.tokens], np.int32).tobytes())
        digest.update(b"".join(self.tokens))
        return digest.hexdigest()[:32]

    @cached_property
    def ordinary_mask(self) -> NDArray[np.int32]:
        """Mask words, a bit for every token that is text. AND a mask with it and no special token is left."""
        return pack([number for number, token in enumerate(self.tokens) if token], self.words)

    @cached_property
    def specials_mask(self) -> NDArray[np.int32]:
        """Mask words, a bit for every id that is no text: special tokens, ends, gaps."""
        return pack([number for number, token in enumerate(self.tokens) if not token], self.words)

    @cached_property
    def eos_mask(self) -> NDArray[np.int32]:
        """Mask words, a bit for every end token."""
        return pack(list(self.eos), self.words)

    @cached_property
    def trie(self) -> Trie:
        """Built on first use: a third of a second for 150,000 tokens."""
        return Trie(self.tokens)


def pack(ids: Iterable[int] | NDArray[np.integer], words: int) -> NDArray[np.int32]:
    """Mask words with the bits of `ids` set."""
    bits = np.zeros(words * 32, bool)
    bits[np.asarray(ids, np.int64)] = True
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


def unpack(mask: NDArray[np.int32]) -> NDArray[np.int64]:
    """The ids whose bits are set, ascending."""
    return np.flatnonzero(np.unpackbits(np.ascontiguousarray(mask).astype("<i4").view(np.uint8), bitorder="little"))


def encoder(tokenizer: Tokenizer) -> Encode:
    """How `tokenizer` writes text that continues other text: nothing added in front or behind, no special tokens.

    Sentencepiece-like tokenizers put a space before a text; a sentinel takes it, and its ids are cut off.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True

    def plain(data: bytes) -> list[int]:
        ids: list[int] = tokenizer.encode(data.decode(), add_special_tokens=False).ids
        return ids

    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    state = b"".join(part.__getstate__() for part in parts if part is not None)
    if b'"Prepend"' not in state and b'"Metaspace"' not in state and b'"add_prefix_space":true' not in state:
        return plain
    mark = _SENTINEL.encode()
    before = plain(mark)

    def behind(data: bytes) -> list[int]:
        ids = plain(mark + data)
        if ids[: len(before)] != before:
            raise RuntimeError(f"this tokenizer merges {_SENTINEL!r} with {data[:20]!r}: its encoding cannot be cut")
        return ids[len(before) :]

    return behind
