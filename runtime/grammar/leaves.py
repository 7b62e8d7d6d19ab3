"""Machines that follow one part of a constraint byte by byte: words, tables, free text, JSON values, other matchers.

Knows: bytes, states. Must not know: tokens, captures, how parts are put together (captures.py does that).
A state is immutable and hashable; two equal states have the same future.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from branchwork.runtime.grammar.matcher import Grammar, Matcher
from branchwork.runtime.grammar.vocabulary import Vocabulary

State = Hashable


@cache
def byte_vocabulary() -> Vocabulary:
    """The 256 bytes, each a token, and an end token: for following text outside of any model."""
    return Vocabulary.of([*(bytes((byte,)) for byte in range(256)), b""], (256,), list, 257)


class Machine(Protocol):
    """What a part may look like, one byte at a time."""

    def begin(self, at: int) -> State:
        """The state before the first byte, which is byte `at` of the text."""

    def step(self, state: Any, byte: int) -> State | None:
        """The state after one more byte, None when the part cannot have it."""

    def accepts(self, state: Any) -> bool:
        """The part may end here."""

    def goes_on(self, state: Any) -> bool:
        """Some byte may follow within the part."""


class Words:
    """One of some strings: a trie; a state is a node."""

    def __init__(self, words: Sequence[bytes]) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.ends: set[int] = set()
        for word in words:
            node = 0
            for byte in word:
                if byte not in self.children[node]:
                    self.children[node][byte] = len(self.children)
                    self.children.append({})
                node = self.children[node][byte]
            self.ends.add(node)

    def begin(self, at: int) -> State:
        return 0

    def step(self, state: int, byte: int) -> State | None:
        return self.children[state].get(byte)

    def accepts(self, state: int) -> bool:
        return state in self.ends

    def goes_on(self, state: int) -> bool:
        return bool(self.children[state])


class Rows:
    """A byte DFA: int32 [states, 256], -1 for no way on; state 0 first."""

    def __init__(self, transitions: NDArray[np.int32], accepting: NDArray[np.bool_]) -> None:
        self.transitions: Any = memoryview(np.ascontiguousarray(transitions))  # type: ignore[arg-type]  # faster by element
        self.accepting: list[bool] = [bool(ends) for ends in accepting]
        self.open: list[bool] = [bool(row.any()) for row in transitions >= 0]

    def begin(self, at: int) -> State:
        return 0

    def step(self, state: int, byte: int) -> State | None:
        after: int = self.transitions[state, byte]
        return None if after < 0 else after

    def accepts(self, state: int) -> bool:
        return self.accepting[state]

    def goes_on(self, state: int) -> bool:
        return self.open[state]


class Unstopped:
    """Any text without one of `stops`. A state: the longest end of the text that begins a stop, and the characters
    written (always 0 when they are not limited)."""

    def __init__(self, stops: Sequence[bytes], most: int) -> None:
        self.stops, self.most = frozenset(stops), most
        self.prefixes = frozenset(stop[:size] for stop in stops for size in range(1, len(stop)))
        self.starts = frozenset(stop[0] for stop in stops if stop)

    def begin(self, at: int) -> State:
        return b"", 0

    def step(self, state: tuple[bytes, int], byte: int) -> State | None:
        tail, count = state
        if self.most and byte & 0xC0 != 0x80:  # not a continuation byte: a character begins
            if count == self.most:
                return None
            count += 1
        if not tail and byte not in self.starts:
            return b"", count
        tail += bytes((byte,))
        ends = [tail[size:] for size in range(len(tail))]  # longest first
        if not self.stops.isdisjoint(ends):
            return None
        return next((end for end in ends if end in self.prefixes), b""), count

    def accepts(self, state: tuple[bytes, int]) -> bool:
        return True

    def goes_on(self, state: tuple[bytes, int]) -> bool:
        return True


# Where a JSON number stands -> (bytes, next) pairs. RFC 8259, section 6.
_DIGITS = b"0123456789"
_NUMBER: dict[str, tuple[tuple[bytes, str], ...]] = {
    "minus": ((b"0", "zero"), (b"123456789", "whole")),
    "zero": ((b".", "point"), (b"eE", "e")),
    "whole": ((_DIGITS, "whole"), (b".", "point"), (b"eE", "e")),
    "point": ((_DIGITS, "fraction"),),
    "fraction": ((_DIGITS, "fraction"), (b"eE", "e")),
    "e": ((_DIGITS, "power"), (b"+-", "sign")),
    "sign": ((_DIGITS, "power"),),
    "power": ((_DIGITS, "power"),),
}
_VALUE: dict[int, tuple[str, int]] = {
    **dict.fromkeys(b"{[", ("inside", 1)),
    **dict.fromkeys(b"123456789", ("whole", 0)),
    ord('"'): ("string", 0),
    ord("-"): ("minus", 0),
    ord("0"): ("zero", 0),
    ord("t"): ("word", 3),
    ord("f"): ("word", 4),
    ord("n"): ("word", 3),
}


class Json:
    """The extent of one JSON value in text that is known to be JSON: brackets, strings and numbers are followed, what
    stands between them is not looked at. A state: where, and how many brackets (or letters of a word) are open."""

    def begin(self, at: int) -> State:
        return "begin", 0

    def step(self, state: tuple[str, int], byte: int) -> State | None:
        where, left = state
        if where == "begin":
            return _VALUE.get(byte)
        if where == "string":
            if byte == ord('"'):
                return ("inside", left) if left else ("done", 0)
            return ("escape", left) if byte == ord("\\") else state
        if where == "escape":
            return "string", left
        if where == "inside":
            if byte == ord('"'):
                return "string", left
            left += (byte in b"{[") - (byte in b"}]")
            return ("inside", left) if left else ("done", 0)
        if where == "word":
            return ("word", left - 1) if left > 1 else ("done", 0)
        return next(((after, 0) for allowed, after in _NUMBER.get(where, ()) if byte in allowed), None)

    def accepts(self, state: tuple[str, int]) -> bool:
        return state[0] in ("done", "zero", "whole", "fraction", "power")

    def goes_on(self, state: tuple[str, int]) -> bool:
        return state[0] != "done"


class Place:
    """A matcher somewhere in a part that began at byte `first`: equal when both are, for its text is then the same."""

    __slots__ = ("first", "matcher", "size")

    def __init__(self, matcher: Matcher, first: int, size: int) -> None:
        self.matcher, self.first, self.size = matcher, first, size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and (self.first, self.size) == (other.first, other.size)

    def __hash__(self) -> int:
        return hash((self.first, self.size))


class Followed:
    """A part that a grammar over the vocabulary of 256 single bytes (and an end token) follows."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar

    def begin(self, at: int) -> State:
        return Place(self.grammar.start(), at, 0)

    def step(self, state: Place, byte: int) -> State | None:
        matcher = state.matcher.fork()
        return Place(matcher, state.first, state.size + 1) if matcher.accept((byte,)) else None

    def accepts(self, state: Place) -> bool:
        return state.matcher.is_accepting

    def goes_on(self, state: Place) -> bool:
        row = np.zeros(9, np.int32)  # 257 tokens
        state.matcher.mask_into(row)
        return bool(row[:8].any())
