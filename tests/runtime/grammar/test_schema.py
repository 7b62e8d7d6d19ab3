"""The normalised schema against a JSON Schema validator: no value is let through that the schema refuses."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from branchwork.lang.constraint import Invalid, Unsupported
from branchwork.runtime.grammar.emptiness import ask
from branchwork.runtime.grammar.schema import Normal, complaint, normalise, parse

COMPACT = {"whitespace_flexible": False, "json_allow_general_unicode_escapes": True}


class Enforced:
    """A schema as it is enforced; `takes` a value's compact text, its keys in the order given."""

    def __init__(self, schema: Any) -> None:
        self.normal: Normal = normalise(schema)
        self._matcher = ask("start: %json " + json.dumps({"x-guidance": COMPACT, **self.normal.schema}))
        assert not self._matcher.is_error(), (self._matcher.get_error(), self.normal.schema)

    def takes(self, value: Any) -> bool:
        cursor = self._matcher.deep_copy()
        text = list(json.dumps(value, separators=(",", ":")).encode())
        return cursor.try_consume_tokens(text) == len(text) and bool(cursor.is_accepting())


def check(schema: Any, right: list[Any], wrong: list[Any], named: str = "") -> None:
    enforced = Enforced(schema)
    assert [value for value in right if not enforced.takes(value)] == []
    assert [value for value in wrong if enforced.takes(value)] == []
    notes = " ".join(enforced.normal.approximations)
    assert named in notes if named else not notes


def test_one_of_with_a_discriminator_is_exact() -> None:
    cat = {"properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["kind"]}
    dog = {"properties": {"kind": {"const": "dog"}, "tail": {"type": "string"}}, "required": ["kind"]}
    right = [{"kind": "cat", "lives": 9}, {"kind": "dog", "tail": "long"}, {"kind": "cat"}]
    check({"type": "object", "oneOf": [cat, dog]}, right, [{"kind": "cow"}, {"kind": "cat", "lives": "x"}, {}])


def test_one_of_leaves_out_what_two_branches_share() -> None:
    schema = {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 10}, {"type": "integer", "minimum": 5}]}
    check(schema, [0, 4, 11, 500], [5, 10, -1, "x"])


def test_one_of_objects_of_which_one_is_closed() -> None:
    schema = {
        "oneOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False},
            {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]
    }
    check(schema, [{}, {"a": 1}, {"b": 1}, {"b": 2, "a": 1}], [{"c": 1}, {"a": "x"}, 1])


def test_if_then_else_on_a_constant() -> None:
    schema = {
        "type": "object",
        "properties": {"country": {"enum": ["US", "NL"]}, "zip": {"type": "string"}},
        "required": ["country", "zip"],
        "if": {"properties": {"country": {"const": "US"}}},
        "then": {"properties": {"zip": {"pattern": "^[0-9]{5}$"}}},
        "else": {"properties": {"zip": {"pattern": "^[0-9]{4} [A-Z]{2}$"}}},
    }
    right = [{"country": "US", "zip": "12345"}, {"country": "NL", "zip": "1234 AB"}]
    check(schema, right, [{"country": "NL", "zip": "12345"}, {"country": "US", "zip": "1234 AB"}, {"country": "US"}])


def test_not_of_constants_and_types() -> None:
    check({"type": "string", "not": {"enum": ["", "ab", "abc"]}}, ["a", "abd", "b", "abcd"], ["", "ab", "abc"])
    check({"not": {"type": ["string", "null"]}}, [1, [], {}, True], ["", None])
    check({"type": "integer", "not": {"const": 3}}, [2, 4], [3])


def test_required_is_negated_to_absence() -> None:
    check({"type": "object", "not": {"required": ["a", "b"]}}, [{}, {"a": 1}, {"b": 1, "c": 1}], [{"a": 1, "b": 2}])


def test_dependencies_of_every_draft() -> None:
    for key in ("dependencies", "dependentRequired"):
        check({"type": "object", key: {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}])
    schema = {"type": "object", "dependentSchemas": {"a": {"required": ["b"], "properties": {"b": {"type": "null"}}}}}
    check(schema, [{"b": 1}, {"a": 1, "b": None}], [{"a": 1, "b": 1}, {"a": 1}])


def test_references_with_siblings_are_conjunctions_since_2019() -> None:
    node = {"$ref": "#/$defs/node", "required": ["value"]}
    schema = {
        "$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer"}, "next": node}}},
        "$ref": "#/$defs/node",
    }
    check(schema, [{}, {"value": 1, "next": {"value": 2}}], [{"next": {}}, {"next": {"value": "x"}}])


