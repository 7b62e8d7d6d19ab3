"""The llguidance cursor: masks, ends, refusals, undoing, forks, forced text, whole turns as one grammar."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest

from branchwork.lang.constraint import (
    Capture,
    Choice,
    Constraint,
    Free,
    Grammar,
    Invalid,
    JsonSchema,
    Literal,
    Maybe,
    Regex,
    Repeat,
    Sequence,
    Unsupported,
)
from branchwork.runtime.grammar.llg import LlgMatcher, compile_llguidance, decode_assembly, encode_assembly
from branchwork.runtime.grammar.vocabulary import Vocabulary, unpack
from tests.runtime.grammar.vocabularies import SMALL, gpt2

compact = partial(JsonSchema, whitespace="compact")

POINT = compact(
    json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
    )
)


def start(constraint: Constraint, vocabulary: Vocabulary = SMALL) -> LlgMatcher:
    return compile_llguidance(constraint, vocabulary).start()


def mask(matcher: LlgMatcher, vocabulary: Vocabulary = SMALL) -> set[int]:
    row = np.full(vocabulary.words, -1, np.int32)
    matcher.mask_into(row)
    return set(unpack(row).tolist())


def takes(constraint: Constraint, text: str) -> bool:
    matcher, tokens = start(constraint), SMALL.encode(text.encode())
    return matcher.accept(tokens) == len(tokens) and matcher.is_accepting


def test_masks_agree_with_accept_on_every_token_and_never_have_special_ones() -> None:
    matcher = start(POINT)
    for token in SMALL.encode(b'{"name":"the 12\\n","age":123}'):
        allowed = mask(matcher)
        assert allowed == {t for t in range(SMALL.size) if matcher.validate([t]) == 1}
        assert all(SMALL.tokens[t] for t in allowed)
        assert token in allowed and matcher.accept([token]) == 1
    assert mask(matcher) == set(SMALL.eos)


def test_the_end_token_is_taken_only_where_the_text_may_end() -> None:
    matcher, end = start(Regex("[0-9]+")), SMALL.eos[0]
    assert matcher.accept([end]) == 0
    assert matcher.accept([ord("1"), end, ord("2")]) == 2
    assert matcher.is_done and not matcher.is_accepting and mask(matcher) == set()
    matcher.rollback(1)
    assert not matcher.is_done and matcher.accept([ord("2"), end]) == 2


def test_refused_tokens_change_nothing() -> None:
    matcher = start(Regex("ab[0-9]"))
    before = mask(matcher)
    assert matcher.accept([ord("x")]) == 0 and matcher.accept([10**9]) == 0 and matcher.accept([-1]) == 0
    assert mask(matcher) == before and not matcher.error
    assert matcher.accept([ord("a"), ord("b"), ord("c")]) == 2
    assert matcher.accept([ord("7")]) == 1 and matcher.is_accepting


def test_rollback_and_fork_are_independent_and_exact() -> None:
    matcher = start(POINT)
    tokens = SMALL.encode(b'{"name":"a","age":1}')
    states = []
    for token in tokens:
        states.append(mask(matcher))
        matcher.accept([token])
    twin = matcher.fork()
    for state in reversed(states):
        matcher.rollback(1)
        assert mask(matcher) == state
    assert twin.is_accepting
    with pytest.raises(ValueError, match="cannot undo 1"):
        matcher.rollback(1)


def test_forced_text_stops_where_there_is_a_choice_or_an_end() -> None:
    matcher = start(POINT)
    assert matcher.forced() == b'{"name":"'
    matcher.accept(SMALL.encode(b'{"name":"x"'))
    assert matcher.forced() == b',"age":'
    assert start(Regex("(?:ab)?")).forced() == b""


def test_jumps_are_canonical_and_follow_the_grammar() -> None:
    vocabulary = gpt2()
    text = b'{"name":"Ada Lovelace","age":36}'
    ids, matcher, done = vocabulary.encode(text), start(POINT, vocabulary), 0
    jumped = 0
    while done < len(ids):
        jump = matcher.jump(ids[:done])
        assert ids[done : done + len(jump)] == jump
        step = jump or ids[done : done + 1]
        assert matcher.accept(step) == len(step)
        done, jumped = done + len(step), jumped + len(jump)
    assert matcher.is_accepting and jumped >= 3


def test_special_tokens_never_stand_for_their_text() -> None:
    vocabulary = gpt2()
    special = [number for number, token in enumerate(vocabulary.tokens) if not token]
    matcher = start(compact('{"type":"string"}'), vocabulary)
    matcher.accept(vocabulary.encode(b'"<|endoftext|'))
    assert not mask(matcher, vocabulary) & set(special)


def test_white_space_is_compact_spaced_or_flexible() -> None:
    flexible, spaced = JsonSchema(POINT.schema, "flexible"), JsonSchema(POINT.schema)
    assert takes(spaced, '{"name": "a", "age": 1}') and not takes(spaced, '{"name":"a","age":1}')
    assert takes(POINT, '{"name":"a","age":1}') and not takes(POINT, '{"name": "a","age":1}')
    assert takes(flexible, '{ "name" : "a",\n"age":1 }')


NESTED = ({"a": [1, 2, {"b": None}], "c": {}}, [[], [1, "x, y: z"]])


@pytest.mark.parametrize("value", NESTED)
@pytest.mark.parametrize("keyword", ["const", "enum", "properties"])
def test_spaced_values_are_what_json_writes_by_default(value: Any, keyword: str) -> None:
    schemas = {"const": {"const": value}, "enum": {"enum": [value, 7]}, "properties": {"type": ["object", "array"]}}
    assert takes(JsonSchema(json.dumps(schemas[keyword])), json.dumps(value))


def test_a_turn_of_all_kinds_is_one_grammar() -> None:
    turn = Sequence(
        (
            Literal("Name: "),
            Capture("name", Regex("[A-Z][a-z]+")),
            Maybe(Literal(" Jr.")),
            Literal(", mood "),
            Capture("mood", Choice(("good", "goodish"))),
            Literal(": "),
            Capture("data", POINT),
            Repeat(Sequence((Literal("; "), Grammar('start: "x" n\nn: /[0-9]+/'))), 0, 2),
            Literal("\n"),
            Free(),
        )
    )
    assert takes(turn, 'Name: Bob, mood goodish: {"name":"a","age":1}\nand so on')
    assert takes(turn, 'Name: Bob Jr., mood good: {"name":"a","age":1}; x12; x3\n')
    assert not takes(turn, 'Name: Bob, mood goodis: {"name":"a","age":1}\n')
    assert not takes(turn, 'Name: Bob, mood good: {"name":"a","age":1}; x12; x3; x4\n')


def test_neighbouring_regular_parts_are_not_matched_greedily() -> None:
    turn = Sequence((Regex("[a-z]*"), Literal("s"), POINT))
    assert takes(turn, 'cats{"name":"a","age":1}')


def test_text_that_could_swallow_what_follows_is_reported() -> None:
    report = compile_llguidance(Sequence((Regex("(?s:.*)"), POINT)), SMALL).report
    assert "as far as it can" in report.approximations[0] and not report.loose
    assert compile_llguidance(Sequence((Free(("{",)), POINT)), SMALL).report.approximations == ()


def test_repeats_with_separators_have_their_counts() -> None:
    items = Repeat(POINT, 1, 2, ", ")
    one = '{"name":"a","age":1}'
    assert takes(items, one) and takes(items, f"{one}, {one}")
    assert not takes(items, "") and not takes(items, f"{one}, {one}, {one}") and not takes(items, f"{one}, ")


def test_loose_schemas_are_validated_and_strict_ones_refused() -> None:
    schema = '{"type":"array","items":{"type":"string"},"uniqueItems":true}'
    grammar = compile_llguidance(compact(schema), SMALL)
    assert grammar.report.loose and "unique" in grammar.report.approximations[0]
    assert grammar.validate_text('["a","b"]') == "" and "non-unique" in grammar.validate_text('["a","a"]')
    turn = compile_llguidance(Sequence((Literal("tags: "), compact(schema), Literal("."))), SMALL)
    assert turn.validate_text('tags: ["a"].') == "" and "non-unique" in turn.validate_text('tags: ["a","a"].')
    with pytest.raises(Unsupported, match="unique"):
        compile_llguidance(compact(schema, strict=True), SMALL)


def test_a_lark_grammar_that_is_wrong_says_where() -> None:
    with pytest.raises(Invalid) as raised:
        compile_llguidance(Grammar('start: "a" b\nb: c'), SMALL)
    assert raised.value.position == 16 and "unknown name" in str(raised.value)


def test_an_engine_that_breaks_says_so_and_allows_nothing() -> None:
    grammar = compile_llguidance(Regex("([a-z]{0,300}[0-9]{0,300}){0,300}"), SMALL)
    matcher = grammar.start()
    for byte in b"abc123" * 60:
        if not matcher.accept([byte]):
            break
        mask(matcher)
    assert not matcher.error or (mask(matcher) == set() and not matcher.is_accepting and not matcher.is_done)


def test_an_assembly_travels_as_bytes() -> None:
    assembly = compile_llguidance(POINT, SMALL).assembly
    assert decode_assembly(encode_assembly(assembly)) == assembly
