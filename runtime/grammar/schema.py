"""JSON Schema as users write it, turned into what llguidance enforces exactly.

Knows: JSON Schema. Must not know: grammars, tokens.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import referencing.exceptions

from branchwork.lang.constraint import ConstraintError, Invalid
from branchwork.runtime.grammar.checking import check
from branchwork.runtime.grammar.patterns import python
from branchwork.runtime.grammar.reading import Reader
from branchwork.runtime.grammar.writing import Writer


class Normal(msgspec.Struct, frozen=True):
    """schema: for llguidance. approximations: in words, all that is enforced otherwise than written. loose: whether
    some of them let wrong values through."""

    schema: dict[str, Any]
    approximations: tuple[str, ...] = ()
    loose: bool = False


def parse(text: str) -> Any:
    """A schema's JSON text. Raises Invalid with the position."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Invalid(f"the schema is not JSON: {error.msg}", error.pos) from None


def normalise(schema: Any) -> Normal:
    """Raises Invalid for what is no schema or is satisfied by nothing, Unsupported for references to elsewhere."""
    check(schema)
    writer = Writer(Reader(schema))
    written = writer.whole()
    if written is False:
        raise Invalid("nothing satisfies the schema")
    return Normal(written, tuple(writer.notes), any(writer.notes.values()))


def complaint(schema: str, text: str) -> str:
    """Why a finished text is not a value of the schema, "" when it is. Also a schema that cannot be asked is a reason:
    one that refers to elsewhere or to itself, or has a pattern that Python cannot read."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return f"the text is not JSON: {error}"
    except RecursionError:
        return "the text is nested too deep to be read"
    try:
        document = json.loads(schema)
        check(document)
        wanted = jsonschema.Draft202012Validator
        kind = jsonschema.validators.validator_for(document, wanted) if isinstance(document, dict) else wanted
        found = jsonschema.exceptions.best_match(kind(_readable(document)).iter_errors(value))
    except _NO_ANSWER as error:
        return f"the text could not be held against the schema: {(str(error) or repr(error)).splitlines()[0][:300]}"
    return "" if found is None else f"{found.json_path}: {found.message}"


# what asking a validator of a schema that cannot be asked ends in
_NO_ANSWER = (
    ConstraintError,
    jsonschema.exceptions.UnknownType,
    referencing.exceptions.Unresolvable,
    json.JSONDecodeError,
    RecursionError,
    re.error,
    ArithmeticError,
    TypeError,
    ValueError,
)


def _readable(node: Any, names: bool = False) -> Any:
    """The schema with patterns as Python reads them. names: the keys of this object are properties."""
    if isinstance(node, list):
        return [_readable(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {}
    for key, value in node.items():
        if names:
            found[key] = _readable(value)
        elif key == "pattern" and isinstance(value, str):
            found[key] = python(value)
        elif key == "patternProperties" and isinstance(value, dict):
            found[key] = {python(pattern): _readable(what) for pattern, what in value.items()}
        elif key not in ("enum", "const", "default", "examples"):
            found[key] = _readable(value, key in ("properties", "$defs", "definitions", "dependentSchemas"))
        else:
            found[key] = value
    return found


def first_bytes(schema: Any, root: Any = None) -> str:
    """Characters that a value of a normalised schema can begin with, for a class of a regular expression."""
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return ""
    if "$ref" in schema:
        return first_bytes(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return "".join(first_bytes(option, root) for option in schema["anyOf"])
    if "enum" in schema:
        return "".join(_FIRST.get(json.dumps(value)[0], "0-9") for value in schema["enum"])
    return _KINDS.get(schema.get("type", ""), "".join(_KINDS.values()))


_FIRST = {char: "\\" + char if char in "[-" else char for char in '"[{tfn-'}
_KINDS = {
    "null": "n",
    "boolean": "tf",
    "number": "0-9\\-",
    "integer": "0-9\\-",
    "string": '"',
    "array": "\\[",
    "object": "{",
}
