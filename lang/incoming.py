"""Text that comes in pieces, to be read like a whole one: words, runs of characters, JSON values piece by piece.

Knows: text under way, JSON (RFC 8259). Must not know: tool calls, formats, events.
Readers are generators: they yield where they need more text, and raise NoCall where it is not what was to be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Put = Callable[[str], None]

GAP = re.compile(r"[ \t\n\r]+")  # between the tokens of JSON
CLOSERS = {"(": ")", "[": "]", "{": "}"}
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')  # inside a JSON string
_BARE = re.compile(r"[-+.\w]+")
SCALAR = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_HEX = re.compile(r"[0-9a-fA-F]{4}")


class NoCall(Exception):
    """What has been read is not a call. cut: it may have become one, had the text not ended."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__(cut)
        self.cut = cut


class Source:
    """Text under way, read from `at`. What was read since the last mark can be had again. over: no more will come."""

    def __init__(self) -> None:
        self.text, self.at, self.over = "", 0, False
        self._kept: list[str] = []  # read since the mark and no longer in `text`
        self._mark = 0

    def feed(self, more: str) -> None:
        self._kept.append(self.text[self._mark : self.at])
        self.text, self.at, self._mark = self.text[self.at :] + more, 0, 0

    def mark(self) -> None:
        self._kept.clear()
        self._mark = self.at

    def since(self) -> str:
        """What was read since the mark."""
        return "".join(self._kept) + self.text[self._mark : self.at]

    def back(self) -> None:
        """Read on from the mark."""
        self.text, self.at = self.since() + self.text[self.at :], 0
        self.mark()

    def peek(self) -> Steps[str]:
        """The next character, "" at the end of all."""
        while self.at == len(self.text):
            if self.over:
                return ""
            yield
        return self.text[self.at]

    def char(self) -> Steps[str]:
        """The next character, which is still to be read. Raises NoCall at the end."""
        found = yield from self.peek()
        if not found:
            raise NoCall(cut=True)
        return found

    def run(self, pattern: re.Pattern[str]) -> Steps[str]:
        """As much of `pattern`, a repeated character, as is here already: "" when the next character is none of it."""
        yield from self.peek()
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found[0]

    def all(self, pattern: re.Pattern[str], limit: int = 1 << 30) -> Steps[str]:
        """All of it. Raises NoCall past `limit` characters."""
        pieces = [(yield from self.run(pattern))]
        while pieces[-1]:
            pieces.append((yield from self.run(pattern)))
            if sum(map(len, pieces)) > limit:
                raise NoCall
        return "".join(pieces)

    def take(self, word: str) -> Steps[bool]:
        """Read `word` if it comes next, and otherwise nothing."""
        while True:
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return True
            if self.over or not word.startswith(self.text[self.at :]):
                return False
            yield

    def need(self, word: str) -> Steps[None]:
        """Read `word`. Raises NoCall."""
        if not (yield from self.take(word)):
            raise NoCall(cut=word.startswith(self.text[self.at :]))

    def until(self, pattern: re.Pattern[str], words: tuple[str, ...], put: Put) -> Steps[str]:
        """Read on to the first match of `pattern`, which begins with one of `words`, and give it. put: gets the text
        before it as soon as it is certain. At the end of all, put gets the rest and the match is ""."""
        while True:
            found = pattern.search(self.text, self.at)
            stop = found.start() if found else len(self.text)
            if not found and not self.over:
                stop -= held(self.text[self.at :], words)
            if stop > self.at:
                put(self.text[self.at : stop])
            self.at = found.end() if found else stop
            if found or self.over:
                return found[0] if found else ""
            yield


def held(text: str, words: tuple[str, ...]) -> int:
    """Characters at the end of `text` that may be the beginning of one of `words`."""
    longest = max(map(len, words), default=1) - 1
    for count in range(min(longest, len(text)), 0, -1):
        tail = text[-count:]
        if any(len(word) > count and word.startswith(tail) for word in words):
            return count
    return 0


def _gap(source: Source, put: Put) -> Steps[None]:
    while piece := (yield from source.run(GAP)):
        put(piece)


def json_value(source: Source, put: Put) -> Steps[None]:
    """One JSON value as it is written; control characters in its strings are escaped, which models forget."""
    closers: list[str] = []
    while True:
        char = yield from source.char()
        opened = char in "{["
        if opened:
            source.at += 1
            put(char)
            closers.append(CLOSERS[char])
            yield from _gap(source, put)
            if (yield from source.char()) != closers[-1]:
                if char == "{":
                    yield from _key(source, put)
                continue
        elif char == '"':
            yield from json_string(source, put)
        else:
            word = yield from source.all(_BARE)
            if not SCALAR.fullmatch(word):
                raise NoCall(cut=source.over and source.at == len(source.text))
            put(word)
        while closers:
            yield from _gap(source, put)
            char = yield from source.char()
            if char not in (",", closers[-1]):
                raise NoCall
            source.at += 1
            put(char)
            if char == ",":
                yield from _gap(source, put)
                if closers[-1] == "}":
                    yield from _key(source, put)
                break
            closers.pop()
        else:
            return


def _key(source: Source, put: Put) -> Steps[None]:
    yield from json_string(source, put)
    yield from _gap(source, put)
    yield from source.need(":")
    put(":")
    yield from _gap(source, put)


def json_string(source: Source, put: Put) -> Steps[None]:
    yield from source.need('"')
    put('"')
    while True:
        if piece := (yield from source.run(_PLAIN)):
            put(piece)
            continue
        char = yield from source.char()
        source.at += 1
        if char == '"':
            put('"')
            return
        if char != "\\":
            put(json.dumps(char)[1:-1])
            continue
        escape = yield from source.char()
        source.at += 1
        if escape == "u":
            digits = ""
            while len(digits) < 4:
                digits += yield from source.char()
                source.at += 1
            if not _HEX.fullmatch(digits):
                raise NoCall
            escape += digits
        elif escape not in '"\\/bfnrt':
            raise NoCall
        put(f"\\{escape}")
