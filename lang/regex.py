"""Regular expressions in Python's `re` syntax as trees of character sets, or a clear error.

Knows: the standard library's own parser, flags, Unicode. Must not know: engines, tokens, how a tree is enforced.
A tree stands for the texts that `re.fullmatch` accepts. Flags, anchors and laziness are gone from it by then; what is
left of zero-width constructs is look-ahead.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from branchwork.lang.constraint import Invalid, Unsupported

try:
    from re import _constants as sre  # type: ignore[attr-defined, unused-ignore]
    from re import _parser as parser  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # Python 3.10
    import sre_constants as sre  # type: ignore[no-redef, import-not-found, unused-ignore]
    import sre_parse as parser  # type: ignore[no-redef, import-not-found, unused-ignore]

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends inside, sorted, apart, without surrogates

VALID: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # every character that UTF-8 can write


class Node(msgspec.Struct, frozen=True, tag_field="k"):
    """Base of every node of a tree."""


class Text(Node, frozen=True, tag="text"):
    """Exactly these characters."""

    text: str


class Chars(Node, frozen=True, tag="chars"):
    """One character out of a set; no text at all when the set is empty."""

    ranges: Ranges


class Concat(Node, frozen=True, tag="concat"):
    """The parts in order; the empty text when there is none."""

    parts: tuple[Tree, ...]


class Either(Node, frozen=True, tag="either"):
    """One of the options; no text at all when there is none."""

    options: tuple[Tree, ...]


class Many(Node, frozen=True, tag="many"):
    """`part` least .. most times; most -1: no limit."""

    part: Tree
    least: int
    most: int


class Look(Node, frozen=True, tag="look"):
    """Zero-width: what follows, up to the end of the innermost Scope, is (negative: is not) a text of `rest`."""

    rest: Tree
    negative: bool


class Scope(Node, frozen=True, tag="scope"):
    """`part`, whose look-aheads see no further than its end."""

    part: Tree


Tree = Text | Chars | Concat | Either | Many | Look | Scope

ANY = Chars(VALID)
ANYTHING = Many(ANY, 0, -1)
EMPTY = Concat(())
NOTHING = Either(())


def parse(pattern: str, unicode: bool = False) -> Tree:
    """The tree of a pattern that a whole text has to match.

    unicode: \\w \\d \\s and (?i) go beyond ASCII (the pattern's own (?a) and (?u) come before it). Raises Invalid with
    the position for what is no regular expression, Unsupported for what no automaton here follows: look-behind,
    back-references, word boundaries, conditional groups, anchors inside, atomic and possessive parts that matter.
    """
    return _parse(pattern, unicode)


@lru_cache(maxsize=256)
def search(pattern: str, unicode: bool = False) -> Tree:
    """The tree of all texts that have a match of the pattern somewhere in them, as JSON Schema means it: ^ and $ stand
    at the edges, also at those of top-level alternatives, and $ is the very end. Raises as `parse` does."""
    parsed = _checked(pattern, unicode)
    try:
        tree = _Reader(pattern).anywhere(list(parsed), parsed.state.flags)
    except RecursionError:
        raise Invalid(f"the groups of {_short(pattern)} are nested too deeply") from None
    return Scope(tree) if looks(tree) else tree


@lru_cache(maxsize=256)
def _parse(pattern: str, unicode: bool) -> Tree:
    parsed = _checked(pattern, unicode)
    try:
        tree = _Reader(pattern).sequence(list(parsed), parsed.state.flags, True, True)
    except RecursionError:
        raise Invalid(f"the groups of {_short(pattern)} are nested too deeply") from None
    return Scope(tree) if looks(tree) else tree


def _checked(pattern: str, unicode: bool) -> Any:
    try:
        return _read(pattern, unicode)
    except re.error as error:
        position = -1 if error.pos is None else error.pos
        if re.match(r"bad escape \\[pP]", error.msg):
            hint = "write the characters as a class, or use \\w with unicode=True"
            raise Unsupported("Unicode property class \\p", position, hint) from None
        where = f" at position {position}" if position >= 0 else ""
        raise Invalid(f"not a regular expression: {error.msg}{where} in {_short(pattern)}", position) from None
    except (OverflowError, RecursionError) as error:
        raise Invalid(f"not a regular expression that Python reads: {error} in {_short(pattern)}") from None


def _read(pattern: str, unicode: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # re warns of sets that a future version may read otherwise
        try:
            return parser.parse(pattern, 0 if unicode else re.ASCII)
        except ValueError as error:  # (?u) against re.ASCII: the pattern's own word wins
            if isinstance(error, re.error) or "incompatible" not in str(error):
                raise
            return parser.parse(pattern, 0)


def looks(tree: Tree) -> bool:
    """Whether there is a look-ahead anywhere in the tree."""
    return isinstance(tree, Look) or any(looks(child) for child in children(tree))


def children(tree: Tree) -> tuple[Tree, ...]:
    match tree:
        case Concat(parts) | Either(parts):
            return parts
        case Many(part=part) | Look(rest=part) | Scope(part=part):
            return (part,)
    return ()


def union(*sets: Iterable[tuple[int, int]]) -> Ranges:
    """All characters of the given ranges, which may overlap and come in any order."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(pair for ranges in sets for pair in ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return _valid(merged)


def complement(ranges: Ranges) -> Ranges:
    """Every valid character that is not in `ranges`."""
    gaps, at = [], 0
    for first, last in ranges:
        if at < first:
            gaps.append((at, first - 1))
        at = last + 1
    return _valid([*gaps, (at, 0x10FFFF)] if at <= 0x10FFFF else gaps)


def singles(characters: Iterable[str]) -> Ranges:
    return union([(ord(char), ord(char)) for char in characters])


def disjoint(left: Ranges, right: Ranges) -> bool:
    return all(last < begin or end < first for first, last in left for begin, end in right)


def _valid(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The ranges without surrogates, which no text has."""
    cut = []
    for first, last in ranges:
        cut += [(first, min(last, 0xD7FF)), (max(first, 0xE000), last)]
    return tuple((first, last) for first, last in cut if first <= last)


# --- from the standard parser's nodes

_TYPE_FLAGS = re.ASCII | re.LOCALE | re.UNICODE
_BEGINS = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)
_ENDS = (sre.AT_END, sre.AT_END_STRING)
_AT_BEGIN, _AT_END = ([(sre.AT, kind) for kind in kinds] for kinds in (_BEGINS, _ENDS))
_ZERO_WIDTH = (sre.AT, sre.ASSERT, sre.ASSERT_NOT)
_ATOMIC = getattr(sre, "ATOMIC_GROUP", None)  # from Python 3.11 on
_POSSESSIVE = getattr(sre, "POSSESSIVE_REPEAT", None)
_MARKS = {  # what stands in a pattern where the construct does
    "look-behind": r"\(\?<[=!]",
    "back-reference": r"\\[1-9]|\(\?P=",
    "conditional group": r"\(\?\(",
    "word boundary": r"\\[bB]",
    "atomic group": r"\(\?>",
    "possessive repeat": r"[*+?}]\+",
    "look-ahead": r"\(\?[=!]",
    "anchor inside the pattern": r"(?<!\A)(?:[\^$](?!\Z)|\\A|\\Z(?!\Z))",
}


class _Reader:
    """Turns parsed nodes into a tree. first, last: the node stands at the pattern's beginning, end; there ^ and $ say
    nothing that fullmatch does not. In a look-ahead `last` is its end, where $ does say something: see `rest`."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def sequence(self, items: list[Any], flags: int, first: bool, last: bool, inside: bool = False) -> Tree:
        """inside: in a look-ahead, so that an end anchor becomes the text that it lets follow."""
        parts: list[Tree] = []
        tail = max((i for i, item in enumerate(items) if item[0] is not sre.AT), default=0)
        at_first = first
        for i, (op, argument) in enumerate(items):
            at_last = last and i >= tail
            if op is sre.AT:
                parts.append(self._anchor(argument, flags, at_first, at_last, inside))
            elif op is _POSSESSIVE or op is _ATOMIC:
                parts.append(self._atomic(op, argument, flags, items[i + 1 : i + 2], last))
            else:
                parts.append(self._one(op, argument, flags, at_first, at_last, inside))
            at_first = at_first and op in _ZERO_WIDTH
        return concat(parts)

    def _one(self, op: Any, argument: Any, flags: int, first: bool, last: bool, inside: bool) -> Tree:
        if op in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
            return self._chars(op, argument, flags)
        if op is sre.BRANCH:
            options = [self.sequence(list(option), flags, first, last, inside) for option in argument[1]]
            return options[0] if len(options) == 1 else Either(tuple(options))
        if op is sre.SUBPATTERN:
            _, added, removed, items = argument
            flags = (flags & ~_TYPE_FLAGS if added & _TYPE_FLAGS else flags) | added
            return self.sequence(list(items), flags & ~removed, first, last, inside)
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            least, most, items = argument
            once = most == 1
            part = self.sequence(list(items), flags, first and once, last and once and not inside)
            return Many(part, int(least), -1 if most is sre.MAXREPEAT else int(most))
        if op in (sre.ASSERT, sre.ASSERT_NOT):
            direction, items = argument
            if direction < 0:
                raise self._unsupported("look-behind", "say what may stand there with classes or alternatives")
            return Look(self.rest(list(items), flags, first), op is sre.ASSERT_NOT)
        if op is sre.FAILURE:
            return NOTHING
        if op is sre.GROUPREF:
            raise self._unsupported("back-reference", "a finite automaton cannot remember text: list the alternatives")
        if op is sre.GROUPREF_EXISTS:
            raise self._unsupported("conditional group", "write the two cases as alternatives")
        raise self._unsupported(str(op).lower(), "")

    def anywhere(self, items: list[Any], flags: int) -> Tree:
        """All texts with a match in them."""
        if len(items) == 1 and items[0][0] is sre.BRANCH:
            return Either(tuple(self.anywhere(list(option), flags) for option in items[0][1][1]))
        if len(items) == 1 and items[0][0] is sre.SUBPATTERN:
            _, added, removed, inner = items[0][1]
            flags = ((flags & ~_TYPE_FLAGS if added & _TYPE_FLAGS else flags) | added) & ~removed
            return self.anywhere(list(inner), flags)
        if flags & re.MULTILINE and any(item[0] is sre.AT for item in items):
            raise self._unsupported("anchor inside the pattern", "(?m) lets it stand at every line")
        begins, ends = bool(items) and items[0] in _AT_BEGIN, bool(items) and items[-1] in _AT_END
        found = self.sequence(items, flags, begins, ends)
        return concat([*([] if begins else [ANYTHING]), found, *([] if ends else [ANYTHING])])

    def rest(self, items: list[Any], flags: int, first: bool) -> Tree:
        """A look-ahead's body as the texts that may follow in whole: anything after it unless it ends with $ or \\Z."""
        if not self._anchored(items):
            return concat([self.sequence(items, flags, first, False), ANYTHING])
        cut = len(items)
        while cut and items[cut - 1][0] is sre.AT:
            cut -= 1
        if cut < len(items):
            return self.sequence(items, flags, first, True, True)
        head, (op, argument) = items[:-1], items[-1]
        before = self.sequence(head, flags, first, False)
        first = first and all(item[0] in _ZERO_WIDTH for item in head)
        if op is sre.SUBPATTERN:
            _, added, removed, inner = argument
            flags = ((flags & ~_TYPE_FLAGS if added & _TYPE_FLAGS else flags) | added) & ~removed
            return concat([before, self.rest(list(inner), flags, first)])
        return concat([before, Either(tuple(self.rest(list(option), flags, first) for option in argument[1]))])

    def _anchored(self, items: list[Any]) -> bool:
        """Whether an end anchor stands at the right edge, in groups and alternatives too."""
        if not items:
            return False
        op, argument = items[-1]
        if op is sre.SUBPATTERN:
            return self._anchored(list(argument[3]))
        if op is sre.BRANCH:
            return any(self._anchored(list(option)) for option in argument[1])
        return op is sre.AT and argument in _ENDS

    def _anchor(self, kind: Any, flags: int, first: bool, last: bool, inside: bool) -> Tree:
        if kind in (sre.AT_BOUNDARY, sre.AT_NON_BOUNDARY):
            raise self._unsupported("word boundary", "say which characters may stand beside each other")
        if kind in _BEGINS and first:
            return EMPTY
        if kind in _ENDS and last:
            if not inside or kind is sre.AT_END_STRING:
                return EMPTY
            return Many(concat([Text("\n"), *([ANYTHING] if flags & re.MULTILINE else [])]), 0, 1)
        raise self._unsupported("anchor inside the pattern", "the whole text is matched anyway: leave it out")

    def _atomic(self, op: Any, argument: Any, flags: int, after: list[Any], last: bool) -> Tree:
        """An atomic part is a plain one where giving back could not help: one set repeated, then a character not in it
        or the pattern's end."""
        if op is _ATOMIC:
            name, part = "atomic group", self.sequence(list(argument), flags, False, False)
        else:
            name, (least, most, items) = "possessive repeat", argument
            body = self.sequence(list(items), flags, False, False)
            part = Many(body, int(least), -1 if most is sre.MAXREPEAT else int(most))
        fixed = isinstance(part, Chars | Text)
        if isinstance(part, Many) and (isinstance(part.part, Chars) or part.part == Text(_one_char(part.part))):
            if not after:
                fixed = last
            elif after[0][0] in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
                following = self._chars(after[0][0], after[0][1], flags)
                fixed = disjoint(_ranges(part.part), _ranges(following))
        if not fixed:
            raise self._unsupported(name, "what it forbids depends on the order of matching: use a plain one")
        return part

    def _chars(self, op: Any, argument: Any, flags: int) -> Tree:
        if op is sre.ANY:
            return Chars(VALID if flags & re.DOTALL else complement(singles("\n")))
        items = [(sre.LITERAL, argument)] if op is not sre.IN else argument
        negative, found = op is sre.NOT_LITERAL, []
        for kind, value in items:
            if kind is sre.NEGATE:
                negative = True
            elif kind is sre.LITERAL:
                found.append((value, value))
            elif kind is sre.RANGE:
                found.append(tuple(value))
            else:
                found += _category(str(value), bool(flags & re.ASCII))
        ranges = union(found)
        if flags & re.IGNORECASE:
            ranges = _fold(ranges, bool(flags & re.ASCII))
        ranges = complement(ranges) if negative else ranges
        if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
            return Text(chr(ranges[0][0]))
        return Chars(ranges)

    def _unsupported(self, construct: str, hint: str) -> Unsupported:
        return Unsupported(construct, _position(self.pattern, construct), hint)


def concat(parts: Iterable[Tree]) -> Tree:
    """The parts in order, neighbouring texts joined."""
    flat: list[Tree] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Concat) else (part,):
            before = flat[-1] if flat else None
            if isinstance(piece, Text) and isinstance(before, Text):
                flat[-1] = Text(before.text + piece.text)
            elif piece != Text(""):
                flat.append(piece)
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def _ranges(tree: Tree) -> Ranges:
    return tree.ranges if isinstance(tree, Chars) else singles(tree.text) if isinstance(tree, Text) else VALID


def _one_char(tree: Tree) -> str:
    return tree.text[:1] if isinstance(tree, Text) else ""


def _position(pattern: str, construct: str) -> int:
    """Where the first such construct stands, -1 when the text does not show it."""
    mark = _MARKS.get(construct)
    if mark is None:
        return -1
    scan = rf"(?P<it>{mark})|\\.|\(\?#[^)]*\)|\[\^?\]?(?:\\.|[^\]\\])*\]|."
    return next((found.start() for found in re.finditer(scan, pattern, re.DOTALL) if found["it"] is not None), -1)


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")


# --- character sets that flags decide


@lru_cache(maxsize=16)
def _category(name: str, ascii_only: bool) -> Ranges:
    """\\d \\s \\w and their opposites, as the running Python's `re` has them."""
    _, *negative, kind = name.split("_")  # CATEGORY_NOT_DIGIT
    flag = re.ASCII if ascii_only else 0
    found = union(_runs(re.compile(rf"\{kind[0].lower()}+", flag), range(0x80 if ascii_only else 0x110000)))
    return complement(found) if negative else found


def _runs(pattern: re.Pattern[str], codes: range) -> Iterator[tuple[int, int]]:
    text = "".join(map(chr, codes))
    for run in pattern.finditer(text):
        yield run.start() + codes.start, run.end() - 1 + codes.start


@lru_cache(maxsize=1)
def _cased() -> str:
    """Every character that has another case."""
    return "".join(char for char in map(chr, range(0x110000)) if char.lower() != char or char.upper() != char)


@lru_cache(maxsize=1024)
def _fold(ranges: Ranges, ascii_only: bool) -> Ranges:
    """The set together with all that (?i) takes for one of its characters, asked of `re` itself."""
    if not ranges:
        return ranges
    text = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
    pattern = re.compile(f"[{text}]", re.IGNORECASE | (re.ASCII if ascii_only else 0))
    candidates = _cased() if not ascii_only else "".join(map(chr, range(0x41, 0x7B)))
    return union(ranges, singles(pattern.findall(candidates)))
