"""GBNF (llama.cpp) and W3C-style EBNF grammars, read with positions and written as Lark for llguidance.

Knows: the two syntaxes. Must not know: Lark, vocabularies, matchers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from branchwork.lang.constraint import Invalid, Unsupported
from branchwork.runtime.grammar.lexemes import lark
from branchwork.runtime.grammar.rules import Chars, Either, Name, Node, Row, Text, Times

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_RULE = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)\s*::=")
_REPEAT = re.compile(r"\{\s*(\d+)\s*(,)?\s*(\d*)\s*\}")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "'": "'", "[": "[", "]": "]", "-": "-", "^": "^"}
_HEX = {"x": 2, "u": 4, "U": 8}


def to_lark(text: str, syntax: str) -> str:
    """The grammar in llguidance's Lark. Raises Invalid and Unsupported with the position in `text`."""
    if syntax == "lark":
        return text
    if syntax not in ("gbnf", "ebnf"):
        raise Unsupported(f"the grammar syntax {syntax!r}", hint="use lark, gbnf or ebnf")
    rules = _Reader(text, syntax == "ebnf").rules()
    root = "root" if "root" in rules else next(iter(rules)) if syntax == "ebnf" else ""
    if not root:
        raise Invalid("a GBNF grammar needs a rule named root", len(text))
    return lark(rules, root)


