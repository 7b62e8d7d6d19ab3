"""Forced text as canonical tokens: append-only, never more than is certain.

Knows: canonical encoding, tries, forced bytes. Must not know: how a grammar is represented.

    committed tail            forced by the grammar      what may follow
    ... | {" | name | ": |    " c o l o r " : "          (model's choice)
                               '------ kept ------' cut   no token that the model might prefer begins before `cut`

A token that ends behind the cut might have been a longer one with what follows: it is left to the model, whose mask
makes it write the forced text anyway. So nothing committed is ever taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from branchwork.runtime.grammar.trie import Trie
from branchwork.runtime.grammar.vocabulary import Vocabulary

TAIL = 6  # committed tokens that the encoding of what follows may depend on


def chop(vocabulary: Vocabulary, tail: Sequence[int], forced: bytes, cut: Callable[[bytes], int]) -> list[int]:
    """Tokens of the forced bytes that may be appended to `tail`.

    Where the end of the tail would be encoded otherwise with them behind it (it is not canonical already: a prompt
    ended in the middle of a token, or the model wrote it so), only as much of it is looked at as would stay.

    cut: forced -> the smallest i such that some token properly extends forced[i:] by bytes that the grammar allows
    behind the forced ones; len(forced) when there is none. See first_extension.
    """
    tokens = vocabulary.tokens
    limit = cut(forced)
    if not limit:
        return []
    kept, at = [], 0
    for token in _continuation(vocabulary, tail, forced):
        data = tokens[token] if 0 <= token < len(tokens) else b""
        if not data or at + len(data) > limit or not forced.startswith(data, at):
            break  # the last: a tokenizer that rewrites text, as by NFC
        at += len(data)
        kept.append(token)
    return kept


def _continuation(vocabulary: Vocabulary, tail: Sequence[int], forced: bytes) -> list[int]:
    """The ids of the forced bytes behind the longest part of the tail that keeps its ids with them."""
    before = _since_special(vocabulary, tail)
    while True:
        text = b"".join(vocabulary.tokens[token] for token in before) + forced
        try:
            ids = vocabulary.encode(text[: len(text) - _unfinished(text)])
        except UnicodeDecodeError:  # bytes that are no text, written by the model or across the beginning of the tail
            return []
        if ids[: len(before)] == before:
            return ids[len(before) :]
        before = _whole(vocabulary, before[1:])


def first_extension(trie: Trie, forced: bytes, allows: Callable[[bytes], bool]) -> int:
    """A `cut` for grammars that can only be asked: whether they allow some bytes behind the forced ones.

    Asks for one byte first and goes deeper only where that is allowed, so it asks little where little may follow.
    """
    byte, token, skip = trie.nodes["byte"], trie.nodes["token"], trie.nodes["skip"]
    known: dict[bytes, bool] = {}

    def may(rest: bytes) -> bool:
        if rest not in known:
            known[rest] = allows(rest)
        return known[rest]

    def below(node: int, behind: int, rest: bytes) -> bool:
        while node < behind:
            longer = rest + bytes([byte[node]])
            if may(longer) and (token[node] >= 0 or below(node + 1, int(skip[node]), longer)):
                return True
            node = int(skip[node])
        return False

    for i in range(max(0, len(forced) - trie.longest + 1), len(forced)):
        node, behind = trie.find(forced[i:])
        if below(node, behind, b""):
            return i
    return len(forced)


def _since_special(vocabulary: Vocabulary, tail: Sequence[int]) -> list[int]:
    """The last tokens that are text."""
    before: list[int] = []
    for token in reversed(tail[-TAIL:]):
        if not 0 <= token < vocabulary.size or not vocabulary.tokens[token]:
            break
        before.append(token)
    before.reverse()
    return _whole(vocabulary, before)


def _whole(vocabulary: Vocabulary, before: list[int]) -> list[int]:
    """Without the first tokens that begin in the middle of a character."""
    while before and vocabulary.tokens[before[0]][0] & 0xC0 == 0x80:
        before = before[1:]
    return before


def _unfinished(text: bytes) -> int:
    """Bytes at the end that begin a character without finishing it."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < length else 0
    return 0