def test_siblings_of_a_reference_are_ignored_in_draft_7() -> None:
    draft = "http://json-schema.org/draft-07/schema#"
    schema = {
        "$schema": draft,
        "definitions": {"a": {"type": "string"}},
        "properties": {"x": {"$ref": "#/definitions/a", "maxLength": 1}},
    }
    check(schema, [{"x": "long"}, {}], [{"x": 1}])


def test_draft_4_exclusive_bounds() -> None:
    draft = "http://json-schema.org/draft-04/schema#"
    schema = {"$schema": draft, "type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 4}
    check(schema, [2, 4], [1, 5])


def test_anchors_ids_and_escaped_pointers_resolve() -> None:
    schema = {
        "$id": "https://example.org/root.json",
        "$defs": {
            "a/b%": {"$anchor": "here", "type": "null"},
            "other": {"$id": "sub/item.json", "$defs": {"x": {"type": "boolean"}}, "$ref": "#/$defs/x"},
        },
        "prefixItems": [{"$ref": "#/$defs/a~1b%25"}, {"$ref": "#here"}, {"$ref": "sub/item.json"}],
    }
    check(schema, [[None, None, True], []], [[1], [None, 1], [None, None, None]])


def test_unevaluated_properties_see_through_combinators() -> None:
    schema = {
        "type": "object",
        "allOf": [{"properties": {"a": {"type": "integer"}}}],
        "anyOf": [{"properties": {"b": {"const": 1}}, "required": ["b"]}, {"properties": {"c": {"const": 2}}}],
        "unevaluatedProperties": False,
    }
    check(schema, [{"a": 1}, {"a": 1, "b": 1}, {"b": 1, "c": 2}], [{"d": 1}, {"a": 1, "b": 2}])


def test_counts_of_properties() -> None:
    schema = {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "additionalProperties": False}
    check({**schema, "minProperties": 1}, [{"a": 1}, {"c": 1}, {"a": 1, "c": 1}], [{}, {"d": 1}])
    check({**schema, "maxProperties": 1}, [{}, {"b": 1}], [{"a": 1, "b": 1}])
    check(
        {**schema, "minProperties": 2, "maxProperties": 2}, [{"a": 1, "c": 1}], [{}, {"a": 1}, {"a": 1, "b": 1, "c": 1}]
    )


def test_property_names() -> None:
    check({"type": "object", "propertyNames": {"pattern": "^x"}}, [{}, {"x1": 1}], [{"y": 1}])
    check({"type": "object", "propertyNames": {"enum": ["a", "b"]}}, [{"a": 1}, {"a": 1, "b": 2}], [{"c": 1}])
    check({"type": "object", "propertyNames": {"maxLength": 2}}, [{"ab": 1}], [{"abc": 1}])
    check({"type": "object", "propertyNames": {"enum": ["a", "b"]}}, [{"b": 1, "a": 2}], [{"ab": 1}])
    either = {"anyOf": [{"const": ""}, {"pattern": "^x", "maxLength": 3}]}
    check({"type": "object", "propertyNames": either}, [{"x1": 1, "": 2}], [{"y": 1}, {"x123": 1}])
    check(
        {"type": "object", "propertyNames": {"pattern": "^x"}, "patternProperties": {"b$": {"type": "null"}}},
        [{"xb": None, "xa": 1}],
        [{"b": None}, {"xb": 1}],
    )


def test_a_name_that_matches_several_patterns_satisfies_all() -> None:
    schema = {"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 5}}}
    check(schema, [{"ax": 1}, {"ab": 7}, {"xb": 6.5}, {"x": 0}], [{"ab": 1}, {"ax": "x"}, {"xb": 2}])


def test_patterns_that_are_words_and_too_many_to_cut_apart() -> None:
    schema = {
        "type": "object",
        "patternProperties": {name: {"type": "string"} for name in ("name", "tags", "vars", "when", "then")},
        "additionalProperties": False,
    }
    schema["patternProperties"]["vars"] = {"type": "integer"}
    check(schema, [{"name": "a", "vars": 1}, {"vars": 1}], [{"vars": "x"}, {"x": 1}], named="as that pattern")


def test_unique_items_of_few_values_are_exact_and_others_are_named() -> None:
    schema = {"type": "array", "items": {"enum": ["r", "w", "x"]}, "uniqueItems": True}
    check(schema, [[], ["w"], ["x", "r", "w"]], [["r", "r"], ["q"]])
    loose = normalise({"type": "array", "items": {"type": "string"}, "uniqueItems": True})
    assert loose.loose and "unique" in loose.approximations[0]


def test_contains_is_met_among_the_first_items() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "contains": {"const": 3}}
    check(schema, [[3], [1, 2, 3], [3, 3]], [[], [1], [1, "x", 3]], named="contains")
    short = {"type": "array", "contains": {"type": "null"}, "maxItems": 3, "maxContains": 1}
    check(short, [[None], [1, None, 1]], [[None, None], [1, 1, 1], []])


def test_enumerations_are_filtered_by_what_stands_beside_them() -> None:
    check({"enum": ["a", "bcd", 1, None], "type": "string", "minLength": 2}, ["bcd"], ["a", 1, None])


def test_unknown_formats_and_annotations_are_no_approximation() -> None:
    schema = {"type": "string", "format": "phone-number", "title": "t", "x-order": 3, "contentEncoding": "base64"}
    check(schema, ["anything"], [1])


def test_known_formats_are_enforced() -> None:
    check({"type": "string", "format": "date"}, ["2020-02-29"], ["2020-02-30", "x"])


def test_look_ahead_and_negated_patterns_are_enforced() -> None:
    check({"type": "string", "pattern": "^(?!x).*$"}, ["", "ax"], ["x", "xa"])
    check({"type": "string", "pattern": "^(?=.*[A-Z])(?=.*\\d).{3,}$"}, ["A1x", "xx1A"], ["A1", "aa1", "AAA"])
    check({"type": "string", "not": {"pattern": "^\\w+://"}}, ["", "a:/b"], ["a://b"])
    check({"type": "string", "pattern": "^[@$!%]+$"}, ["$", "@!"], ["", "a"])


def test_back_references_in_patterns_are_named_as_loose() -> None:
    normal = normalise({"type": "string", "pattern": "^(.)\\1$"})
    assert normal.loose and "back-references" in normal.approximations[0]


def test_recursion_may_go_through_required_properties_and_alternatives() -> None:
    one = {"oneOf": [{"type": "number"}, {"$ref": "#/$defs/sum"}]}
    summed = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    schema = {**one, "$defs": {"sum": {**summed, "required": ["left", "right"], "additionalProperties": False}}}
    check(schema, [1, {"left": 1, "right": {"left": 2, "right": 3}}], [{"left": 1}, {"left": 1, "right": {}}])
    chain = {
        "type": "object",
        "properties": {"head": {"type": "integer"}, "tail": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
        "required": ["head", "tail"],
        "additionalProperties": False,
    }
    check(chain, [{"head": 1, "tail": {"head": 2, "tail": None}}], [{"head": 1}, {"head": 1, "tail": {"head": 2}}])


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"anyOf": [{"type": "null"}, {"allOf": [{"$ref": "#"}]}]}])
def test_a_reference_to_itself_with_nothing_between_is_invalid(schema: Any) -> None:
    with pytest.raises(Invalid, match="refers to itself"):
        normalise(schema)


