"""When an answer ends: stop ids, stop strings and regexes on its bytes, its length; and what must be held back.

Knows: tokens' bytes, positions. Must not know: requests, text encodings, tensors.

    bytes of the answer  0 ............ safe ............ total      safe: where the earliest stop that may still
    tokens               [sendable ......)[held back .....)          come out of the last bytes would begin

The stop that ends first wins (at the same end, the one that starts first); the answer is cut where it starts. Stops
are looked at only after min_tokens tokens: one that ends within the first min_tokens is ignored for good.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from branchwork.runtime.scheduler.patterns import PatternSearch, compile_pattern
from branchwork.runtime.wire import Stops

MAX_STOP_BYTES = 16384  # of all stop strings of one request together
MAX_REGEXES = 8


class Ending(msgspec.Struct, frozen=True):
    """reason: stop | eos | length. length: bytes of the answer kept. kept: tokens wholly inside them."""

    reason: str
    matched: bytes
    length: int
    kept: int


class Automaton:
    """Aho-Corasick over bytes (Aho and Corasick, 1975). State 0 is the root; one state per prefix of a string.

    goto: byte -> state, per state. fail: the longest proper suffix that is a prefix. depth: length of the prefix.
    found: length of the longest string that ends in the state, 0 for none.
    """

    __slots__ = ("depth", "fail", "found", "goto")

    def __init__(self, strings: tuple[bytes, ...]) -> None:
        self.goto: list[dict[int, int]] = [{}]
        self.depth, self.found = [0], [0]
        for string in strings:
            state = 0
            for byte in string:
                if byte not in self.goto[state]:
                    self.goto[state][byte] = len(self.goto)
                    self.goto.append({})
                    self.depth.append(self.depth[state] + 1)
                    self.found.append(0)
                state = self.goto[state][byte]
            self.found[state] = len(string)
        self.fail = [0] * len(self.goto)
        queue = list(self.goto[0].values())
        for state in queue:
            for byte, child in self.goto[state].items():
                self.fail[child] = self.step(self.fail[state], byte)
                self.found[child] = self.found[child] or self.found[self.fail[child]]
                queue.append(child)

    def step(self, state: int, byte: int) -> int:
        while byte not in self.goto[state]:
            if state == 0:
                return 0
            state = self.fail[state]
        return self.goto[state][byte]


@lru_cache(maxsize=256)
def _automaton(strings: tuple[bytes, ...]) -> Automaton:
    return Automaton(strings)


def check_stops(stops: Stops) -> str:
    """What is wrong with a request's stops, "" when nothing is. Compiles (and caches) what will be needed."""
    if stops.max_tokens < 1:
        return f"max_tokens is {stops.max_tokens}, at least 1 is needed"
    if not all(stops.strings):
        return "a stop string is empty, so every answer would be empty"
    size = sum(map(len, stops.strings))
    if size > MAX_STOP_BYTES:
        return f"the stop strings have {size} bytes together, at most {MAX_STOP_BYTES} are allowed"
    if len(stops.regexes) > MAX_REGEXES:
        return f"{len(stops.regexes)} stop regexes, at most {MAX_REGEXES} are allowed"
    try:
        for pattern in stops.regexes:
            compile_pattern(pattern)
    except ValueError as error:
        return str(error)
    return ""


class StopMatcher:
    """One answer's stops. token_bytes[id] are the bytes of token `id`, for every id that can be drawn.

    `sendable`: tokens from the answer's start that no stop can still cut into; it never shrinks.
    """

    __slots__ = ("_automaton", "_ends", "_searches", "_state", "_stops", "_tail", "_token_bytes", "_total", "sendable")

    def __init__(self, stops: Stops, token_bytes: Sequence[bytes]) -> None:
        self._stops = stops
        self._token_bytes = token_bytes
        self._automaton = _automaton(stops.strings) if stops.strings else None
        self._searches = [PatternSearch(compile_pattern(pattern)) for pattern in stops.regexes]
        self._ends: list[int] = []  # bytes of the answer up to and with each token
        self._total = 0
        self._state = 0
        self._tail = bytearray()  # the bytes from `safe` on: what a match can be cut from
        self.sendable = 0

    @property
    def tokens(self) -> int:
        return len(self._ends)

    def bytes_of(self, tokens: int) -> int:
        """Bytes of the answer's first `tokens` tokens."""
        return self._ends[tokens - 1] if tokens else 0

    def feed(self, token: int) -> Ending | None:
        """Take the next token of the answer; says how the answer ends when it ends with it."""
        stops, count = self._stops, len(self._ends) + 1
        armed = count > stops.min_tokens
        if armed and token in stops.ids:
            self.sendable = count
            return Ending("eos", b"", self._total, count - 1)
        text = self._token_bytes[token]
        begin = self._total
        self._total += len(text)
        self._ends.append(self._total)
        if self._automaton is None and not self._searches:
            self.sendable = count
        else:
            ending = self._scan(text, begin, armed)
            if ending is not None:
                return ending
        return self.end("length") if count >= stops.max_tokens else None

    def end(self, reason: str) -> Ending:
        """The answer as it is now, ended by something else than its text."""
        return Ending(reason, b"", self._total, len(self._ends))

    def _scan(self, text: bytes, begin: int, armed: bool) -> Ending | None:
        """begin: where `text` stands in the answer. What lies before `skip` is not looked at."""
        if begin < self._stops.skip:
            text = text[self._stops.skip - begin :]
            begin = self._total - len(text)
        self._tail += text
        matches = []  # (end, start)
        if self._automaton is not None and (match := self._strings(text, begin, armed)):
            matches.append(match)
        skip = self._stops.skip
        for search in self._searches:
            for byte in text:
                start = search.feed(byte)
                if start >= 0 and armed:
                    matches.append((search.position + skip, start + skip))
                    break
        if matches:
            end, start = min(matches)
            offset = self._total - len(self._tail)
            matched = bytes(self._tail[start - offset : end - offset])
            return Ending("stop", matched, start, bisect_right(self._ends, start))
        self._settle()
        return None

    def _strings(self, text: bytes, begin: int, armed: bool) -> tuple[int, int] | None:
        """(end, start) of the first stop string that ends inside `text`, whose first byte is at `begin`."""
        automaton, state = self._automaton, self._state
        assert automaton is not None
        for position, byte in enumerate(text, begin + 1):
            state = automaton.step(state, byte)
            if armed and automaton.found[state]:
                return position, position - automaton.found[state]
        self._state = state
        return None

    def _settle(self) -> None:
        """Recompute how much may be sent, and forget the bytes before it."""
        safe = self._total
        if self._automaton is not None:
            safe -= self._automaton.depth[self._state]
        for search in self._searches:
            safe = min(safe, search.safe + self._stops.skip)
        self.sendable = bisect_right(self._ends, safe)
        del self._tail[: len(self._tail) - (self._total - safe)]
