"""Text to ids and ids to text: the only file where the one becomes the other.

Knows: the model's tokenizer and its tokens' bytes. Must not know: programs, requests, sockets.
"""

from __future__ import annotations

import codecs
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from branchwork.runtime.loading.tokenizer import adds_bos, eos_ids, load_tokenizer, special_texts, token_bytes


class Piece(Protocol):
    """A stretch of a transcript; `special`: the model's special tokens may stand in it by their names; `ids`: what it
    was given as (int32, packed), empty for text."""

    @property
    def text(self) -> str: ...

    @property
    def special(self) -> bool: ...

    @property
    def ids(self) -> bytes: ...


class Texts:
    """One model's tokenizer. encode: pieces of text to ids; piece boundaries leave no seam in the tokenization."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer: Tokenizer = load_tokenizer(directory)
        self.token_bytes: list[bytes] = token_bytes(directory)
        self._by_bytes: list[tuple[bytes, int]] | None = None
        self.encoded = 0  # characters turned into ids so far
        added = self._tokenizer.get_added_tokens_decoder()
        bos_text = special_texts(directory).get("bos_token")
        bos = self._tokenizer.token_to_id(bos_text) if bos_text else None
        # what stands at the start of every transcript, and what "no context" is for this model
        self.start: list[int] = [bos] if bos is not None and adds_bos(directory) else []
        self.neutral: int = bos if bos is not None else (eos_ids(directory) or (0,))[0]
        self._names = {number: token.content.encode() for number, token in added.items() if token.special}
        self.special_names = tuple(token.content for token in added.values() if token.special and token.content)

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of the joined text. In pieces that are not special the names of special tokens are ordinary text."""
        ids: list[int] = []
        run: list[str] = []
        for piece in pieces:
            if piece.ids:
                ids += [*self._encode("".join(run)), *array("i", piece.ids)]
                run = []
                continue
            self.encoded += len(piece.text)
            if piece.special or not any(name in piece.text for name in self.special_names):
                run.append(piece.text)
                continue
            ids += self._encode("".join(run))
            run = []
            ids += self._encode_plain(piece.text)
        return ids + self._encode("".join(run))

    def encode_whole(self, text: str, longest: int = 0) -> list[int]:
        """A text as the tokenizer itself writes one, between the special tokens that belong around it; names of special
        tokens in it are ordinary text. longest: tokens of the whole, beyond which the text is cut; 0 for no end."""
        self.encoded += len(text)
        self._tokenizer.encode_special_tokens = True
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        finally:
            self._tokenizer.encode_special_tokens = False
        if longest:
            encoding.truncate(max(longest - self._tokenizer.num_special_tokens_to_add(False), 0))
        return list(self._tokenizer.post_process(encoding, None, True).ids)

    def begin(self, ids: list[int]) -> list[int]:
        """The ids of a whole prompt, with the start token the model expects unless it is there already."""
        return ids if not ids or ids[:1] == self.start else [*self.start, *ids]

    def decoder(self) -> Decoder:
        return Decoder(self.token_bytes)

    def text_of(self, ids: Sequence[int]) -> str:
        """The ids as text, special tokens by their names; bytes that are no UTF-8 read as the replacement character."""
        return b"".join(self._names.get(i) or self.token_bytes[i] for i in ids).decode("utf-8", "replace")

    def compatible(self, text: str) -> list[int]:
        """Tokens that `text` begins with, or that begin with `text`: every one that may stand on the way to it."""
        wanted, table = text.encode(), self._sorted()
        found = []
        for beginning in (wanted[:end] for end in range(1, len(wanted))):
            at = bisect_left(table, (beginning, 0))
            while at < len(table) and table[at][0] == beginning:
                found.append(table[at][1])
                at += 1
        at = bisect_left(table, (wanted, 0))
        while at < len(table) and table[at][0].startswith(wanted):
            found.append(table[at][1])
            at += 1
        return found

    def extends(self, text: str) -> bool:
        """Whether some token begins with `text` and goes on after it."""
        wanted, table = text.encode(), self._sorted()
        at = bisect_right(table, (wanted, len(self.token_bytes)))
        return at < len(table) and table[at][0].startswith(wanted)

    def _sorted(self) -> list[tuple[bytes, int]]:
        if self._by_bytes is None:
            self._by_bytes = sorted((token, number) for number, token in enumerate(self.token_bytes) if token)
        return self._by_bytes

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def _encode_plain(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = True
        try:
            return self._encode(text)
        finally:
            self._tokenizer.encode_special_tokens = False


class Decoder:
    """Incremental: ids in, text out as soon as its bytes are whole characters."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        return self._utf8.decode(b"".join(self._table[i] for i in ids))
