"""Whether a JSON value is of a shape.

Knows: JSON values, shapes. Must not know: keywords, references; what an expression means it asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from branchwork.lang.constraint import Invalid
from branchwork.runtime.grammar.patterns import searches
from branchwork.runtime.grammar.shapes import (
    Array,
    Expr,
    Group,
    Lits,
    Number,
    Object,
    Shape,
    Some,
    String,
    canonical,
    conj,
)

Judge = Callable[[Any, Expr], bool]


def holds(value: Any, shape: Shape, judge: Judge) -> bool:
    """Whether a value is of a shape. judge: tells it of an expression."""
    match shape:
        case Lits(values):
            return canonical(value) in values
        case Number():
            return isinstance(value, (int, float)) and not isinstance(value, bool) and _counts(value, shape)
        case String():
            return isinstance(value, str) and _spells(value, shape)
        case Array():
            return isinstance(value, list) and _lists(value, shape, judge)
        case Object():
            return isinstance(value, dict) and _maps(value, shape, judge)


def _lists(value: list[Any], shape: Array, judge: Judge) -> bool:
    texts = [canonical(item) for item in value]
    if not shape.low <= len(value) <= (len(value) if shape.high is None else shape.high):
        return False
    if (shape.unique and len(set(texts)) < len(texts)) or (shape.repeats and len(set(texts)) == len(texts)):
        return False
    if canonical(value) in shape.excluded or not all(judge(v, shape.at(i)) for i, v in enumerate(value)):
        return False
    for what, least, most, skip in shape.contains:
        found = sum(judge(item, what) for item in value[skip:])
        if found < least or (most is not None and found > most):
            return False
    return True


def _maps(value: dict[str, Any], shape: Object, judge: Judge) -> bool:
    if not shape.low <= len(value) <= (len(value) if shape.high is None else shape.high):
        return False
    if not all(name in value for name in shape.required) or canonical(value) in shape.excluded:
        return False
    for name, item in value.items():
        if not all(judge(item, of(group, name)) for group in shape.groups):
            return False
        if not all(judge(name, what) for what in shape.names):
            return False
    return all(any(_is_one(some, n, v, judge) for n, v in value.items()) for some in shape.some)


def _is_one(some: Some, name: str, value: Any, judge: Judge) -> bool:
    if some.what[0] == "name":
        return judge(name, some.what[1])
    return chosen(some, name) and judge(value, some.what)


def of(group: Group, name: str) -> Expr:
    """What a group says of the property `name`."""
    found = [what for known, what in group.properties if known == name]
    found += [what for pattern, what in group.patterns if searches(pattern, name)]
    return conj(*found) if found else group.rest


def chosen(some: Some, name: str) -> bool:
    if some.pattern is not None:
        return searches(some.pattern, name)
    return name not in some.names and not any(searches(pattern, name) for pattern in some.patterns)


def _counts(value: float, shape: Number) -> bool:
    number = fraction(value)
    if shape.integer and number.denominator != 1:
        return False
    if shape.low and (number < shape.low[0] or (number == shape.low[0] and shape.low[1])):
        return False
    if shape.high and (number > shape.high[0] or (number == shape.high[0] and shape.high[1])):
        return False
    return all(number % step == 0 for step in shape.multiples) and not any(number % gap == 0 for gap in shape.gaps)


def _spells(value: str, shape: String) -> bool:
    if not shape.low <= len(value) <= (len(value) if shape.high is None else shape.high):
        return False
    if value in shape.excluded:
        return False
    return all(searches(p, value) for p in shape.patterns) and not any(searches(p, value) for p in shape.nots)


def fraction(value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Invalid(f"a number was expected, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise Invalid(f"the number {value!r} is beyond what JSON is read as here")
    return Fraction(value) if isinstance(value, int) else Fraction(repr(value))
