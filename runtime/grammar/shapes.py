"""What a JSON Schema lets through, sorted by type: a union of shapes, each a conjunction about values of one type.

Knows: JSON values, how two shapes meet, what is outside a shape. Must not know: keywords, references, grammars.

Subschemas inside a shape are expressions, worked out only when needed: ("node", n, scope), ("and", parts), ("or",
parts), ("not", part), TRUE, FALSE. So recursive schemas are no different from others.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

Expr = tuple[Any, ...]
TRUE: Expr = ("true",)
FALSE: Expr = ("false",)
Bound = tuple[Fraction, bool]  # a limit, and whether it is itself outside


def conj(*parts: Expr) -> Expr:
    flat: list[Expr] = []
    for part in parts:
        flat += part[1] if part[0] == "and" else [part]
    kept = [part for part in dict.fromkeys(flat) if part != TRUE]
    if FALSE in kept or any(part[0] == "not" and part[1] in kept for part in kept):
        return FALSE
    return TRUE if not kept else kept[0] if len(kept) == 1 else ("and", tuple(kept))


def disj(*parts: Expr) -> Expr:
    kept = [part for part in dict.fromkeys(parts) if part != FALSE]
    if TRUE in kept:
        return TRUE
    return FALSE if not kept else kept[0] if len(kept) == 1 else ("or", tuple(kept))


def neg(part: Expr) -> Expr:
    if part == TRUE:
        return FALSE
    if part == FALSE:
        return TRUE
    return part[1] if part[0] == "not" else ("not", part)


def plain(value: Any) -> Any:
    """A JSON value in which numbers that are equal look equal."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def canonical(value: Any) -> str:
    return json.dumps(plain(value), sort_keys=True)