def test_properties_come_in_the_order_in_which_references_are_met() -> None:
    base = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    more = {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}
    schema = {"allOf": [{"$ref": "#/$defs/base"}, more], "$defs": {"base": base}}
    check(schema, [{"name": "a", "size": 1}], [{"name": "a"}, {"size": 1}])


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (False, "nothing satisfies"),
        ({"type": "string", "enum": [1]}, "nothing satisfies"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "nothing satisfies"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, "nothing satisfies"),
        ({"type": "strnig"}, r"\$.type: 'strnig' is not one of"),
        ({"type": "string", "minLength": "3"}, r"\$.minLength: '3' is not a whole number"),
        ({"$ref": "#/$defs/nowhere"}, "leads nowhere"),
        ({"$ref": "#"}, "refers to itself"),
        ([], r"\$: \[\] is not a schema"),
        ({"properties": 3}, r"\$.properties: 3 is not an object"),
        ({"items": {"allOf": [{"minimum": "x"}]}}, r"\$.items.allOf\[0\].minimum: 'x' is not a number"),
        ({"enum": 1}, r"\$.enum: 1 is not an array"),
        ({"type": "string", "pattern": "(a"}, "no regular expression"),
    ],
)
def test_what_is_wrong_with_a_schema_is_said(schema: Any, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        normalise(schema)


def test_references_to_elsewhere_are_unsupported_with_a_hint() -> None:
    with pytest.raises(Unsupported, match=r"\$defs"):
        normalise({"$ref": "https://example.org/other.json"})


def test_text_that_is_not_json_has_a_position() -> None:
    with pytest.raises(Invalid) as raised:
        parse('{"type": }')
    assert raised.value.position == 9


def test_a_long_chain_of_definitions_does_not_exhaust_the_stack() -> None:
    link = {f"d{i}": {"type": "object", "properties": {"next": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(400)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**link, "d400": {"type": "null"}}}
    check(schema, [{"next": {"next": {}}}], [{"next": 1}])


def test_complaints_name_the_place() -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
    assert complaint(schema, '{"a":1}') == ""
    assert complaint(schema, '{"a":"x"}').startswith("$.a: ")
    assert "not JSON" in complaint(schema, "{")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.org/other.json"},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"pattern": "["},
        {"pattern": "(?<=a+)b"},
        {"properties": 3},
        {"$id": "http://[", "$ref": "x"},
        3,
    ],
)
def test_a_schema_that_cannot_be_asked_is_a_complaint(schema: Any) -> None:
    assert complaint(json.dumps(schema), '"abc"')


def test_complaints_read_patterns_as_json_schema_has_them() -> None:
    assert complaint(json.dumps({"pattern": r"^\p{L}+\/[$]$"}), '"ab/$"') == ""
    assert complaint(json.dumps({"patternProperties": {r"^\p{L}$": {"type": "null"}}}), '{"a":1}').startswith("$.a: ")


# --- against a validator, on schemas at random

NAMES = ("a", "b", "c")
scalars: Any = st.one_of(st.none(), st.booleans(), st.integers(-3, 12), st.sampled_from(["", "a", "ab", "ba", "xyz"]))
values: Any = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)),
    max_leaves=4,
)
leaves: Any = st.one_of(
    st.just({}),
    st.booleans(),
    st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"]).map(lambda t: {"type": t}),
    st.lists(scalars, min_size=1, max_size=3).map(lambda v: {"enum": v}),
    scalars.map(lambda v: {"const": v}),
    st.tuples(st.integers(-2, 5), st.integers(3, 9)).map(
        lambda b: {"type": "integer", "minimum": b[0], "maximum": b[1]}
    ),
    st.integers(0, 2).map(lambda n: {"type": "string", "minLength": n}),
    st.integers(0, 2).map(lambda n: {"maxLength": n}),
    st.sampled_from(["^a", "b", "^[ab]*$"]).map(lambda p: {"type": "string", "pattern": p}),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(lambda r: {"required": r}),
    st.integers(0, 2).map(lambda n: {"type": "object", "minProperties": n}),
    st.integers(0, 2).map(lambda n: {"maxProperties": n}),
    st.integers(0, 2).map(lambda n: {"minItems": n}),
)


