"""Every format's constraint, by the real grammar: right calls are taken, wrong ones refused, what it allows is read."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from branchwork.lang.constraint import Capture, JsonSchema, Literal, OneOf, Sequence, optional_captures
from branchwork.lang.ir import Reasoning
from branchwork.lang.toolformats import FORMATS, Call, Format, ToolSpec, written
from branchwork.lang.toolshapes import answer
from branchwork.lang.turnparser import Parser, gathered
from branchwork.runtime.grammar.llg import LlgGrammar, compile_llguidance
from branchwork.runtime.grammar.vocabulary import unpack
from tests.runtime.grammar.vocabularies import SMALL

THINK, BEGUN = Reasoning("<think>", "</think>"), Reasoning("<think>", "</think>", begun=True)
LIGHT = ToolSpec(
    "set_light",
    "Set the light",
    {
        "type": "object",
        "properties": {
            "room": {"enum": ["hall", "attic"]},
            "level": {"type": "integer"},
            "on": {"type": "boolean"},
            "zones": {"type": "array", "items": {"type": ["integer", "null"]}, "maxItems": 2},
            "at": {"$ref": "#/$defs/Place"},
        },
        "required": ["room"],
        "$defs": {"Place": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
    },
)
NOTE = ToolSpec("note", "", {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]})
PING = ToolSpec("ping")
TOOLS = [LIGHT, NOTE, PING]
ONE = Call("set_light", '{"room": "attic", "level": -3, "on": true, "zones": [1, null], "at": {"x": 1.5}}')
OTHER = Call("note", '{"text": "it is \\u4eac"}')
EMPTY = Call("ping", "{}")
NAMES = sorted(FORMATS)


def grammar(form: Format, **options: Any) -> LlgGrammar:
    return compile_llguidance(answer(form, TOOLS, **options), SMALL)


def takes(compiled: LlgGrammar, text: str) -> bool:
    matcher, tokens = compiled.start(), SMALL.encode(text.encode())
    return matcher.accept(tokens) == len(tokens) and matcher.is_accepting


def wrong(form: Format) -> dict[str, str]:
    """Calls that are none, by what is wrong with them."""
    right = written([ONE], form)
    return {
        "name": written([Call("set_lamp", ONE.arguments)], form),
        "missing": written([Call("set_light", '{"level": 3}')], form),
        "option": right.replace("attic", "cellar"),
        "type": right.replace("-3", "low"),
        "unknown": written([Call("set_light", '{"room": "hall", "speed": 1}')], form),
        "cut": right[: right.index("attic")],
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parallel", [True, False])
def test_right_calls_are_taken_and_wrong_ones_refused(name: str, parallel: bool) -> None:
    form = FORMATS[name]
    compiled = grammar(form, choice="required", parallel=parallel)
    for call in (ONE, OTHER, EMPTY):
        assert takes(compiled, written([call], form)), call
    for fault, text in wrong(form).items():
        assert not takes(compiled, text), fault
    assert takes(compiled, written([ONE, OTHER, ONE], form)) == parallel
    assert not takes(compiled, "Nothing to call.")
    assert takes(compiled, f"Well. {written([ONE], form)}") != form.bare


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parallel", [True, False])
def test_auto_leaves_it_to_the_model_and_none_forbids_calls(name: str, parallel: bool) -> None:
    form = FORMATS[name]
    auto, none = grammar(form, parallel=parallel), grammar(form, choice="none", parallel=parallel)
    for compiled in (auto, none):
        assert takes(compiled, "Nothing <to> [call].")
    assert takes(auto, written([ONE], form)) and not takes(none, written([ONE], form))
    for fault, text in wrong(form).items():
        assert not takes(auto, text) or (form.bare and fault == "name"), fault  # text, where no tool has the name


@pytest.mark.parametrize("name", NAMES)
def test_one_tool_can_be_asked_for(name: str) -> None:
    compiled = grammar(FORMATS[name], choice="note")
    assert takes(compiled, written([OTHER], FORMATS[name])) and not takes(compiled, written([ONE], FORMATS[name]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [THINK, BEGUN], ids=["think", "begun"])
def test_thinking_comes_before_calls_and_holds_none(name: str, how: Reasoning) -> None:
    form = FORMATS[name]
    compiled = grammar(form, choice="required", reasoning=how)
    thought = f"maybe {wrong(form)['name']}</think>\n\n"
    text = thought if how.begun else f"<think>{thought}"
    assert takes(compiled, text + written([ONE], form))
    assert not takes(compiled, text + "so")
    assert takes(compiled, written([ONE], form)) != how.begun
    if how.begun:
        assert not takes(compiled, thought.replace("</think>", ""))


@pytest.mark.parametrize("name", ["llama", "pythonic"])
def test_an_answer_may_be_json_where_it_is_not_the_call_of_a_tool(name: str) -> None:
    compiled = grammar(FORMATS[name])
    assert takes(compiled, '{"city": "Rome"}') and takes(compiled, '{ "name": "Rome"}') and takes(compiled, "[1, 2]")
    spaced = '\n{ "name" : "note", "arguments": {}}' if name == "llama" else "[ note ( )]"
    assert not takes(compiled, spaced)  # the parser would read it as a call


@pytest.mark.parametrize("name", NAMES)
def test_whatever_the_constraint_allows_the_parser_reads_as_calls_by_their_schemas(name: str) -> None:
    form, tools = FORMATS[name], [LIGHT, PING]
    compiled = compile_llguidance(answer(form, tools, "required"), SMALL)
    read = 0
    for seed in range(5):
        matcher, dice = compiled.start(), random.Random(seed)
        text = bytearray(form.opener.encode() if not form.bare else b"")
        matcher.accept(SMALL.encode(bytes(text)))
        row = np.zeros(SMALL.words, np.int32)
        while not matcher.is_accepting and len(text) < 1000:
            matcher.mask_into(row)
            allowed = [int(number) for number in unpack(row)]
            ink = [token for token in allowed if SMALL.tokens[token].strip()]
            token = dice.choice(ink if ink and dice.random() < 0.9 else allowed)
            assert matcher.accept([token]) == 1
            text += SMALL.tokens[token]
        if not matcher.is_accepting:
            continue  # white space without end
        parser = Parser(form, None, tools)
        found = gathered([*parser.feed(text.decode()), *parser.finish()])
        assert found.calls and not found.broken and not found.said, text.decode()
        for call in found.calls:
            schema = next(tool.parameters for tool in tools if tool.name == call.name)
            jsonschema.validate(json.loads(call.arguments), schema)
        read += 1
    assert read >= 3


def test_no_tools_and_an_unknown_choice_are_refused() -> None:
    with pytest.raises(ValueError, match="no tools"):
        answer(FORMATS["hermes"], [])
    with pytest.raises(ValueError, match="'divide' is none of auto, required, none, nor a tool: set_light, note, ping"):
        answer(FORMATS["hermes"], TOOLS, "divide")


def test_one_of_several_parts_is_an_alternative_wherever_it_stands() -> None:
    number = Capture("n", JsonSchema('{"type": "integer"}'))
    either = Sequence((Literal("a "), OneOf((Literal("none"), Sequence((Literal("n="), number)))), Literal(".")))
    compiled = compile_llguidance(either, SMALL)
    assert takes(compiled, "a none.") and takes(compiled, "a n=12.") and not takes(compiled, "a n=none.")
    assert optional_captures(either) == {"n"}
