"""JSON Schema as users write it, turned into what llguidance enforces exactly.

Knows: JSON Schema. Must not know: grammars, tokens.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec

from branchwork.lang.constraint import Invalid
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
    writer = Writer(Reader(schema))
    written = writer.whole()
    if written is False:
        raise Invalid("nothing satisfies the schema")
    return Normal(written, tuple(writer.notes), any(writer.notes.values()))


def complaint(schema: str, text: str) -> str:
    """Why a finished text is not a value of the schema, "" when it is."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return f"the text is not JSON: {error}"
    document = json.loads(schema)
    validator = jsonschema.validators.validator_for(document, jsonschema.Draft202012Validator)
    found = jsonschema.exceptions.best_match(validator(document).iter_errors(value))
    return "" if found is None else f"{found.json_path}: {found.message}"


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
