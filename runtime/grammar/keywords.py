"""The keywords of JSON Schema that speak of one type each, as shapes.

Knows: these keywords in every draft's spelling, shapes. Must not know: references, conditions, grammars.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Protocol

from branchwork.lang.constraint import Invalid
from branchwork.runtime.grammar.shapes import (
    ATOMS,
    Array,
    Bound,
    Expr,
    Group,
    Lits,
    Number,
    Object,
    Shape,
    String,
    possible,
)
from branchwork.runtime.grammar.values import fraction

_TYPES: dict[str, tuple[Shape, ...]] = {
    "null": (Lits(("null",)),),
    "boolean": (Lits(("false", "true")),),
    "number": (Number(),),
    "integer": (Number(integer=True),),
    "string": (String(),),
    "array": (Array(),),
    "object": (Object(),),
}
_NUMBER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_STRING = ("minLength", "maxLength", "pattern", "format")
_ARRAY = ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains")
_OBJECT = ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties")
LOCAL = frozenset((*_NUMBER, *_STRING, *_ARRAY, *_OBJECT, "type", "propertyNames", "maxContains", "nullable"))


class Nodes(Protocol):
    """The reader of everything else."""

    def node(self, raw: Any, scope: tuple[str, ...]) -> Expr: ...

    def all(self, unions: list[tuple[Shape, ...]]) -> tuple[Shape, ...]: ...


def local(nodes: Nodes, raw: dict[str, Any], scope: tuple[str, ...], draft: int) -> tuple[Shape, ...]:
    """The keywords that speak of one type each."""
    shapes: list[Shape | None] = [ATOMS, _number(raw), _string(raw)]
    shapes += [_array(nodes, raw, scope, draft), _object(nodes, raw, scope)]
    types = raw.get("type")
    if types is None:
        return tuple(shape for shape in shapes if shape is not None)
    listed = [types] if isinstance(types, str) else types
    if raw.get("nullable") is True:
        listed = [*listed, "null"]
    if not isinstance(listed, list) or not all(isinstance(name, str) and name in _TYPES for name in listed):
        raise Invalid(f"type is one of {', '.join(_TYPES)} or a list of them, not {types!r}")
    if "number" in listed:
        listed = [name for name in listed if name != "integer"]
    allowed = [shape for name in listed for shape in _TYPES[name]]
    return nodes.all([tuple(shape for shape in shapes if shape is not None), tuple(allowed)])


def _array(nodes: Nodes, raw: dict[str, Any], scope: tuple[str, ...], draft: int) -> Shape | None:
    prefix, rest, seen = raw.get("prefixItems", []), raw.get("items", True), 0 if "items" not in raw else None
    if isinstance(rest, list):
        prefix, seen = rest, 0 if "additionalItems" not in raw else None
        rest = raw.get("additionalItems", True)
    seen = seen if seen is None else len(prefix)
    contains: tuple[tuple[Expr, int, int | None, int], ...] = ()
    also: tuple[Expr, ...] = ()
    if "contains" in raw and draft >= 6:
        what = nodes.node(raw["contains"], scope)
        most = raw.get("maxContains")
        contains = ((what, _count(raw, "minContains", 1), None if most is None else int(most), 0),)
        also = (what,) if draft >= 2020 else ()
    return possible(
        Array(
            tuple(nodes.node(item, scope) for item in prefix),
            nodes.node(rest, scope),
            _count(raw, "minItems", 0),
            _count(raw, "maxItems", None),
            contains,
            raw.get("uniqueItems") is True,
            seen=seen,
            seen_also=also,
        )
    )


def _object(nodes: Nodes, raw: dict[str, Any], scope: tuple[str, ...]) -> Shape | None:
    properties = tuple((name, nodes.node(what, scope)) for name, what in raw.get("properties", {}).items())
    patterns = tuple((name, nodes.node(what, scope)) for name, what in raw.get("patternProperties", {}).items())
    rest = nodes.node(raw.get("additionalProperties", True), scope)
    required = raw.get("required", [])
    if isinstance(required, bool):  # draft 3 wrote it on the property
        required = []
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise Invalid(f"required is a list of names, not {str(required)[:60]!r}")
    names = (nodes.node(raw["propertyNames"], scope),) if "propertyNames" in raw else ()
    group = Group(properties, patterns, rest)
    names_seen = tuple(name for name, _ in properties), tuple(pattern for pattern, _ in patterns)
    return possible(
        Object(
            (group,) if group != Group() else (),
            tuple(dict.fromkeys(required)),
            _count(raw, "minProperties", 0),
            _count(raw, "maxProperties", None),
            names,
            seen=None if "additionalProperties" in raw else names_seen,
        )
    )


def _number(raw: dict[str, Any]) -> Shape | None:
    lows: list[Bound] = []
    highs: list[Bound] = []
    for bounds, plain, strict in ((lows, "minimum", "exclusiveMinimum"), (highs, "maximum", "exclusiveMaximum")):
        excluded = raw.get(strict)
        if plain in raw:
            bounds.append((fraction(raw[plain]), excluded is True))  # draft 4: a flag beside the bound
        if excluded is not None and not isinstance(excluded, bool):
            bounds.append((fraction(excluded), True))
    steps: tuple[Fraction, ...] = ()
    if "multipleOf" in raw:
        steps = (fraction(raw["multipleOf"]),)
        if steps[0] <= 0:
            raise Invalid(f"multipleOf must be above 0, not {raw['multipleOf']}")
    low = max(lows, default=None, key=lambda bound: (bound[0], bound[1]))
    high = max(highs, default=None, key=lambda bound: (-bound[0], bound[1]))
    return possible(Number(low=low, high=high, multiples=steps))


def _string(raw: dict[str, Any]) -> Shape | None:
    pattern, form = raw.get("pattern"), raw.get("format")
    if pattern is not None and not isinstance(pattern, str):
        raise Invalid(f"pattern is a string, not {pattern!r}")
    return possible(
        String(
            (pattern,) if pattern is not None else (),
            low=_count(raw, "minLength", 0),
            high=_count(raw, "maxLength", None),
            formats=(form,) if isinstance(form, str) else (),
        )
    )


def listed(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Invalid(f"{key} is a list of schemas, not {str(value)[:60]!r}")
    return value


def _count(raw: dict[str, Any], key: str, default: Any) -> Any:
    value = raw.get(key, default)
    if value is default:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
        raise Invalid(f"{key} is a count, not {value!r}")
    return int(value)
