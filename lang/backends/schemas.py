"""Constraints as the JSON schemas that hosted APIs can be held to, and the text that belongs to what they answer.

Knows: JSON Schema as those APIs take it: an object at the root. Must not know: any API, requests.
"""

from __future__ import annotations

import decimal
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from branchwork.lang.backend import CallFailed
from branchwork.lang.constraint import Choice, Constraint, JsonSchema, Regex, Sequence, Tagged, capture_names
from branchwork.lang.errors import CapabilityError
from branchwork.lang.scalars import SCALARS
from branchwork.lang.typed import FLOAT, INT

KEY = "value"  # of the object around an answer that is none
_BEFORE = re.compile(rf'\s*\{{\s*"{KEY}"\s*:\s*')
_AFTER = re.compile(r"\s*\}\s*")
# patterns of lang.typed, in the words of JSON Schema
_NUMBERS = {INT: "integer", FLOAT: "number", SCALARS[decimal.Decimal].pattern: "number"}
_FORMATS = {scalar.pattern: scalar.format for scalar in SCALARS.values() if scalar.format}


@dataclass(frozen=True)
class Form:
    """A schema with an object at its root. wrapped: the answer proper is the value of KEY in it.

    plain: the answer is the JSON string's text. pattern: what the answer has to match all the same.
    """

    schema: Mapping[str, Any]
    wrapped: bool = False
    plain: bool = False
    pattern: str | None = None

    def read(self, text: str, finish_reason: str) -> str:
        """The answer proper in what the API wrote. Raises CallFailed where there is none: incomplete, bad_answer."""
        if not self.wrapped:
            return text
        before = _BEFORE.match(text)
        try:
            start = before.end() if before else 0
            value, end = json.JSONDecoder().raw_decode(text, start)
            if before is None or _AFTER.fullmatch(text, end) is None:
                raise ValueError(f"it is not an object with the one key {KEY!r}")
        except ValueError as error:
            if finish_reason == "length":
                raise CallFailed("incomplete", f"the answer was cut off at {text!r}; raise max_tokens=") from None
            raise CallFailed("bad_answer", f"the API did not keep to its schema with {text!r}: {error}") from None
        answer = str(value) if self.plain else text[start:end]
        if self.pattern is not None and not re.fullmatch(self.pattern, answer):
            raise CallFailed("bad_answer", f"the API answered {answer!r}, which does not match {self.pattern!r}")
        return answer


def form_of(constraint: Constraint, who: str, schemas: bool, apart: bool = False) -> Form:
    """schemas: whether the API can be held to one. apart: the constraint is for thinking and then, last, an answer;
    hosted models think elsewhere. Raises CapabilityError for a constraint that the API cannot keep.
    """
    if apart and isinstance(constraint, Sequence):
        constraint = constraint.parts[-1]
    kind = type(constraint).__name__
    if schemas:
        match constraint:
            case JsonSchema(schema):
                return _of_schema(json.loads(schema), who)
            case Choice(options):
                return Form(_around({"type": "string", "enum": list(options)}), wrapped=True, plain=True)
            case Regex(pattern) if pattern in _NUMBERS:
                return Form(_around({"type": _NUMBERS[pattern]}), wrapped=True, pattern=pattern)
            case Regex(pattern) if pattern in _FORMATS:
                kept = _around({"type": "string", "format": _FORMATS[pattern]})
                return Form(kept, wrapped=True, plain=True, pattern=pattern)
    if capture_names(constraint):
        kind = "turn"
    elif isinstance(constraint, Tagged):
        kind = "text with tags or tool calls in it"
    able = "JSON schemas, types and choices" if schemas else "no constraints"
    raise CapabilityError(f"{who} cannot be held to a {kind}; it takes {able}. Branchwork's own runtime takes them all")


def _of_schema(schema: Any, who: str) -> Form:
    if isinstance(schema, dict) and schema.get("type") == "object":
        return Form(schema)
    if not isinstance(schema, dict):
        raise CapabilityError(f"{who} takes no JSON schema that is just {json.dumps(schema)}; describe an object")
    if _refers_to_root(schema):
        raise CapabilityError(
            f"{who} takes an object at the root of a JSON schema; this one is none and refers to itself as '#', so it "
            "cannot be put into one. Give it a name in $defs"
        )
    return Form(_around(schema), wrapped=True)


def _around(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An object whose KEY is what the schema says; definitions stay at the root, where references look for them."""
    outside = {name: schema[name] for name in ("$schema", "$defs", "definitions") if name in schema}
    inside = {name: value for name, value in schema.items() if name not in outside}
    properties = {"properties": {KEY: inside}, "required": [KEY], "additionalProperties": False}
    return {"type": "object", **properties, **outside}


def _refers_to_root(schema: Any) -> bool:
    if isinstance(schema, dict):
        return schema.get("$ref") == "#" or any(map(_refers_to_root, schema.values()))
    return isinstance(schema, list) and any(map(_refers_to_root, schema))
