"""The streaming parser: any chunking gives the same events, calls come back as written, nothing is lost."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.lang.ir import Reasoning
from branchwork.lang.reasoning import MODEL_TYPES, split
from branchwork.lang.toolformats import FORMATS, Call, Format, ToolSpec, written
from branchwork.lang.turnparser import (
    Answer,
    CallArguments,
    CallBegan,
    CallBroken,
    CallEnded,
    Event,
    Parser,
    Said,
    Thought,
    gathered,
    merged,
)

THINK = Reasoning("<think>", "</think>")
SAY = ToolSpec(
    "say",
    "",
    {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "n": {"type": "integer"},
            "x": {"type": ["number", "null"]},
            "flag": {"type": "boolean"},
            "list": {"type": "array"},
            "map": {"type": "object"},
        },
    },
)
TOOLS = [SAY, ToolSpec("get-weather.v2"), ToolSpec("ping")]
NAMES = sorted(FORMATS)
FORM = FORMATS["hermes"]

TEXT = st.text(max_size=12) | st.text("<>[](){}\"'\\/:;,=` \n\tab1\u4eac\U0001f600\u2028", max_size=24)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(-1e9, 1e9, width=32) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "text": TEXT,
        "n": st.integers(),
        "x": st.none() | st.floats(-1e9, 1e9, width=32),
        "flag": st.booleans(),
        "list": st.lists(JSON, max_size=3),
        "map": st.dictionaries(TEXT, JSON, max_size=3),
    },
)
CALLS = st.lists(st.tuples(st.sampled_from([tool.name for tool in TOOLS]), ARGUMENTS), min_size=1, max_size=3)


def pieces(form: Format) -> list[str]:
    """What garbage of a format is made of: its own markers, halves of them, the beginnings of calls."""
    whole = written([Call("say", '{"text": "a <think> \\u00e9", "n": 1}'), Call("ping", "{}")], form)
    markers = [*form.markers, form.opener, form.each, form.sep, form.close, "<think>", "</think>", "[", "]", "{", "}"]
    halves = [marker[: len(marker) // 2] for marker in markers]
    return [
        *filter(None, markers),
        *filter(None, halves),
        whole,
        whole[: len(whole) // 2],
        "say",
        "\n",
        " ",
        "a",
        '"',
        ",",
    ]


def parsed(text: str, form: Format | None, how: Any = THINK, cuts: Sequence[int] = ()) -> list[Event]:
    parser = Parser(form, how, TOOLS)
    places = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    events: list[Event] = []
    for first, last in itertools.pairwise(places):
        events += parser.feed(text[first:last])
    return merged(events + parser.finish())


def read(text: str, form: Format | None, how: Any = THINK) -> Answer:
    return gathered(parsed(text, form, how))


def legible(calls: list[tuple[str, dict[str, Any]]], form: Format) -> list[Call]:
    """As Calls, without what the format has no way to write: the end of an element within a text, such text as key."""
    made = []
    for name, arguments in calls:
        end = form.marks.valued.strip() if form.marks else "\0\0"
        kept = {key: value for key, value in arguments.items() if end not in json.dumps(value, ensure_ascii=False)}
        made.append(Call(name, json.dumps(kept, ensure_ascii=False)))
    return made


# --- properties of every row


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(calls=CALLS, before=TEXT, thought=st.none() | TEXT)
def test_calls_come_back_as_they_were_written(
    name: str, calls: list[tuple[str, dict[str, Any]]], before: str, thought: str | None
) -> None:
    form = FORMATS[name]
    made = legible(calls, form)
    if form.marks is not None:  # of a tool of which nothing is known all arguments are texts
        made = [call for call in made if call.name == "say"]
    said = "" if form.bare or "<" in before or "[" in before else before.strip()
    thinking = "" if thought is None or "<" in thought else f"<think>{thought}</think>\n"
    found = read(f"{thinking}{said}\n{written(made, form)}", form)
    assert (found.said.strip(), found.broken) == (said, False)
    assert [(call.name, json.loads(call.arguments)) for call in found.calls] == [
        (call.name, json.loads(call.arguments)) for call in made
    ]
    assert found.thought == (thinking and str(thought).strip())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), cuts=st.lists(st.integers(0, 10**6), max_size=12))
def test_any_chunking_gives_the_same_events(name: str, data: st.DataObject, cuts: list[int]) -> None:
    form = FORMATS[name]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces(form)) | TEXT, max_size=12)))
    how = data.draw(st.sampled_from([None, THINK, Reasoning("<think>", "</think>", begun=True)]))
    whole = parsed(text, form, how)
    assert parsed(text, form, how, cuts) == whole
    assert parsed(text, form, how, range(len(text))) == whole


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_garbage_never_raises_and_loses_no_character(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces(form)) | TEXT, max_size=10)))
    events = parsed(text, form, None)
    assert well_formed(events)
    rest = text
    for event in events:  # what is said stands in the text, in this order, and between it nothing but whole calls
        if isinstance(event, Said):
            gap, found, rest = rest.partition(event.text)
            assert found and (not gap.strip() or CallEnded in map(type, events))
    if not any(isinstance(event, CallEnded) for event in events):
        assert read(text, form, None).said == text
    assert not rest.strip() or any(isinstance(event, CallEnded) for event in events)


def well_formed(events: list[Event]) -> bool:
    """Calls are numbered from 0 without a gap, one is under way at a time, and each ends or is taken back."""
    under_way: int | None = None
    following = 0
    for event in events:
        match event:
            case CallBegan(index):
                assert under_way is None and index == following
                under_way, following = index, index + 1
            case CallArguments(index, text):
                assert under_way == index and text
            case CallEnded(index):
                assert under_way == index
                under_way = None
            case CallBroken(index, began):
                assert (under_way == index) == began
                under_way = None
            case Said(text) | Thought(text):
                assert under_way is None and text
    return under_way is None


@pytest.mark.parametrize("name", NAMES)
def test_arguments_of_ended_calls_are_json_objects_whatever_was_written_around_them(name: str) -> None:
    form = FORMATS[name]
    call = written([Call("say", '{"text": "</tool_call> [ARGS] ; ] <think>", "n": 1}')], form)
    for text in (call, f"{call}\n{call}", f"{call} and {call}", call.replace(" ", "\n "), call + call[:9]):
        for found in read(text, form).calls:
            assert isinstance(json.loads(found.arguments), dict)
    assert json.loads(read(call, form).calls[0].arguments)["text"] == "</tool_call> [ARGS] ; ] <think>"


@pytest.mark.parametrize("name", NAMES)
def test_text_is_held_back_only_while_it_may_become_a_marker(name: str) -> None:
    form = FORMATS[name]
    parser = Parser(form, THINK, TOOLS)
    assert parser.feed("So 1 < 2") == [Said("So 1 < 2")]
    if form.opener:
        assert parser.feed(f" and {form.opener[:4]}") == [Said(" and")]
        assert parser.feed("!") == [Said(f" {form.opener[:4]}!")]
    assert parser.feed("\n") == [] and parser.feed("x") == [Said("\nx")]
    assert parser.finish() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_call_is_told_while_it_is_written(name: str) -> None:
    form = FORMATS[name]
    text = written([Call("say", '{"text": "one two three four five", "n": 1}')], form)
    parser = Parser(form, None, TOOLS)
    events = parser.feed(text[: text.index("three")])
    assert events[0] == CallBegan(0, "say")
    joined = "".join(event.text for event in events if isinstance(event, CallArguments))
    assert joined.startswith("{") and ("one two" in joined) == (form.body != "python")


# --- thinking


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_thinking_is_told_apart_as_split_does_it_with_whole_texts(model_type: str, data: st.DataObject) -> None:
    how = MODEL_TYPES[model_type]
    thought, said = data.draw(TEXT), data.draw(TEXT)
    text = data.draw(st.sampled_from([f"{how.begin}{thought}{how.end}{said}", f"{how.begin}{thought}", said]))
    if text.count(how.begin) > 1 or (how.begun and text == said):
        return
    found = read(text, None, how)
    assert (found.thought, found.said) == split(text, how)


def test_a_thinking_block_that_never_ends_is_all_thought() -> None:
    assert parsed("<think>\nIs it 1 < 2? </thin", FORM) == [Thought("Is it 1 < 2? </thin")]
    begun = Reasoning("<think>", "</think>", begun=True)
    assert parsed("so\n\nwhat\n", FORM, begun) == [Thought("so\n\nwhat")]


def test_thinking_holds_no_calls_and_a_call_holds_no_thinking() -> None:
    call = written([Call("say", '{"text": "<think>no</think>"}')], FORM)
    other = written([Call("ping", "{}")], FORM)
    text = f"<think>first {other}</think>\n\nWell. {call}"
    assert parsed(text, FORM) == [
        Thought(f"first {other}"),
        Said("Well."),
        CallBegan(0, "say"),
        CallArguments(0, '{"text": "<think>no</think>"}'),
        CallEnded(0),
    ]


# --- particular texts


def test_white_space_around_calls_is_the_formats_and_text_after_one_keeps_its_own() -> None:
    call = written([Call("ping", "{}")], FORM)
    assert read(f"\n\nSure.\n\n{call}\n{call}\n", FORM) == Answer(
        "\n\nSure.", "", (Call("ping", "{}"),) * 2, False, False
    )
    assert read(f"Sure. {call} Done.\n", FORM).said == "Sure. Done.\n"
    assert read(" \n", FORM).said == " \n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"arguments": {"n": 1}, "name": "say"}</tool_call>'),
        ("hermes", '<tool_call>\n{"id": [1, {}], "name": "say", "arguments": "{\\"n\\": 1}"}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "say", "arguments": {"n": 1}}'),
        ("hermes", '<tool_call>\n{"name": "say", "parameters": {"n": 1}}</tool_call>'),
        ("qwen-coder", "<tool_call>\n<function=say>\n<parameter=n>1</parameter>\n</function>\n</tool_call>"),
        ("deepseek", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>say\n```json\n{"n": 1}\n```\n<｜tool▁call▁end｜>'),
        ("mistral", '[TOOL_CALLS]say[CALL_ID]a1b2c3d4e[ARGS]{"n": 1}'),
        ("mistral-list", '[TOOL_CALLS] [{"name": "say", "arguments": {"n": 1}, "id": "a1b2c3d4e"}]'),
        ("llama", '<|python_tag|>{"name": "say", "parameters": {"n": 1}}'),
        ("llama", '\n\n{"name": "say", "arguments": {"n": 1}}'),
        ("llama", '{"type": "function", "name": "say", "parameters": {"n": 1}}'),
        ("pythonic", "<|python_start|>[say(n=1)]<|python_end|>"),
        ("pythonic", "[ say( n = 1 , ) ]"),
        ("kimi", '<|tool_calls_section_begin|>\n<|tool_call_begin|>say<|tool_call_argument_begin|> {"n": 1}'),
    ],
)
def test_what_models_write_otherwise_is_read_too(name: str, text: str) -> None:
    found = read(text, FORMATS[name])
    assert [(call.name, json.loads(call.arguments)) for call in found.calls] == [("say", {"n": 1})]
    assert (found.said, found.broken) == ("", False)


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("'it\\'s'", "it's"),
        ('"""two\nlines"""', "two\nlines"),
        ("r'\\d+'", "\\d+"),
        ("'\\d'", "\\d"),
        ("''", ""),
        ("[1, (2, None), {'a': True}]", [1, [2, None], {"a": True}]),
        ("true", True),
        ("[null, false]", [None, False]),
        ("-1.50", -1.5),
        ("'), say(n=2)'", "), say(n=2)"),
        ("'\\ud800'", "\ud800"),
    ],
)
def test_python_literals_become_json(literal: str, value: Any) -> None:
    (call,) = read(f"[say(text={literal}, n=1)]", FORMATS["pythonic"]).calls
    assert json.loads(call.arguments) == {"text": value, "n": 1}
    call.arguments.encode()


@pytest.mark.parametrize("literal", ["{1, 2}", "b'x'", "1j", "open('x')", "n", "[1e999]", "", "[1", "(1]", "'a' 'b' c"])
def test_what_is_no_literal_is_no_call(literal: str) -> None:
    text = f"[say(text={literal})]"
    found = read(text, FORMATS["pythonic"])
    assert not found.calls and found.broken and found.said == text


def test_a_broken_call_is_taken_back_and_said_as_it_was_written() -> None:
    text = 'Hm <tool_call>\n{"name": "say", "arguments": {"n": 1,}}\n</tool_call> so'
    assert parsed(text, FORM) == [
        Said("Hm"),
        CallBegan(0, "say"),
        CallArguments(0, '{"n": 1,'),
        CallBroken(0, began=True, cut=False),
        Said(text.removeprefix("Hm")),
    ]
    assert parsed("<tool_call>\nno", FORM) == [CallBroken(0, began=False, cut=False), Said("<tool_call>\nno")]


def test_a_call_after_a_broken_one_counts() -> None:
    call = written([Call("ping", "{}")], FORM)
    assert read(f"<tool_call>{call}", FORM) == Answer("<tool_call>", "", (Call("ping", "{}"),), True, False)
    half = '<tool_call>\n{"name": "say", "arguments": {"n": '
    found = parsed(half + call, FORM)
    assert found[-3:] == [CallBegan(1, "ping"), CallArguments(1, "{}"), CallEnded(1)] and Said(half) in found


def test_a_call_that_is_cut_off_says_so() -> None:
    text = written([Call("say", '{"n": 12}')], FORM)
    for end in range(len("<tool_call>"), len(text)):
        found = read(text[:end], FORM)
        whole = text[:end].rstrip().endswith("}}")
        assert (found.cut, found.said) == ((False, "") if whole else (True, text[:end]))


@pytest.mark.parametrize(
    "text", ['{"name": "nobody", "parameters": {}}', '{"city": "Rome"}', "[1, 2]", "[nobody()]", "{"]
)
@pytest.mark.parametrize("name", ["llama", "pythonic"])
def test_an_answer_that_looks_like_a_call_of_no_tool_is_said(name: str, text: str) -> None:
    assert parsed(text, FORMATS[name]) == [Said(text)]


def test_a_json_answer_streams_as_soon_as_it_is_no_call() -> None:
    assert Parser(FORMATS["llama"], None, TOOLS).feed('{"city": "Ro') == [Said('{"city": "Ro')]


def test_line_breaks_within_json_texts_are_escaped() -> None:
    (call,) = read('<tool_call>\n{"name": "say", "arguments": {"text": "a\nb\tc"}}\n</tool_call>', FORM).calls
    assert json.loads(call.arguments) == {"text": "a\nb\tc"}


def test_elements_are_typed_by_the_schema() -> None:
    form = FORMATS["qwen-coder"]
    given_ = {"text": "12", "n": "12", "x": "None", "flag": "True", "list": "[1, ", "other": "12"}
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in given_.items())
    (call,) = read(f"<tool_call>\n<function=say>\n{body}</function>\n</tool_call>", form).calls
    assert json.loads(call.arguments) == {**given_, "n": 12, "x": None, "flag": True}


@settings(max_examples=30, deadline=None)
@given(
    schema=st.recursive(JSON, lambda s: st.fixed_dictionaries({}, optional=dict.fromkeys(("type", "anyOf", "enum"), s)))
)
def test_a_schema_that_is_none_does_not_stop_the_parser(schema: Any) -> None:
    tool = ToolSpec("say", "", {"properties": {"n": schema}})
    text = "<tool_call>\n<function=say>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>"
    assert gathered([*(parser := Parser(FORMATS["qwen-coder"], None, [tool])).feed(text), *parser.finish()]).calls


def test_a_long_answer_full_of_openers_is_said() -> None:
    text = ('{"' * 200 + "<tool_call>" * 200 + "[TOOL_CALLS][" * 200 + "\n" * 200 + "x" * 200) * 2
    for name in NAMES:
        found = parsed(text, FORMATS[name], THINK, range(0, len(text), 3))
        said = "".join(event.text for event in found if isinstance(event, Said))
        assert re.sub(r"\s", "", said) == re.sub(r"\s", "", text)


def test_surrogates_and_odd_names_pass() -> None:
    assert parsed("a\ud800b\udfff", FORM) == [Said("a\ud800b\udfff")]
    text = '<tool_call>\n{"name": "\\ud800", "arguments": {}}\n</tool_call>'
    assert read(text, FORM).said == text
    (call,) = read('<tool_call>\n{"name": "say", "arguments": {"text": "\\ud83d\\ude00"}}\n</tool_call>', FORM).calls
    assert json.loads(call.arguments) == {"text": "\U0001f600"}
