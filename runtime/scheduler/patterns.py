"""Regular expressions over a byte stream, matched in linear time and bounded memory: what a stop regex needs.

Knows: byte patterns in Python's syntax, positions. Must not know: tokens, requests.

Python's `re` cannot be used on a stream here: it backtracks (a pattern of ten characters can run for years, inside the
one loop that serves everybody) and it cannot say from where on the text may still become a match. This is Thompson's
construction with one start position per state (Cox, "Regular Expression Matching: the Virtual Machine Approach").
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

MAX_BYTES = 1024  # of a pattern
MAX_STATES = 512  # the most that one byte can cost
REACH = 1024  # bytes a match may span (of overlapping starts the earliest counts): bounds what is held back

_ALL = frozenset(range(256))
_CATEGORIES = {
    f"CATEGORY_{name}": frozenset(b for b in range(256) if re.match(pattern, bytes([b])))
    for name, pattern in {
        "DIGIT": rb"\d",
        "NOT_DIGIT": rb"\D",
        "SPACE": rb"\s",
        "NOT_SPACE": rb"\S",
        "WORD": rb"\w",
        "NOT_WORD": rb"\W",
    }.items()
}

Opening = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern: consuming states only, the empty moves between them folded in.

    accepts: bytes each state takes. follow: per state, where a taken byte leads and whether a match ends there;
    follow_line the same when the byte was a newline. opening: states a match can begin in at (text start, line start,
    elsewhere). first: bytes that any of them takes.
    """

    accepts: tuple[frozenset[int], ...]
    follow: tuple[tuple[Opening, bool], ...]
    follow_line: tuple[tuple[Opening, bool], ...]
    opening: tuple[Opening, Opening, Opening]
    first: frozenset[int]


@dataclass(slots=True)
class _State:
    takes: frozenset[int] | None  # None: an empty move to all of `out`
    out: list[int] = field(default_factory=list)
    only_at: str = ""  # "begin" or "line": an empty move that is open only there


class _Builder:
    """Parse tree to Thompson states, built from the end backwards: each part is given the state that comes after it."""

    ACCEPT = 0

    def __init__(self) -> None:
        self.states: list[_State] = [_State(None)]

    def _new(self, state: _State) -> int:
        if len(self.states) >= MAX_STATES:
            raise ValueError(f"it needs more than {MAX_STATES} states")
        self.states.append(state)
        return len(self.states) - 1

    def sequence(self, parts: Any, after: int, flags: int) -> int:
        for name, value in reversed(list(parts)):
            after = self._part(str(name), value, after, flags)
        return after

    def _part(self, name: str, value: Any, after: int, flags: int) -> int:
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self._new(_State(_taken(name, value, flags), [after]))
        if name == "BRANCH":
            return self._new(_State(None, [self.sequence(way, after, flags) for way in value[1]]))
        if name == "SUBPATTERN":
            _, add, remove, parts = value
            return self.sequence(parts, after, (flags | add) & ~remove)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeat(value, after, flags)
        if name == "AT" and str(value) in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            line = str(value) == "AT_BEGINNING" and bool(flags & re.MULTILINE)
            return self._new(_State(None, [after], "line" if line else "begin"))
        raise ValueError(f"it uses {_NAMES.get(name, name.lower())}, which a stop pattern cannot have")

    def _repeat(self, value: Any, after: int, flags: int) -> int:
        low, high, parts = value
        if high is _parser.MAXREPEAT:
            loop = self._new(_State(None))
            self.states[loop].out = [self.sequence(parts, loop, flags), after]
            tail = loop
        else:
            tail = after
            for _ in range(high - low):
                tail = self._new(_State(None, [self.sequence(parts, tail, flags), after]))
        for _ in range(low):
            tail = self.sequence(parts, tail, flags)
        return tail

    def closure(self, start: int, begin: bool, line: bool) -> tuple[list[int], bool]:
        """Consuming states that empty moves reach from `start`, and whether the end of the pattern is among them."""
        found: list[int] = []
        seen, stack = {start}, [start]
        while stack:
            state = self.states[stack.pop()]
            if state.only_at and not (begin or (line and state.only_at == "line")):
                continue
            for target in state.out:
                if target not in seen:
                    seen.add(target)
                    stack.append(target) if self.states[target].takes is None else found.append(target)
        if self.states[start].takes is not None:
            return [start], False
        return found, self.ACCEPT in seen


