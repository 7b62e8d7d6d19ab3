"""Text that comes in pieces, as the value that is certain so far: JSON, plain text, or what only counts as a whole.

Knows: JSON (RFC 8259, with the liberties that json.loads takes). Must not know: programs, constraints, types.
Every character is looked at once. Where text is no JSON nothing more becomes certain; whoever reads the whole of it
says what is wrong.
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

_GAP = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')  # inside a string
_BARE = re.compile(r"[-+.0-9A-Za-z]*")  # a number or a word
_WORDS = frozenset(("true", "false", "null"))
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HEX = re.compile("[0-9A-Fa-f]{4}")


class Growing(Protocol):
    """changes goes up with every visible change of the value; at 0 there is none. complete: it will not change."""

    changes: int
    complete: bool

    def feed(self, text: str) -> None: ...

    def value(self) -> Any: ...


class Whole:
    """Nothing is certain before the end."""

    def __init__(self) -> None:
        self.changes, self.complete = 0, False

    def feed(self, text: str) -> None:
        pass

    def value(self) -> None:
        return None


class GrowingText:
    """The text so far."""

    def __init__(self) -> None:
        self.changes, self.complete = 0, False
        self._text = ""

    def feed(self, text: str) -> None:
        self._text += text
        self.changes += bool(text)

    def value(self) -> str:
        return self._text


class GrowingJson:
    """One JSON value. Containers under way hold what is finished inside them; `value` adds what is not.

    A number is complete once something follows it, be it a space. broken: the text is no JSON.
    """

    def __init__(self) -> None:
        self.changes, self.complete, self.broken = 0, False, False
        self._next = self._value  # what reads the next characters
        self._root: Any = None
        self._open: list[Any] = []  # containers under way, outermost first
        self._keys: list[str] = []  # for each of them the key whose value comes; "" in a list
        self._empty = False  # the innermost one has just begun, so that its end may come
        self._pieces: list[str] = []  # of the string, number or word under way
        self._in_text = False  # a string that is a value is under way
        self._escape = ""  # of an escape sequence as much as has come
        self._high = 0  # the first half of a surrogate pair

    def feed(self, text: str) -> None:
        """More text."""
        at = 0
        while at < len(text) and not self.broken:
            at = self._next(text, at)

    def value(self) -> Any:
        """What is certain by now. Only what is under way is copied, the rest is shared with earlier values."""
        text = self._text_so_far() if self._in_text else None
        if not self._open:
            return self._root if text is None else text
        whole = inner = self._open[0].copy()
        for key, container in zip(self._keys, self._open[1:]):
            copied = container.copy()
            if isinstance(inner, dict):
                inner[key] = copied
            else:
                inner[-1] = copied
            inner = copied
        if text is not None:
            _put(inner, self._keys[-1], text)
        return whole

    # --- what may come next: each takes the text and a position in it, and returns how far it has got

    def _value(self, text: str, at: int) -> int:
        at = _after_gap(text, at)
        if at == len(text):
            return at
        match text[at]:
            case "{":
                self._begin({}, self._key)
            case "[":
                self._begin([], self._value)
            case '"':
                self._in_text = True
                self.changes += 1
                self._next = self._string
            case "]" if self._empty:
                self._end_container()
            case char if _end(_BARE, char, 0):
                self._empty, self._next = False, self._scalar
                return at
            case _:
                self.broken = True
        self._empty = text[at] in "{["
        return at + 1

    def _key(self, text: str, at: int) -> int:
        at = _after_gap(text, at)
        if at < len(text):
            if text[at] == '"':
                self._next = self._string
            elif text[at] == "}" and self._empty:
                self._end_container()
            else:
                self.broken = True
            self._empty = False
        return at + 1

    def _colon(self, text: str, at: int) -> int:
        at = _after_gap(text, at)
        if at < len(text):
            self._next = self._value
            self.broken = text[at] != ":"
        return at + 1

    def _comma(self, text: str, at: int) -> int:
        at = _after_gap(text, at)
        if at < len(text):
            named = isinstance(self._open[-1], dict)
            if text[at] == ",":
                self._next = self._key if named else self._value
            elif text[at] == ("}" if named else "]"):
                self._end_container()
            else:
                self.broken = True
        return at + 1

    def _nothing(self, text: str, at: int) -> int:
        at = _after_gap(text, at)
        self.broken = at < len(text)
        return at

    def _scalar(self, text: str, at: int) -> int:
        end = _end(_BARE, text, at)
        self._pieces.append(text[at:end])
        if end < len(text) or "".join(self._pieces[-5:]) in _WORDS:
            self._end_scalar()
        return end

    def _string(self, text: str, at: int) -> int:
        if self._escape:
            self._escape += text[at]
            self._unescape()
            return at + 1
        end = _end(_PLAIN, text, at)
        self._add(text[at:end])
        if end == len(text):
            return end
        if text[end] == "\\":
            self._escape = "\\"
        elif text[end] == '"':
            self._end_string()
        else:
            self.broken = True
        return end + 1

    # --- what has been read

    def _begin(self, container: Any, inside: Any) -> None:
        self._attach(container)
        self._open.append(container)
        self._keys.append("")
        self._next = inside
        self.complete = False

    def _end_container(self) -> None:
        self._open.pop()
        self._keys.pop()
        self._go_on()

    def _attach(self, value: Any) -> None:
        self.changes += 1
        if self._open:
            _put(self._open[-1], self._keys[-1], value)
        else:
            self._root = value
        self._go_on()

    def _go_on(self) -> None:
        self._next = self._comma if self._open else self._nothing
        self.complete = not self._open

    def _end_scalar(self) -> None:
        try:
            value = json.loads("".join(self._pieces))
        except ValueError:
            self.broken = True
        else:
            self._pieces = []
            self._attach(value)

    def _end_string(self) -> None:
        self._flush()
        text, self._pieces = "".join(self._pieces), []
        if self._in_text:
            self._in_text = False
            self.changes -= 1  # it is there already
            self._attach(text)
        else:
            self._keys[-1] = text
            self._next = self._colon

    def _text_so_far(self) -> str:
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

    def _add(self, text: str) -> None:
        if text:
            self._flush()
            self._pieces.append(text)
            self.changes += self._in_text

    def _flush(self) -> None:
        """A first half of a pair that is not followed by the second one stands for itself."""
        if self._high:
            high, self._high = chr(self._high), 0
            self._add(high)

    def _unescape(self) -> None:
        escape = self._escape
        if len(escape) == 2 and escape[1] in _ESCAPES:
            self._escape = ""
            self._add(_ESCAPES[escape[1]])
        elif len(escape) == 6 and _HEX.fullmatch(escape, 2):
            self._escape = ""
            self._unit(int(escape[2:], 16))
        elif len(escape) == 6 or escape[1] != "u":
            self.broken = True

    def _unit(self, unit: int) -> None:
        """One UTF-16 unit: a character or half of one."""
        if self._high and 0xDC00 <= unit < 0xE000:
            pair = chr(0x10000 + ((self._high - 0xD800) << 10) + (unit - 0xDC00))
            self._high = 0
            self._add(pair)
        elif 0xD800 <= unit < 0xDC00:
            self._flush()
            self._high = unit
        else:
            self._add(chr(unit))


def _put(container: Any, key: str, value: Any) -> None:
    if isinstance(container, dict):
        container[key] = value
    else:
        container.append(value)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None  # each matches no text, too
    return found.end()


def _after_gap(text: str, at: int) -> int:
    return _end(_GAP, text, at)
