"""JSON Schema as users write it, turned into what llguidance enforces exactly.

Knows: JSON Schema. Must not know: grammars, tokens.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from branchwork.lang.constraint import Invalid


class Normal(msgspec.Struct, frozen=True):
    """schema: for llguidance. approximations: in words, all that it enforces otherwise. loose: some let wrong text by."""

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
    return Normal(schema if isinstance(schema, dict) else {})


def complaint(schema: str, text: str) -> str:
    """Why a finished text is not a value of the schema, "" when it is."""
    import jsonschema

    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return f"the text is not JSON: {error}"
    document = json.loads(schema)
    validator = jsonschema.validators.validator_for(document, jsonschema.Draft202012Validator)
    found = jsonschema.exceptions.best_match(validator(document).iter_errors(value))
    return "" if found is None else f"{found.json_path}: {found.message}"


def first_bytes(schema: str) -> str:
    """Characters that a value of the schema can begin with, as a class of a regular expression."""
    return r'["\[{tfn0-9\-]'
