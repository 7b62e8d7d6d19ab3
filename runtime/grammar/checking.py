"""Whether a JSON Schema is one: what the published meta-schemas say of each keyword's own value, with the place.

Knows: the shapes of keywords' values in every draft. Must not know: what keywords mean, references, grammars.

The meta-schemas themselves are not run: at a millisecond a subschema that would cost more than all the rest. Kept out
on purpose: what they refuse and every reader takes (an empty `required` or `enum`, unknown formats).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from branchwork.lang.constraint import Invalid

_NAMES = ("array", "boolean", "integer", "null", "number", "object", "string")
_Check = Callable[[Any], str]


def _schema(value: Any) -> str:
    return "" if isinstance(value, (dict, bool)) else "is not a schema: an object, true or false"


def _object(value: Any) -> str:
    return "" if isinstance(value, dict) else "is not an object"


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "is not a string"


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "is not true or false"


def _number(value: Any) -> str:
    return "" if isinstance(value, (int, float)) and not isinstance(value, bool) else "is not a number"


def _limit(value: Any) -> str:
    return "" if isinstance(value, bool) else _number(value)


def _step(value: Any) -> str:
    return _number(value) or ("" if value > 0 else "is not above 0")


def _count(value: Any) -> str:
    whole = not _number(value) and value == value // 1
    return "" if whole and value >= 0 else "is not a whole number of at least 0"


def _list(value: Any) -> str:
    return "" if isinstance(value, list) else "is not an array"


def _schemas(value: Any) -> str:
    return _list(value) or ("" if value else "is empty")


def _names(value: Any) -> str:
    if isinstance(value, bool):  # draft 3 wrote `required` on the property
        return ""
    return _list(value) or ("" if all(isinstance(name, str) for name in value) else "is not an array of strings")


def _types(value: Any) -> str:
    listed = [value] if isinstance(value, str) else value
    known = isinstance(listed, list) and listed and all(isinstance(one, str) and one in _NAMES for one in listed)
    return "" if known else f"is not one of {', '.join(_NAMES)}, nor an array of them"


_ONE = ("not", "if", "then", "else", "contains", "additionalItems", "additionalProperties", "propertyNames")
_LATE = ("unevaluatedItems", "unevaluatedProperties", "contentSchema")
_MAP = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems")
_CHECKS: dict[str, _Check] = {
    **dict.fromkeys((*_ONE, *_LATE), _schema),
    **dict.fromkeys((*_MAP, "dependencies", "dependentRequired"), _object),
    **dict.fromkeys(_MANY, _schemas),
    **dict.fromkeys(["$ref", "$dynamicRef", "$anchor", "$dynamicAnchor", "$id", "$schema", "pattern"], _text),
    **dict.fromkeys(["maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties"], _count),
    **dict.fromkeys(["minContains", "maxContains"], _count),
    **dict.fromkeys(["minimum", "maximum"], _number),
    **dict.fromkeys(["exclusiveMinimum", "exclusiveMaximum"], _limit),
    "multipleOf": _step,
    "uniqueItems": _flag,
    "enum": _list,
    "required": _names,
    "type": _types,
}


def check(schema: Any) -> None:
    """Raises Invalid with the path of what is wrong and why."""
    stack = [("$", schema)]
    while stack:
        path, node = stack.pop()
        if why := _schema(node):
            raise Invalid(f"the schema is wrong: {path}: {_shown(node)} {why}")
        if isinstance(node, bool):
            continue
        for key, value in node.items():
            rule = _CHECKS.get(key)
            if rule is not None and (why := rule(value)):
                raise Invalid(f"the schema is wrong: {path}.{key}: {_shown(value)} {why}")
        stack += reversed(_inside(path, node))


def _inside(path: str, node: dict[str, Any]) -> list[tuple[str, Any]]:
    """The subschemas that are one level down, each with its path."""
    found: list[tuple[str, Any]] = []
    if isinstance(node.get("$ref"), str) and not any(key in node for key in ("$defs", "definitions", "properties")):
        return found
    for key, value in node.items():
        if key == "items":
            found += _each(f"{path}.items", value) if isinstance(value, list) else [(f"{path}.items", value)]
        elif key == "dependencies":
            found += [(f"{path}.{key}.{name}", on) for name, on in value.items() if not isinstance(on, (list, str))]
        elif key in _MANY:
            found += _each(f"{path}.{key}", value)
        elif key in _MAP:
            found += [(f"{path}.{key}.{name}", what) for name, what in value.items()]
        elif key in _ONE or key in _LATE:
            found.append((f"{path}.{key}", value))
    return found


def _each(path: str, values: list[Any]) -> list[tuple[str, Any]]:
    return [(f"{path}[{index}]", value) for index, value in enumerate(values)]


def _shown(value: Any) -> str:
    text = str(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
