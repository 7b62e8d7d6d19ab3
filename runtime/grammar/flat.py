"""Small flat JSON Schemas as one regular expression, for the byte DFA: its forced runs are the longest.

Knows: JSON Schema's simplest keywords, Rust's regex syntax. Must not know: automata, other engines.

What comes out accepts exactly the schema's values, with properties in the schema's order, or nothing comes out: any
keyword that is not plainly understood here, any schema that would grow, is None and goes to llguidance.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_NOTES = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$comment", "$id")
)
_HEX = "[0-9A-Fa-f]"
_UNIT = rf"\\u(?:[0-9A-CEFa-cef]{_HEX}{{3}}|[dD][0-7]{_HEX}{{2}})"
_PAIR = rf"\\u[dD][89ABab]{_HEX}{{2}}\\u[dD][C-Fc-f]{_HEX}{{2}}"
CHARACTER = rf'(?:[^"\\\x00-\x1F]|\\["\\/bfnrt]|{_UNIT}|{_PAIR})'
INTEGER = "-?(?:0|[1-9][0-9]*)"
NUMBER = rf"{INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_LONGEST_STRING = 100  # a counted character is a dozen states
_MOST_ITEMS = 16
_MOST_OPTIONAL = 8
_MOST_DIGITS = 12
_DEEPEST = 2
LARGEST = 20_000  # characters of the pattern
_SPACE = r"[ \n\r\t]*"


class Form(NamedTuple):
    """What stands between the parts of a value: inside brackets, and around commas and colons."""

    pad: str
    comma: str
    colon: str


FORMS = {
    "compact": Form("", ",", ":"),
    "spaced": Form("", ", ", ": "),
    "flexible": Form(_SPACE, f"{_SPACE},{_SPACE}", f"{_SPACE}:{_SPACE}"),
}


class _NotFlat(Exception):
    """The schema is for another engine."""


def flat_regex(schema: dict[str, Any], whitespace: str = "spaced") -> str | None:
    """A Rust pattern of the whole text, or None."""
    form = FORMS[whitespace]
    try:
        pattern = _value(schema, form, 0)
    except _NotFlat:
        return None
    return pattern if len(pattern) <= LARGEST else None


def _value(schema: Any, form: Form, depth: int) -> str:
    if not isinstance(schema, dict):
        raise _NotFlat
    keys = set(schema) - _NOTES
    if "const" in keys or "enum" in keys:
        return _literals(schema, keys)
    kind = schema.get("type")
    if isinstance(kind, list):
        if not kind or keys != {"type"} or not all(name in _PLAIN for name in kind):
            raise _NotFlat
        return _either([_PLAIN[name] for name in kind if name != "integer" or "number" not in kind])
    if not isinstance(kind, str):
        raise _NotFlat
    keys.discard("type")
    match kind:
        case "null" | "boolean" | "number":
            _only(keys, ())
            return _PLAIN[kind]
        case "integer":
            _only(keys, ("minimum", "maximum"))
            return _integer(schema)
        case "string":
            _only(keys, ("minLength", "maxLength"))
            return f'"{CHARACTER}{_times(schema, "minLength", "maxLength", _LONGEST_STRING)}"'
        case "array":
            _only(keys, ("items", "minItems", "maxItems"))
            return _array(schema, form, depth)
        case "object":
            _only(keys, ("properties", "required", "additionalProperties"))
            return _object(schema, form, depth)
    raise _NotFlat


def _only(keys: set[str], known: tuple[str, ...]) -> None:
    if not keys <= set(known):
        raise _NotFlat


_PLAIN = {
    "null": "null",
    "boolean": "(?:true|false)",
    "number": NUMBER,
    "integer": INTEGER,
    "string": f'"{CHARACTER}*"',
}


def _either(patterns: list[str]) -> str:
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"


def _literals(schema: dict[str, Any], keys: set[str]) -> str:
    """const and enum, beside a type that all of them have."""
    if keys - {"type"} not in ({"const"}, {"enum"}):
        raise _NotFlat
    values = schema["enum"] if "enum" in keys else [schema["const"]]
    kind = schema.get("type")
    known = {"string": str, "boolean": bool, "null": type(None), "integer": int}
    if not isinstance(values, list) or not values or (kind is not None and kind not in known):
        raise _NotFlat
    for value in values:
        right = type(value) is known[kind] if kind is not None else value is None or type(value) in (str, bool, int)
        if not right:
            raise _NotFlat
    texts = dict.fromkeys(json.dumps(value, ensure_ascii=False) for value in values)
    return _either([_quoted(text) for text in texts])


def _quoted(text: str) -> str:
    return re.sub(r"[\\.+*?()|\[\]{}^$#&\-~/ ]", lambda found: "\\" + found[0] if found[0] != " " else " ", text)


def _bounds(schema: dict[str, Any], low: str, high: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high)
    for value in (least, most):
        if value is not None and (type(value) is not int or value < 0):
            raise _NotFlat
    if most is not None and most < least:
        raise _NotFlat
    return least, most


def _times(schema: dict[str, Any], low: str, high: str, limit: int) -> str:
    least, most = _bounds(schema, low, high)
    if max(least, most or 0) > limit:
        raise _NotFlat
    return "*" if least == 0 and most is None else f"{{{least},{'' if most is None else most}}}"


def _array(schema: dict[str, Any], form: Form, depth: int) -> str:
    if "items" not in schema or depth >= _DEEPEST:
        raise _NotFlat
    item = _value(schema["items"], form, depth + 1)
    least, most = _bounds(schema, "minItems", "maxItems")
    if max(least, most or 0) > _MOST_ITEMS:
        raise _NotFlat
    if most == 0:
        return rf"\[{form.pad}\]"
    more = f"(?:{form.comma}{item}){{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    some = f"{item}{more}{form.pad}"
    return rf"\[{form.pad}{some}\]" if least else rf"\[{form.pad}(?:{some})?\]"


def _object(schema: dict[str, Any], form: Form, depth: int) -> str:
    properties, required = schema.get("properties"), schema.get("required", [])
    if schema.get("additionalProperties") is not False or not isinstance(properties, dict) or depth >= _DEEPEST:
        raise _NotFlat
    if not isinstance(required, list) or not all(name in properties for name in required):
        raise _NotFlat
    if len(properties) - len(set(required)) > _MOST_OPTIONAL:
        raise _NotFlat
    pairs = [
        (f"{_quoted(json.dumps(name, ensure_ascii=False))}{form.colon}{_value(what, form, depth + 1)}", name)
        for name, what in properties.items()
    ]
    comma = form.comma
    needed = [index for index, (_, name) in enumerate(pairs) if name in required]

    def behind(first: int) -> str:
        """Everything after a property that is there: each with its comma in front."""
        parts = [f"{comma}{pair}" if name in required else f"(?:{comma}{pair})?" for pair, name in pairs[first:]]
        return "".join(parts)

    if needed:
        before = "".join(f"(?:{pair}{comma})?" for pair, _ in pairs[: needed[0]])
        inside = f"{before}{pairs[needed[0]][0]}{behind(needed[0] + 1)}{form.pad}"
        return rf"\{{{form.pad}{inside}\}}"
    starts = [f"{pair}{behind(index + 1)}" for index, (pair, _) in enumerate(pairs)]
    pad = form.pad
    return rf"\{{{pad}(?:{_either(starts)}{pad})?\}}" if starts else rf"\{{{pad}\}}"


# --- integers in a range


def _integer(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return INTEGER
    for bound in (low, high):
        if bound is not None and (type(bound) is not int or abs(bound) >= 10**_MOST_DIGITS):
            raise _NotFlat
    if low is not None and high is not None and low > high:
        raise _NotFlat
    parts = []
    if low is None or low < 0:  # the negative ones by their magnitude; -0 is 0
        least = 1 if high is None or high >= 0 else -high
        parts.append("-" + _either(_from(least, None if low is None else -low)))
        if (low is None or low <= 0) and (high is None or high >= 0):
            parts.append("-0")
    if high is None or high >= 0:
        parts += _from(max(low or 0, 0), high)
        if low == 0:
            parts.append("-0")
    return _either(parts)


def _from(low: int, high: int | None) -> list[str]:
    """Decimal texts of the numbers low .. high, both at least 0."""
    if high is None:
        digits = len(str(low))
        return [*_from(low, 10**digits - 1), f"[1-9][0-9]{{{digits},}}"]
    found: list[str] = []
    while low <= high:
        top = min(high, 10 ** len(str(low)) - 1)
        found.append(_same_length(str(low), str(top)))
        low = top + 1
    return found


def _same_length(low: str, high: str) -> str:
    """Digits strings between two of one length."""
    if low == high:
        return low
    if set(low) == {"0"} and set(high) == {"9"}:
        return "[0-9]" if len(low) == 1 else f"[0-9]{{{len(low)}}}"
    if len(low) == 1:
        return f"[{low}-{high}]"
    if low[0] == high[0]:
        return low[0] + _same_length(low[1:], high[1:])
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    parts = []
    if set(low[1:]) != {"0"}:
        parts.append(low[0] + _same_length(low[1:], "9" * rest))
        first += 1
    tail = []
    if set(high[1:]) != {"9"}:
        tail.append(high[0] + _same_length("0" * rest, high[1:]))
        last -= 1
    if first <= last:
        span = str(first) if first == last else f"[{first}-{last}]"
        parts.append(span + ("[0-9]" if rest == 1 else f"[0-9]{{{rest}}}"))
    return _either(parts + tail)