_NAMES = {
    "AT": "$ or a word boundary (the text after a match is not known yet)",
    "ASSERT": "a lookaround",
    "ASSERT_NOT": "a lookaround",
    "GROUPREF": "a backreference",
    "GROUPREF_EXISTS": "a conditional group",
    "POSSESSIVE_REPEAT": "a possessive repeat",
    "ATOMIC_GROUP": "an atomic group",
}


def _taken(name: str, value: Any, flags: int) -> frozenset[int]:
    if name == "ANY":
        return _ALL if flags & re.DOTALL else _ALL - {10}
    items = value if name == "IN" else [("LITERAL", value)]
    negate = name == "NOT_LITERAL"
    taken: set[int] = set()
    for kind, what in items:
        if str(kind) == "NEGATE":
            negate = True
        elif str(kind) == "LITERAL":
            taken.add(what)
        elif str(kind) == "RANGE":
            taken.update(range(what[0], what[1] + 1))
        else:
            taken |= _CATEGORIES[str(what)]
    if flags & re.IGNORECASE:
        taken |= {ord(chr(b).swapcase()) for b in taken if b < 128}
    return _ALL - taken if negate else frozenset(taken)


@lru_cache(maxsize=256)
def compile_pattern(pattern: bytes) -> Pattern:
    """Compile a stop pattern (syntax of `re` on bytes; `^` is the answer's start, or a line's under (?m)).

    Raises ValueError that says what is wrong: syntax, size, a construct that needs text not yet generated, or a pattern
    that matches the empty text (it would end every answer at once).
    """
    shown = pattern[:80].decode("utf-8", "replace")
    try:
        if len(pattern) > MAX_BYTES:
            raise ValueError(f"it is {len(pattern)} bytes long, at most {MAX_BYTES} are allowed")
        tree = _parser.parse(pattern)
        builder = _Builder()
        start = builder.sequence(tree, builder.ACCEPT, tree.state.flags)
    except (ValueError, re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"stop regex {shown!r}: {error}") from error
    openings = [builder.closure(start, begin, line) for begin, line in ((True, True), (False, True), (False, False))]
    if any(empty for _, empty in openings):
        raise ValueError(f"stop regex {shown!r} matches the empty text, so every answer would be empty")
    consuming = [n for n, state in enumerate(builder.states) if state.takes is not None]
    number = {state: n for n, state in enumerate(consuming)}

    def renumber(found: list[int]) -> Opening:
        return tuple(number[state] for state in found)

    def follow(line: bool) -> tuple[tuple[Opening, bool], ...]:
        ends = [builder.closure(builder.states[n].out[0], False, line) for n in consuming]
        return tuple((renumber(found), done) for found, done in ends)

    accepts = tuple(builder.states[n].takes or frozenset() for n in consuming)
    opening = (renumber(openings[0][0]), renumber(openings[1][0]), renumber(openings[2][0]))
    first = frozenset(b for found in opening for state in found for b in accepts[state])
    return Pattern(accepts, follow(False), follow(True), opening, first)


class PatternSearch:
    """One pattern's progress over one stream of bytes. Cost: O(live states) per byte, usually none to three."""

    __slots__ = ("_last", "_pattern", "_threads", "position")

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._threads: dict[int, int] = {}  # state -> earliest start of a match that is in it
        self._last = -1
        self.position = 0

    @property
    def safe(self) -> int:
        """Bytes before this position cannot become part of a match that ends later."""
        return min(self._threads.values(), default=self.position)

    def feed(self, byte: int) -> int:
        """Take one byte. Returns where a match that ends with it starts (the earliest), or -1."""
        pattern, at, before = self._pattern, self.position, self._last
        self.position, self._last = at + 1, byte
        threads = self._threads
        if not threads and byte not in pattern.first:
            return -1
        for state in pattern.opening[0 if at == 0 else 1 if before == 10 else 2]:
            threads.setdefault(state, at)
        follow = pattern.follow_line if byte == 10 else pattern.follow
        oldest, found = at - REACH, -1
        after: dict[int, int] = {}
        for state, start in threads.items():
            if start <= oldest or byte not in pattern.accepts[state]:
                continue
            targets, done = follow[state]
            if done and (found < 0 or start < found):
                found = start
            for target in targets:
                if start < after.get(target, at + 1):
                    after[target] = start
        self._threads = after
        return found