def _inner(one: Any) -> Any:
    many = st.lists(one, min_size=1, max_size=3)
    some = st.dictionaries(st.sampled_from(NAMES), one, max_size=2)
    return st.one_of(
        st.fixed_dictionaries({"type": st.just("object"), "properties": some}, optional={"additionalProperties": one}),
        st.fixed_dictionaries({"patternProperties": st.dictionaries(st.sampled_from(["a", "^b"]), one, max_size=2)}),
        st.fixed_dictionaries({"properties": some, "unevaluatedProperties": one}, optional={"anyOf": many}),
        st.fixed_dictionaries({"type": st.just("array"), "items": one}, optional={"prefixItems": many}),
        st.fixed_dictionaries({"contains": one}, optional={"maxContains": st.integers(1, 2)}),
        st.fixed_dictionaries({"propertyNames": one}),
        many.map(lambda parts: {"allOf": parts}),
        many.map(lambda parts: {"anyOf": parts}),
        many.map(lambda parts: {"oneOf": parts}),
        one.map(lambda part: {"not": part}),
        st.fixed_dictionaries({"if": one}, optional={"then": one, "else": one}),
        st.fixed_dictionaries({"dependentSchemas": some}),
        st.tuples(one, one).map(lambda two: {**two[0], **two[1]} if all(isinstance(t, dict) for t in two) else two[0]),
    )


schemas: Any = st.recursive(leaves, _inner, max_leaves=5)


def agree(schema: Any, instances: list[Any]) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    try:
        enforced = Enforced(schema)
    except Invalid as error:
        assert "nothing satisfies" in str(error), (schema, error)
        assert not any(validator.is_valid(value) for value in instances), schema
        return
    for value in instances:
        right, taken = validator.is_valid(value), enforced.takes(value)
        context = (schema, value, enforced.normal)
        assert right or not taken or enforced.normal.loose, context
        # the order of keys is the schema's: a value with several may be right and not be written in this order
        several = isinstance(value, (dict, list)) and json.dumps(value).count(":") > 1
        assert taken or not right or several or enforced.normal.approximations, context


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas, st.lists(values, min_size=4, max_size=10))
def test_random_schemas_agree_with_a_validator(schema: Any, instances: list[Any]) -> None:
    agree(schema, [*instances, {}, [], "a", 1, None])


@pytest.mark.soak
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas, st.lists(values, min_size=4, max_size=10))
def test_many_random_schemas_agree_with_a_validator(schema: Any, instances: list[Any]) -> None:
    assume(schema is not True)
    agree(schema, [*instances, {}, [], "a", 1, None])
