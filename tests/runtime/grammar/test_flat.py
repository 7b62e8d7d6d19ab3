"""Flat schemas as regular expressions: exactly the schema's values, or none at all."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.runtime.grammar.flat import flat_regex
from branchwork.runtime.grammar.frontend import MAX_PATTERN

RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 1, "maximum": 250},
        "name": {"type": "string", "maxLength": 4},
        "kind": {"enum": ["a b", "x/y", 'q"', 1, True, None]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "place": {"type": "object", "properties": {"lat": {"type": "number"}}, "additionalProperties": False},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def pattern(schema: dict[str, Any], whitespace: str = "compact") -> re.Pattern[str]:
    found = flat_regex(schema, whitespace)
    assert found is not None and len(found) < MAX_PATTERN
    return re.compile(found)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, None), (1, None), (None, 0), (-5, 17), (3, 3), (17, 1234), (-120, -7), (None, -3), (99, 101), (-1, None)],
)
def test_bounds_of_integers_are_exact(low: int | None, high: int | None) -> None:
    bounds = {key: value for key, value in (("minimum", low), ("maximum", high)) if value is not None}
    found = pattern({"type": "integer", **bounds})
    for number in range(-1300, 1300):
        inside = (low is None or number >= low) and (high is None or number <= high)
        assert bool(found.fullmatch(str(number))) == inside, number
    assert not found.fullmatch("007") and not found.fullmatch("")


text: Any = st.text(st.sampled_from('ab"\\/\n\x00\x7fé😀'), max_size=5)
record: Any = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(-1, 300),
        "name": text,
        "kind": st.sampled_from(["a b", "x/y", 'q"', 1, True, None, False, "z"]),
        "tags": st.lists(text, max_size=3),
        "place": st.fixed_dictionaries({}, optional={"lat": st.floats(-5, 5), "lon": st.none()}),
    },
)


@settings(max_examples=150, deadline=None)
@given(record, st.booleans(), st.booleans())
def test_a_record_matches_exactly_when_it_is_valid(value: Any, ascii_only: bool, spaced: bool) -> None:
    found = pattern(RECORD, "flexible" if spaced else "compact")
    separators = (" ,\n", ": ") if spaced else (",", ":")
    value = {name: value[name] for name in RECORD["properties"] if name in value}
    written = json.dumps(value, ensure_ascii=ascii_only, separators=separators)
    assert bool(found.fullmatch(written)) == jsonschema.Draft202012Validator(RECORD).is_valid(value), written


def test_all_properties_optional_puts_commas_right() -> None:
    schema = {**RECORD, "required": []}
    found = pattern(schema)
    for right in ("{}", '{"id":1}', '{"tags":[],"place":{}}', '{"id":2,"tags":["a","b"]}'):
        assert found.fullmatch(right), right
    for wrong in ("{,}", '{"id":1,}', '{,"id":1}', '{"id":1"tags":[]}', '{"tags":[],"id":1}'):
        assert not found.fullmatch(wrong), wrong


def test_strings_have_all_legal_escapes_and_no_lone_surrogates() -> None:
    found = pattern({"type": "string"})
    for right in (r'"\u00e9\/\b"', r'"\ud83d\ude00"', '"\x7f"', r'"\u0000"'):
        assert found.fullmatch(right), right
    for wrong in (r'"\ud83d"', r'"\ude00"', r'"\x41"', '"\n"', '"a', r'"\u12"'):
        assert not found.fullmatch(wrong), wrong


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {}},  # open: anything may follow
        {"type": "string", "pattern": "a"},
        {"type": "string", "format": "date"},
        {"type": "number", "minimum": 0},
        {"type": "integer", "multipleOf": 2},
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        {"type": "object", "additionalProperties": False, "properties": {"a": {"$ref": "#"}}},
        {"enum": [1.5]},
        {"type": "string", "enum": [1]},
        {"type": "string", "maxLength": 1000},
        {"anyOf": [{"type": "string"}]},
        {"type": "integer", "minimum": 5, "maximum": 3},
    ],
)
def test_what_is_not_plainly_flat_is_left_to_others(schema: dict[str, Any]) -> None:
    assert flat_regex(schema) is None


def test_white_space_is_where_json_writes_it() -> None:
    record = {"id": 7, "name": "ab", "tags": ["x", "y"], "place": {"lat": 1.5}}
    spaced, flexible = pattern(RECORD, "spaced"), pattern(RECORD, "flexible")
    assert spaced.fullmatch(json.dumps(record)) and not spaced.fullmatch(json.dumps(record, separators=(",", ":")))
    assert flexible.fullmatch(json.dumps(record, indent=2)) and not pattern(RECORD).fullmatch(json.dumps(record))