@dataclass(frozen=True)
class Lits:
    """One of these values, each as `canonical` has it. null, true and false are always such."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Number:
    """multiples: of all of these. gaps: of none of these; 1 among them means not an integer."""

    integer: bool = False
    low: Bound | None = None
    high: Bound | None = None
    multiples: tuple[Fraction, ...] = ()
    gaps: tuple[Fraction, ...] = ()


@dataclass(frozen=True)
class String:
    """patterns: each found somewhere in it; nots: none found. formats are annotations: enforced, never negated."""

    patterns: tuple[str, ...] = ()
    nots: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    low: int = 0
    high: int | None = None
    formats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Array:
    """contains: (of what, at least, at most or None, not counting the first so many items). seen: how many items some
    keyword has evaluated, None for all. repeats: two items are equal."""

    prefix: tuple[Expr, ...] = ()
    rest: Expr = TRUE
    low: int = 0
    high: int | None = None
    contains: tuple[tuple[Expr, int, int | None, int], ...] = ()
    unique: bool = False
    repeats: bool = False
    excluded: tuple[str, ...] = ()
    seen: int | None = 0
    seen_also: tuple[Expr, ...] = ()

    def at(self, index: int) -> Expr:
        return self.prefix[index] if index < len(self.prefix) else self.rest


@dataclass(frozen=True)
class Group:
    """properties, patternProperties and additionalProperties of one schema object."""

    properties: tuple[tuple[str, Expr], ...] = ()
    patterns: tuple[tuple[str, Expr], ...] = ()
    rest: Expr = TRUE


@dataclass(frozen=True)
class Some:
    """There is a property whose value is `what` and whose name matches `pattern`, or, without one, that is none of
    `names` and matches none of `patterns`."""

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    pattern: str | None
    what: Expr


@dataclass(frozen=True)
class Object:
    """All groups hold, and properties are written in their order. names: what every name must be. seen: names and
    patterns that some keyword has evaluated, None for all."""

    groups: tuple[Group, ...] = ()
    required: tuple[str, ...] = ()
    low: int = 0
    high: int | None = None
    names: tuple[Expr, ...] = ()
    some: tuple[Some, ...] = ()
    excluded: tuple[str, ...] = ()
    seen: tuple[tuple[str, ...], tuple[str, ...]] | None = ((), ())


Shape = Lits | Number | String | Array | Object
ATOMS = Lits(("null", "false", "true"))
ANYTHING: tuple[Shape, ...] = (ATOMS, Number(), String(), Array(), Object())


def _least(*bounds: int | None) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _together(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys((*left, *right)))


def _tighter(left: Bound | None, right: Bound | None, sign: int) -> Bound | None:
    found = [bound for bound in (left, right) if bound is not None]
    return max(found, key=lambda bound: (sign * bound[0], bound[1]), default=None)


def meet(left: Shape, right: Shape) -> Shape | None:
    """Both, for shapes of the same class; None when nothing can be both. Lits are met by whoever knows expressions."""
    if isinstance(left, Number) and isinstance(right, Number):
        return possible(
            Number(
                left.integer or right.integer,
                _tighter(left.low, right.low, 1),
                _tighter(left.high, right.high, -1),
                _together(left.multiples, right.multiples),
                _together(left.gaps, right.gaps),
            )
        )
    if isinstance(left, String) and isinstance(right, String):
        return possible(
            String(
                _together(left.patterns, right.patterns),
                _together(left.nots, right.nots),
                _together(left.excluded, right.excluded),
                max(left.low, right.low),
                _least(left.high, right.high),
                _together(left.formats, right.formats),
            )
        )
    if isinstance(left, Array) and isinstance(right, Array):
        length = max(len(left.prefix), len(right.prefix))
        return possible(
            Array(
                tuple(conj(left.at(i), right.at(i)) for i in range(length)),
                conj(left.rest, right.rest),
                max(left.low, right.low),
                _least(left.high, right.high),
                _together(left.contains, right.contains),
                left.unique or right.unique,
                left.repeats or right.repeats,
                _together(left.excluded, right.excluded),
                None if left.seen is None or right.seen is None else max(left.seen, right.seen),
                _together(left.seen_also, right.seen_also),
            )
        )
    if isinstance(left, Object) and isinstance(right, Object):
        seen = None
        if left.seen is not None and right.seen is not None:
            seen = (_together(left.seen[0], right.seen[0]), _together(left.seen[1], right.seen[1]))
        return possible(
            Object(
                _together(left.groups, right.groups),
                _together(left.required, right.required),
                max(left.low, right.low),
                _least(left.high, right.high),
                _together(left.names, right.names),
                _together(left.some, right.some),
                _together(left.excluded, right.excluded),
                seen,
            )
        )
    return None


def possible(shape: Shape) -> Shape | None:
    """The shape, tidied; None when its own figures contradict each other."""
    match shape:
        case Number(integer, low, high, multiples, gaps):
            if any(step % gap == 0 for gap in gaps for step in (*multiples, *((Fraction(1),) if integer else ()))):
                return None
            if integer:
                low, high = _whole(low, 1), _whole(high, -1)
                shape = replace(shape, low=low, high=high)
            if low and high and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))):
                return None
        case String(low=low_, high=high_) | Array(low=low_, high=high_) | Object(low=low_, high=high_):
            if high_ is not None and low_ > high_:
                return None
            if isinstance(shape, String) and set(shape.patterns) & set(shape.nots):
                return None
            if isinstance(shape, Array):
                return _possible_array(shape)
            if isinstance(shape, Object) and high_ is not None and len(shape.required) > high_:
                return None
        case Lits(values):
            return shape if values else None
    return shape


def _possible_array(shape: Array) -> Array | None:
    for index, item in enumerate(shape.prefix):
        if item == FALSE:
            shape = replace(shape, prefix=shape.prefix[:index], rest=FALSE, high=_least(shape.high, index))
            break
    if shape.rest == FALSE:
        shape = replace(shape, high=_least(shape.high, len(shape.prefix)))
    if shape.unique and shape.repeats:
        return None
    least = max((least for _, least, _, _ in shape.contains), default=0)
    low = max(shape.low, least, 2 if shape.repeats else 0)
    return None if shape.high is not None and low > shape.high else replace(shape, low=low)


def _whole(bound: Bound | None, sign: int) -> Bound | None:
    if bound is None:
        return None
    value, outside = bound
    whole = math.ceil(value) if sign > 0 else math.floor(value)
    return Fraction(whole + sign if outside and whole == value else whole), False


def outside(shape: Shape) -> list[Shape]:
    """Values of the same class that are not of the shape, as a union. Lits: only what is outside among ATOMS."""
    found: list[Shape] = []
    match shape:
        case Lits(values):
            kept = possible(Lits(tuple(value for value in ATOMS.values if value not in values)))
            return [kept] if kept else []
        case Number(integer, low, high, multiples, gaps):
            found += [Number(high=(low[0], not low[1]))] if low else []
            found += [Number(low=(high[0], not high[1]))] if high else []
            found += [Number(gaps=(Fraction(1),))] if integer else []
            found += [Number(gaps=(step,)) for step in multiples]
            found += [Number(multiples=(gap,), integer=gap == 1) for gap in gaps]
        case String(patterns, nots, excluded, low_, high_):
            found += [String(high=low_ - 1)] if low_ else []
            found += [String(low=high_ + 1)] if high_ is not None else []
            found += [String(nots=(pattern,)) for pattern in patterns]
            found += [String(patterns=(pattern,)) for pattern in nots]
            found += [Lits(tuple(json.dumps(text) for text in excluded))] if excluded else []
        case Array():
            found += _outside_array(shape)
        case Object():
            found += _outside_object(shape)
    return [whole for part in found if (whole := possible(part)) is not None]


def _outside_array(shape: Array) -> list[Shape]:
    found: list[Shape] = [Array(high=shape.low - 1)] if shape.low else []
    found += [Array(low=shape.high + 1)] if shape.high is not None else []
    for index, item in enumerate(shape.prefix):
        if item != TRUE:
            found.append(Array(prefix=(*(TRUE,) * index, neg(item)), low=index + 1))
    if shape.rest != TRUE and not (shape.rest == FALSE and shape.high == len(shape.prefix)):
        found.append(Array(contains=((neg(shape.rest), 1, None, len(shape.prefix)),)))
    for what, least, most, skip in shape.contains:
        found += [Array(contains=((what, 0, least - 1, skip),))] if least else []
        found += [Array(contains=((what, most + 1, None, skip),))] if most is not None else []
    found += [Array(repeats=True)] if shape.unique else []
    found += [Array(unique=True)] if shape.repeats else []
    found += [Lits(shape.excluded)] if shape.excluded else []
    return found


def _outside_object(shape: Object) -> list[Shape]:
    found: list[Shape] = [Object(groups=(Group(((name, FALSE),)),)) for name in shape.required]
    found += [Object(high=shape.low - 1)] if shape.low else []
    found += [Object(low=shape.high + 1)] if shape.high is not None else []
    for group in shape.groups:
        for name, what in group.properties:
            if what != TRUE:
                found.append(Object(groups=(Group(((name, neg(what)),)),), required=(name,)))
        for pattern, what in group.patterns:
            if what != TRUE:
                found.append(Object(some=(Some((), (), pattern, neg(what)),), low=1))
        if group.rest != TRUE:
            names = tuple(name for name, _ in group.properties)
            patterns = tuple(pattern for pattern, _ in group.patterns)
            found.append(Object(some=(Some(names, patterns, None, neg(group.rest)),), low=1))
    for some in shape.some:
        if some.what[0] == "name":
            found.append(Object(names=(neg(some.what[1]),)))
        elif some.pattern is not None:
            found.append(Object(groups=(Group(patterns=((some.pattern, neg(some.what)),)),)))
        else:
            known = tuple((name, TRUE) for name in some.names)
            found.append(Object(groups=(Group(known, tuple((p, TRUE) for p in some.patterns), neg(some.what)),)))
    for what in shape.names:
        found.append(Object(some=(Some((), (), None, ("name", neg(what))),), low=1))
    found += [Lits(shape.excluded)] if shape.excluded else []
    return found
