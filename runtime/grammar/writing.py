"""Unions of shapes as the JSON Schema that llguidance enforces exactly; whatever it cannot have is named.

Knows: shapes, which schemas llguidance takes. Must not know: keywords' meanings in other drafts, references.

Where a choice between too much and too little is free, too little is written: every text is then still right. Only
where nothing sound can be said is a part left out, and the note says loose.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, permutations
from math import gcd, lcm
from typing import Any

from branchwork.lang.constraint import TooBig
from branchwork.lang.regex import NOTHING
from branchwork.runtime.grammar.emptiness import verdict
from branchwork.runtime.grammar.patterns import anything_but, searches, taken_apart, texts, translate
from branchwork.runtime.grammar.patterns import written as spelled
from branchwork.runtime.grammar.properties import object_options
from branchwork.runtime.grammar.reading import Reader
from branchwork.runtime.grammar.shapes import (
    ANYTHING,
    FALSE,
    TRUE,
    Array,
    Expr,
    Lits,
    Number,
    Object,
    Shape,
    String,
    conj,
    neg,
)

FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"))
_MOST_DEFINITIONS = 5_000
_DEEPEST = 40  # definitions inside each other; Python's stack has room for three times that
_ALTERNATIVES = 64  # that one shape may be split into
_POSITIONS = 6  # among which an item that `contains` asks for is put
_INTERVALS = 12  # on each side of zero, for numbers that are no multiple of something
_WIDEST = 2**63 - 1
_DIGITS = 12  # of a multipleOf
Json = dict[str, Any]


class Writer:
    """notes: what is not written exactly, with whether that lets wrong values through."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.notes: dict[str, bool] = {}
        self.definitions: dict[str, Any] = {}
        self._names: dict[Expr, str] = {}
        self._used: set[str] = set()
        self._count = self._depth = 0
        self._later: list[Expr] = []  # definitions that are too deep inside others to be written there
        self._small: dict[Expr, Any] = {}

    def note(self, text: str, loose: bool) -> None:
        self.notes[text] = self.notes.get(text, False) or loose

    def schema(self, expr: Expr) -> Any:
        """A schema, or a reference to a definition where one is being written or is big."""
        if expr == TRUE:
            return {}
        if expr == FALSE:
            return False
        if expr in self._small:
            return self._small[expr]
        if expr in self._names:
            self._used.add(self._names[expr])
            return {"$ref": f"#/$defs/{self._names[expr]}"}
        if self._count >= _MOST_DEFINITIONS:
            raise TooBig(f"the schema unfolds into more than {_MOST_DEFINITIONS:,} subschemas")
        self._count += 1
        name = self._names[expr] = f"d{self._count}"
        if self._depth >= _DEEPEST:
            self._later.append(expr)
            self._used.add(name)
            return {"$ref": f"#/$defs/{name}"}
        self._depth += 1
        written = self.union(self.reader.union(expr))
        self._depth -= 1
        if name in self._used or _nested(written):
            self.definitions[name] = written
            self._used.add(name)
            return {"$ref": f"#/$defs/{name}"}
        del self._names[expr]
        self._small[expr] = written
        return written

    def whole(self) -> Any:
        """The schema of everything, with its definitions."""
        written = self.schema(self.reader.root)
        while self._later:
            expr = self._later.pop()
            self.definitions[self._names[expr]] = self.union(self.reader.union(expr))
        root = str(written.get("$ref", "")).rpartition("/")[2] if isinstance(written, dict) else ""
        if written is False or self.definitions.get(root) is False:
            return False
        self.notes = {**self.reader.notes, **self.notes}
        return {**written, "$defs": self.definitions} if self.definitions else written

    def union(self, shapes: tuple[Shape, ...]) -> Any:
        shapes = tuple(dict.fromkeys(map(_bare, shapes)))
        if set(shapes) >= set(ANYTHING):
            return {}
        options: list[Any] = []
        values: dict[str, None] = {}
        for shape in shapes:
            if isinstance(shape, Lits):
                values.update(dict.fromkeys(shape.values))
            else:
                options += self.options(shape)
        if values:
            options.insert(0, {"enum": [self.reader.values.get(text, json.loads(text)) for text in values]})
        options = list({json.dumps(option): option for option in options}.values())
        if not options:
            return False
        return options[0] if len(options) == 1 else {"anyOf": options}

    def options(self, shape: Shape) -> list[Any]:
        match shape:
            case Number():
                return self._numbers(shape)
            case String():
                return self._strings(shape)
            case Array():
                return self._arrays(shape)
            case Object():
                return self._objects(shape)
        raise TypeError(type(shape).__name__)

    # --- numbers

    def _numbers(self, shape: Number) -> list[Any]:
        if shape.gaps:
            return self._between(shape)
        written: Json = {"type": "integer" if shape.integer else "number"}
        for bound, plain, strict in (
            (shape.low, "minimum", "exclusiveMinimum"),
            (shape.high, "maximum", "exclusiveMaximum"),
        ):
            if bound is None:
                continue
            if abs(bound[0]) > _WIDEST:
                self.note("bounds beyond 64 bits are not enforced", True)
                continue
            written[strict if bound[1] else plain] = _json_number(bound[0])
        steps = [step for step in shape.multiples if not (shape.integer and step == 1)]
        if any(len(f"{step.numerator}{step.denominator}") > _DIGITS for step in steps):
            self.note("multipleOf with very many digits is not enforced", True)
            steps = []
        if len(steps) == 1:
            written["multipleOf"] = _json_number(steps[0])
        elif steps:
            common = steps[0]
            for step in steps[1:]:
                common = _common_multiple(common, step)
            written["multipleOf"] = _json_number(common)
        return [written]

    def _between(self, shape: Number) -> list[Any]:
        """Numbers that are no multiple of something: the open intervals between its multiples, those near zero."""
        gap = min(shape.gaps)
        if len(shape.gaps) > 1:
            self.note("a number that is no multiple of several others may be one of all but the smallest", True)
        first, last = -_INTERVALS, _INTERVALS
        if shape.low:
            first = int(shape.low[0] // gap)
            last = first + 2 * _INTERVALS
        if shape.high:
            last = min(last, int(shape.high[0] // gap)) if shape.low else int(shape.high[0] // gap)
            first = first if shape.low else last - 2 * _INTERVALS
        found: list[Any] = []
        for number in range(first, last + 1):
            inside = Number(shape.integer, (gap * number, True), (gap * (number + 1), True), shape.multiples)
            both = self.reader.both(replace(shape, gaps=()), inside)
            if isinstance(both, Number):
                found += self._numbers(both)
        if not (shape.low and shape.high and (shape.high[0] - shape.low[0]) / gap <= 2 * _INTERVALS):
            self.note(f"numbers that are no multiple of {_json_number(gap)} are only written near the bound", False)
        return found

    # --- strings

    def _strings(self, shape: String) -> list[Any]:
        written: Json = {"type": "string"}
        length: Json = {"minLength": shape.low} if shape.low else {}
        if shape.high is not None:
            length["maxLength"] = shape.high
        patterns = self._patterns(shape)
        formats = [form for form in shape.formats if form in FORMATS]
        parts: list[Json] = [{"pattern": pattern} for pattern in patterns] + [{"format": form} for form in formats]
        if not parts:
            return [{**written, **length}]
        written.update(parts[0])
        if len(parts) > 1:
            written["allOf"] = [{"type": "string", **part} for part in parts[1:]]
        if len(parts) == 1 and not length:
            return [written]
        said = verdict(json.dumps({**written, **length}))
        if said == "undecided" and length:
            self.note("the length of a string is not enforced beside a pattern too large to combine with it", True)
            length = {}
            said = verdict(json.dumps(written))
        if said == "undecided":
            self.note("only one of several patterns too large to combine is enforced", True)
            written = {"type": "string", **parts[0]}
        return [] if said == "empty" else [{**written, **length}]

    def _patterns(self, shape: String) -> list[str]:
        """Patterns of llguidance that must all be found."""
        apart = [taken_apart(pattern) for pattern in shape.patterns]
        found = [kept for must, _ in apart for pattern in must if (kept := self.translated(pattern)) is not None]
        for pattern in (*shape.nots, *(pattern for _, never in apart for pattern in never)):
            others = texts((), (pattern,))
            if others is None:
                self.note(f"a string may contain what must not match {pattern!r}", True)
            else:
                found.append("[^\\s\\S]" if others == NOTHING else spelled(others))
        if shape.excluded:
            found.append(anything_but(shape.excluded))
        return list(dict.fromkeys(found))

    def translated(self, pattern: str) -> str | None:
        """An ECMA pattern as llguidance takes it; None when it cannot, which is noted."""
        kept = translate(pattern)
        if kept is None:
            searches(pattern, "")  # says so when it is no regular expression at all
            self.note(
                f"the pattern {pattern!r} has back-references or more look-around than is bearable and is not enforced",
                True,
            )
        return kept

    # --- arrays

    def _arrays(self, shape: Array) -> list[Any]:
        if shape.excluded:
            self.note("single arrays that are excluded can be written", True)
            return self._arrays(replace(shape, excluded=()))
        if shape.unique and shape.high is not None and shape.high <= 1:
            return self._arrays(replace(shape, unique=False))
        if shape.repeats:
            self.note("items that must repeat may be all different", True)
            return self._arrays(replace(shape, repeats=False))
        if shape.contains:
            return self._containing(shape)
        if shape.unique:
            return self._distinct(shape)
        written: Json = {"type": "array"}
        high = shape.high
        if shape.prefix:
            written["prefixItems"] = [self.schema(item) for item in shape.prefix]
        if shape.rest != TRUE:
            written["items"] = self.schema(shape.rest)
            if written["items"] is False and (high is None or high > len(shape.prefix)):
                high = len(shape.prefix)
        if high is not None and high < shape.low:
            return []
        if shape.low:
            written["minItems"] = shape.low
        if high is not None:
            written["maxItems"] = high
        return [written]

    def _containing(self, shape: Array) -> list[Any]:
        """The items asked for at certain places among the first few; all places, where there are not more."""
        (what, least, most, skip), *others = shape.contains
        shape = replace(shape, contains=tuple(others))
        if most is None and least <= 0:
            return self._arrays(shape)
        not_it = TRUE if most is None else neg(what)
        if most is not None and least == 0 and most == 0:
            length = max(len(shape.prefix), skip)
            prefix = tuple(conj(shape.at(i), not_it) if i >= skip else shape.at(i) for i in range(length))
            return self._arrays(replace(shape, prefix=prefix, rest=conj(shape.rest, not_it)))
        places = range(skip, skip + max(_POSITIONS, least))
        if shape.high is not None and shape.high <= places.stop:
            places = range(skip, shape.high)
        else:
            self.note(f"what contains asks for stands among the first {places.stop} items", False)
        found: list[Any] = []
        counts = range(least, least + 1) if most is None else range(least, min(most, len(places)) + 1)
        for count in counts:
            for chosen in combinations(places, count):
                length = max(len(shape.prefix), chosen[-1] + 1 if chosen else 0, skip)
                items: list[Expr] = []
                for index in range(length):
                    extra = what if index in chosen else not_it if index >= skip else TRUE
                    items.append(conj(shape.at(index), extra))
                low = max(shape.low, chosen[-1] + 1 if chosen else 0)
                option = replace(shape, prefix=tuple(items), rest=conj(shape.rest, not_it), low=low)
                met = self.reader.both(option, Array())
                found += self._arrays(met) if isinstance(met, Array) else []
        if len(found) > _ALTERNATIVES:
            self.note("contains with these counts is not enforced", True)
            return self._arrays(shape)
        return found

    def _distinct(self, shape: Array) -> list[Any]:
        """uniqueItems, where the items are a few known values or the array is short."""
        length = shape.high if shape.high is not None else None
        kinds = [self.reader.union(item) for item in (*shape.prefix, shape.rest)]
        known = list(dict.fromkeys(v for kind in kinds for s in kind if isinstance(s, Lits) for v in s.values))
        if all(isinstance(s, Lits) for kind in kinds for s in kind):
            most = min(len(known), length if length is not None else len(known))
            total = sum(_ordered(len(known), size) for size in range(shape.low, most + 1))
            if total <= 400:
                lists = (
                    [json.loads(text) for text in chosen]
                    for size in range(shape.low, most + 1)
                    for chosen in permutations(known, size)
                )
                free = replace(shape, unique=False)
                values = [items for items in lists if self.reader.holds(items, free)]
                return [{"enum": values}] if values else []
            if length is None or length > len(known):
                shape = replace(shape, high=len(known))
        self.note("items that must be unique can be equal", True)
        return self._arrays(replace(shape, unique=False))

    # --- objects

    def _objects(self, shape: Object) -> list[Any]:
        return object_options(self, shape)


def _nested(written: Any) -> bool:
    """Whether it is more than a leaf, so that writing it twice would cost."""
    return isinstance(written, dict) and len(json.dumps(written)) > 200


def _bare(shape: Shape) -> Shape:
    """Without what only unevaluated keywords ask for."""
    if isinstance(shape, Array):
        return replace(shape, seen=0, seen_also=())
    return replace(shape, seen=((), ())) if isinstance(shape, Object) else shape


def _json_number(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def _common_multiple(left: Fraction, right: Fraction) -> Fraction:
    return Fraction(lcm(left.numerator, right.numerator), gcd(left.denominator, right.denominator))


def _ordered(count: int, size: int) -> int:
    """Ways to pick `size` of `count` things in order."""
    found = 1
    for number in range(count - size + 1, count + 1):
        found *= number
    return found