@dataclass
class _Reader:
    """Recursive descent over the text. ebnf: W3C style, where line breaks mean nothing and strings have no escapes."""

    text: str
    ebnf: bool
    at: int = 0
    depth: int = 0
    used: dict[str, int] = field(default_factory=dict)

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self.space(lines=True)
        while self.at < len(self.text):
            head = _RULE.match(self.text, self.at)
            if head is None:
                raise Invalid("a rule was expected here: name ::= ...", self.at)
            if head[1] in found:
                raise Invalid(f"the rule {head[1]} is defined twice", self.at)
            self.at = head.end()
            self.space(lines=True)
            found[head[1]] = self.either()
            self.space(lines=True)
            if self.at < len(self.text) and not _RULE.match(self.text, self.at):
                raise Invalid("this does not continue the rule and begins no other", self.at)
        for name, position in self.used.items():
            if name not in found:
                raise Invalid(f"the rule {name} is used and not defined", position)
        if not found:
            raise Invalid("the grammar has no rules", 0)
        return found

    def space(self, lines: bool) -> None:
        """Skip blanks and comments, line breaks too where they mean nothing."""
        lines = lines or self.ebnf or self.depth > 0
        while self.at < len(self.text):
            if self.text[self.at] in (" \t\r\n" if lines else " \t"):
                self.at += 1
            elif self.ebnf and self.text.startswith("/*", self.at):
                end = self.text.find("*/", self.at)
                if end < 0:
                    raise Invalid("the comment is not closed", self.at)
                self.at = end + 2
            elif not self.ebnf and self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return

    def either(self) -> Node:
        parts = [self.row()]
        while self.text.startswith("|", self.at):
            self.at += 1
            self.space(lines=True)
            parts.append(self.row())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def row(self) -> Node:
        parts: list[Node] = []
        while (part := self.item()) is not None:
            parts.append(self.times(part))
            self.space(lines=False)
        return parts[0] if len(parts) == 1 else Row(tuple(parts))

    def item(self) -> Node | None:
        """The next element of a row, None at its end."""
        char = self.text[self.at : self.at + 1]
        if not char or char in "|)\r\n":
            return None
        if char == '"' or (self.ebnf and char == "'"):
            return self.string(char)
        if char == "[":
            return self.chars()
        if char == "(":
            return self.group()
        if char == "." and not self.ebnf:
            self.at += 1
            return Chars(((0, 0x10FFFF),))
        if self.ebnf and char == "#":
            return Chars((self.point(),) * 1)
        if self.ebnf and char == "-":
            raise Unsupported("the difference of two expressions", self.at, "write out what remains")
        if char == "<":
            raise Unsupported("a token in a grammar", self.at, "a constraint is of text: write the text")
        name = _NAME.match(self.text, self.at)
        if name is None:
            raise Invalid(f"{char!r} begins nothing that can stand here", self.at)
        if _RULE.match(self.text, self.at):
            if self.depth:
                raise Invalid("the parenthesis is not closed before the next rule", self.at)
            return None
        self.used.setdefault(name[0], self.at)
        self.at = name.end()
        return Name(name[0])

    def group(self) -> Node:
        opened = self.at
        self.at += 1
        self.depth += 1
        self.space(lines=True)
        inside = self.either()
        self.depth -= 1
        if not self.text.startswith(")", self.at):
            raise Invalid("the parenthesis is not closed", opened)
        self.at += 1
        return inside

    def times(self, part: Node) -> Node:
        while True:
            char = self.text[self.at : self.at + 1]
            if char in ("*", "+", "?") and char:
                self.at += 1
                part = Times(part, int(char == "+"), 1 if char == "?" else None)
            elif char == "{":
                found = _REPEAT.match(self.text, self.at)
                if found is None:
                    raise Invalid("a repetition is written {m}, {m,} or {m,n}", self.at)
                least = int(found[1])
                most = (int(found[3]) if found[3] else None) if found[2] else least
                if most is not None and most < least:
                    raise Invalid(f"the repetition allows at least {least} and at most {most}", self.at)
                self.at = found.end()
                part = Times(part, least, most)
            else:
                return part

    def string(self, quote: str) -> Node:
        opened = self.at
        self.at += 1
        out = ""
        while not self.text.startswith(quote, self.at):
            if self.at >= len(self.text) or self.text[self.at] == "\n":
                raise Invalid("the string is not closed", opened)
            out += self.char()
        self.at += 1
        return Text(out)

    def char(self) -> str:
        """One character of a string or class, escapes undone."""
        char = self.text[self.at]
        self.at += 1
        if char != "\\" or self.ebnf:
            return char
        kind = self.text[self.at : self.at + 1]
        self.at += 1
        if kind in _HEX:
            digits = self.text[self.at : self.at + _HEX[kind]]
            if not re.fullmatch(f"[0-9A-Fa-f]{{{_HEX[kind]}}}", digits) or int(digits, 16) > 0x10FFFF:
                raise Invalid(f"\\{kind} needs {_HEX[kind]} hexadecimal digits of a character", self.at - 2)
            self.at += _HEX[kind]
            return chr(int(digits, 16))
        if kind not in _ESCAPES:
            raise Invalid(f"\\{kind} is no escape of this syntax", self.at - 2)
        return _ESCAPES[kind]

    def point(self) -> tuple[int, int]:
        """A single character of a class: itself, an escape, or W3C's #xN."""
        if self.ebnf and self.text.startswith("#x", self.at):
            found = re.compile("#x([0-9A-Fa-f]{1,6})").match(self.text, self.at)
            if found is None or int(found[1], 16) > 0x10FFFF:
                raise Invalid("#x needs the hexadecimal number of a character", self.at)
            self.at = found.end()
            return (int(found[1], 16),) * 2
        return (ord(self.char()),) * 2

    def chars(self) -> Node:
        opened = self.at
        self.at += 1
        negated = self.text.startswith("^", self.at)
        self.at += negated
        ranges: list[tuple[int, int]] = []
        while not self.text.startswith("]", self.at):
            if self.at >= len(self.text):
                raise Invalid("the character class is not closed", opened)
            low = self.point()[0]
            high = low
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                if self.at >= len(self.text):
                    raise Invalid("the character class is not closed", opened)
                high = self.point()[0]
            if high < low:
                raise Invalid(f"the range {chr(low)}-{chr(high)} runs backwards", self.at)
            ranges.append((low, high))
        self.at += 1
        if not ranges and not negated:
            raise Invalid("an empty character class matches nothing", opened)
        return Chars(tuple(ranges), negated)
