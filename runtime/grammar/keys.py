"""Which names an object's further properties may have, and what holds for each: patterns that do not meet, and a rest.

Knows: groups of properties, patterns as sets of texts. Must not know: keywords, how values are written.

JSON Schema lets a name match several patterns and then all must hold. Where patterns meet they are cut into pieces, one
for each set of patterns that a name can match; what propertyNames says is cut out of each piece and of the rest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

from branchwork.lang.regex import ANY, NOTHING, Either, Many, Tree
from branchwork.runtime.grammar.patterns import among, disjoint, searches, texts, together, translate, written
from branchwork.runtime.grammar.reading import Reader
from branchwork.runtime.grammar.shapes import FALSE, TRUE, Expr, Group, Lits, Object, String, conj
from branchwork.runtime.grammar.values import of

_MOST_MEETING = 4  # patterns whose sets are all looked at
_WORD = re.compile(r"[\w-]+")


class Notes(Protocol):
    reader: Reader

    def note(self, text: str, loose: bool) -> None: ...

    def translated(self, pattern: str) -> str | None: ...


@dataclass(frozen=True)
class Further:
    """named: properties that only propertyNames names. patterns: as llguidance reads them, none meets another."""

    named: tuple[tuple[str, Expr], ...] = ()
    patterns: tuple[tuple[str, Expr], ...] = ()
    rest: Expr = TRUE


@dataclass(frozen=True)
class _Piece:
    """Names that match all of `inside` and none of `outside`."""

    inside: tuple[str, ...]
    outside: tuple[str, ...]
    what: Expr

    def tree(self) -> Tree | None:
        return texts(self.inside, self.outside)


def further(notes: Notes, shape: Object, known: set[str]) -> Further:
    """What holds for the properties of an object that are not among `known`."""
    rest = conj(*(group.rest for group in shape.groups))
    patterns = []
    for pattern in dict.fromkeys(p for group in shape.groups for p, _ in group.patterns):
        if notes.translated(pattern) is None:  # what it said of values is lost; nothing is said of names it would match
            rest = TRUE if rest == FALSE else rest
        else:
            patterns.append(pattern)
    if not shape.names:
        return Further((), _spelled(notes, shape.groups, patterns, rest, known), rest)
    return _named(notes, shape, patterns, rest, known)


def _said(groups: tuple[Group, ...], matched: tuple[str, ...]) -> Expr:
    """What holds for a name that matches exactly these patterns."""
    parts = []
    for group in groups:
        own = [what for pattern, what in group.patterns if pattern in matched]
        parts.append(conj(*own) if own else group.rest)
    return conj(*parts)


def _meeting(patterns: list[str]) -> list[list[str]]:
    """The patterns in sets that do not meet each other."""
    found: list[list[str]] = []
    for pattern in patterns:
        meets = [some for some in found if not all(disjoint(pattern, other) for other in some)]
        found = [some for some in found if some not in meets]
        found.append([*(other for some in meets for other in some), pattern])
    return found


def _pieces(groups: tuple[Group, ...], some: list[str]) -> list[_Piece]:
    found = []
    for size in range(1, len(some) + 1 if len(some) <= _MOST_MEETING else 1):
        for inside in combinations(some, size):
            outside = tuple(pattern for pattern in some if pattern not in inside)
            found.append(_Piece(inside, outside, _said(groups, inside)))
    return found


def _spelled(
    notes: Notes, groups: tuple[Group, ...], patterns: list[str], rest: Expr, known: set[str]
) -> tuple[tuple[str, Expr], ...]:
    found: list[tuple[str, Expr]] = []
    for some in _meeting(patterns):
        spellings = [str(translate(pattern)) for pattern in some]
        joined = spellings[0] if len(some) == 1 else "|".join(f"(?:{one})" for one in spellings)
        everything = conj(*(what for group in groups for pattern, what in group.patterns if pattern in some), rest)
        pieces = _pieces(groups, some)
        if len({piece.what for piece in pieces}) == 1:
            found.append((_unnamed(some[0], known) if len(some) == 1 else joined, pieces[0].what))
            continue
        trees = [piece.tree() for piece in pieces]
        if len(some) > _MOST_MEETING or None in trees:
            if rest == FALSE and all(_WORD.fullmatch(pattern) for pattern in some):
                notes.note("names in which one of several patterns is found are only written as that pattern", False)
                found += _exactly(groups, some)
                continue
            notes.note("names matching one of several overlapping patterns must satisfy all of them", False)
            found.append((joined, everything))
            continue
        cut = zip(trees, pieces, strict=True)
        found += [(written(tree), piece.what) for tree, piece in cut if tree is not None and tree != NOTHING]
    return tuple((pattern, what) for pattern, what in found if what != rest)


def _unnamed(pattern: str, known: set[str]) -> str:
    """The pattern without the names that are named beside it: llguidance would join what is said of both, and that it
    cannot where references go round in a circle."""
    matched = sorted(name for name in known if searches(pattern, name))
    whole = texts((pattern,)) if matched else None
    tree = together([whole], [among(matched)]) if whole is not None else None
    return str(translate(pattern)) if tree is None or tree == NOTHING else written(tree)


def _named(notes: Notes, shape: Object, patterns: list[str], rest: Expr, known: set[str]) -> Further:
    """With propertyNames."""
    names = conj(*shape.names)
    kinds = [kind for kind in notes.reader.union(names) if notes.reader.texts(kind)]
    literal = [str(json.loads(v)) for kind in kinds if isinstance(kind, Lits) for v in kind.values if v[0] == '"']
    strings = [kind for kind in kinds if isinstance(kind, String)]
    if not strings:
        return Further((), _exactly(shape.groups, [name for name in literal if name not in known]), FALSE)
    if strings == [String()]:
        return Further((), _spelled(notes, shape.groups, patterns, rest, known), rest)
    if not patterns and not literal and len(strings) == 1 and (spelled := _one_rule(strings[0])) is not None:
        return Further((), ((spelled, rest),), FALSE) if rest != FALSE else Further(rest=FALSE)
    alone = [n for n in literal if n not in known and not any(notes.reader.holds(n, kind) for kind in strings)]
    excluded = {name for kind in strings for name in kind.excluded if name not in known}
    named = tuple((name, FALSE) for name in excluded if not notes.reader.holds(name, names))
    trees = [_texts(kind) for kind in strings]
    cut: list[tuple[Tree | None, Expr]] = []
    if None not in trees:
        options = tuple(tree for tree in trees if tree is not None and tree != NOTHING)
        allowed = options[0] if len(options) == 1 else Either(options)
        outside = tuple(patterns)
        if rest != FALSE:
            cut.append((together([allowed], [texts((pattern,)) for pattern in outside]), rest))
        for some in _meeting(patterns):
            for piece in _pieces(shape.groups, some):
                tree = piece.tree()
                cut.append((None if tree is None else together([allowed, tree]), piece.what))
    if None in trees or any(tree is None for tree, _ in cut) or any(len(s) > _MOST_MEETING for s in _meeting(patterns)):
        notes.note("propertyNames is not enforced on properties that are not named", True)
        return Further(named, _spelled(notes, shape.groups, patterns, rest, known), rest)
    found = tuple((written(tree), what) for tree, what in cut if tree is not None and tree != NOTHING)
    return Further(named, found + _exactly(shape.groups, alone), FALSE)


def _exactly(groups: tuple[Group, ...], names: list[str]) -> tuple[tuple[str, Expr], ...]:
    """Some names as patterns, so that they may come in any order."""
    by_value: dict[Expr, list[str]] = {}
    for name in names:
        by_value.setdefault(conj(*(of(group, name) for group in groups)), []).append(name)
    return tuple((written(among(alike)), what) for what, alike in by_value.items())


def _one_rule(kind: String) -> str | None:
    """A rule for names that is one pattern or one length."""
    if kind.nots or kind.excluded or len(kind.patterns) > 1:
        return None
    length = kind.low or kind.high is not None
    if kind.patterns:
        return None if length else translate(kind.patterns[0])
    return f"^(?s:.){{{kind.low},{'' if kind.high is None else kind.high}}}$" if length else None


def _texts(kind: String) -> Tree | None:
    """Without what it excludes."""
    found = texts(kind.patterns, kind.nots)
    if found is None or not (kind.low or kind.high is not None):
        return found
    return together([found, Many(ANY, kind.low, -1 if kind.high is None else kind.high)])
