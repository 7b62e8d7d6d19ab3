"""The table of formats: which row a template speaks, how calls are written, which markers a tokenizer has to give."""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwork.lang.ir import Reasoning
from branchwork.lang.reasoning import MODEL_TYPES, after_prompt, reasoning_of
from branchwork.lang.toolformats import FORMATS, Call, ToolSpec, announced, format_of, json_text, python_text, written

ADD = Call("add", '{"a": 1, "b": "x"}')
PING = Call("ping", "{}")
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "x"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>',
    "qwen-coder": "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx\n</parameter>\n"
    "</function>\n</tool_call>\n<tool_call>\n<function=ping>\n</function>\n</tool_call>",
    "seed": "<seed:tool_call>\n<function=add>\n<parameter=a>1</parameter>\n<parameter=b>x</parameter>\n</function>\n"
    "</seed:tool_call>\n<seed:tool_call>\n<function=ping>\n</function>\n</seed:tool_call>",
    "glm": "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n"
    "<arg_value>x</arg_value>\n</tool_call>\n<tool_call>ping\n</tool_call>",
    "deepseek": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1, "b": "x"}\n'
    "```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n```<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>",
    "deepseek-v3.1": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1, "b": "x"}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>ping<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>"
    '{"a": 1, "b": "x"}<|tool_call_end|><|tool_call_begin|>functions.ping:1<|tool_call_argument_begin|>{}'
    "<|tool_call_end|><|tool_calls_section_end|>",
    "mistral": '[TOOL_CALLS]add[ARGS]{"a": 1, "b": "x"}[TOOL_CALLS]ping[ARGS]{}',
    "mistral-list": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": "x"}}, {"name": "ping", "arguments": {}}]',
    "lfm": '<|tool_call_start|>[add(a=1, b="x"), ping()]<|tool_call_end|>',
    "llama": '{"name": "add", "parameters": {"a": 1, "b": "x"}}; {"name": "ping", "parameters": {}}',
    "pythonic": '[add(a=1, b="x"), ping()]',
}


def test_calls_are_written_as_each_family_writes_them() -> None:
    assert {name: written([ADD, PING], FORMATS[name]) for name in WRITTEN} == WRITTEN
    assert set(FORMATS) - set(WRITTEN) == {"qwen"}
    assert written([ADD, PING], FORMATS["qwen"]) == WRITTEN["hermes"]
    assert all(written([], form) == "" for form in FORMATS.values())


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_template_that_writes_a_rows_calls_speaks_that_row(name: str) -> None:
    form = FORMATS[name]
    for signs in form.signs:
        template = "{%- if tools %}" + "{{- tools | tojson }}".join(signs) + "{%- endif %}"
        assert format_of(template, family="mistral") is form


def test_the_explicit_name_wins_then_the_template_then_the_family() -> None:
    template = "{{ '<tool_call>' ~ (call | tojson) ~ '</tool_call>' }}"
    assert format_of(template) is FORMATS["hermes"]
    assert format_of(template, "llama", "pythonic") is FORMATS["pythonic"]
    assert format_of(template, "llama") is FORMATS["hermes"]
    assert format_of("{{ messages[0].content }}", "llama") is FORMATS["llama"]
    assert format_of(None, "kimi_k2") is FORMATS["kimi"]
    assert format_of(None) is format_of(None, "nobody") is FORMATS["hermes"]
    with pytest.raises(ValueError, match="'smoke'; known: hermes, qwen, qwen-coder"):
        format_of(template, name="smoke")


def test_no_family_is_claimed_by_two_rows() -> None:
    families = [family for form in FORMATS.values() for family in form.families]
    assert len(families) == len(set(families))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_marker_of_a_row_stands_in_what_it_writes_or_may_be_left_out(name: str) -> None:
    form = FORMATS[name]
    if not form.bare:
        assert form.markers and all(marker in written([ADD], form) for marker in form.markers)
        assert form.opener.startswith(form.markers[0])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_model_is_told_names_schemas_and_how_to_call(name: str) -> None:
    form = FORMATS[name]
    tool = ToolSpec("add", "Add two", {"type": "object", "properties": {"a": {"type": "integer"}}})
    text = announced(form, [tool, ToolSpec("ping")])
    assert '"name": "add", "description": "Add two"' in text and '"a": {"type": "integer"}' in text and "ping" in text
    if form.announce is None:
        assert text.endswith(written([Call("function_name", '{"argument": "value"}')], form))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("hermes", "[1]", "are not a JSON object"),
        ("llama", '{"a": ', "are no JSON"),
        ("qwen-coder", '{"a": "x</parameter>"}', "'</parameter>' in argument 'a' of 'add' cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, arguments: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        written([Call("add", arguments)], FORMATS[name])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=VALUES)
def test_json_values_as_python_literals_and_as_text_that_can_be_sent(value: object) -> None:
    assert ast.literal_eval(python_text(value)) == value
    assert json.loads(json_text(value)) == value
    json_text(value).encode()


def test_lone_surrogates_are_escaped_and_nothing_else_is() -> None:
    assert json_text("\ud800\U0001f600é") == '"\\ud800\U0001f600é"'
    assert ast.literal_eval(python_text("\ud800\U0001f600")) == "\ud800\U0001f600"


# --- thinking


@pytest.mark.parametrize(
    ("template", "row"),
    [
        ("{{ '<think>' ~ message.reasoning ~ '</think>' }}", "qwen3"),
        ("[THINK]{{ block.thinking }}[/THINK]", "mistral"),
        ("<seed:think>", "seed_oss"),
        ("<|channel|>analysis<|message|>", "gpt-oss"),
        ("<|channel>thought\n", "gemma4"),
        ("\u25c1think\u25b7", "kimi"),
    ],
)
def test_a_template_tells_how_thinking_is_marked(template: str, row: str) -> None:
    assert reasoning_of(template) == MODEL_TYPES[row]
    assert reasoning_of(template, name="deepseek-r1") == MODEL_TYPES["deepseek-r1"]


def test_a_model_without_marks_does_not_think() -> None:
    assert reasoning_of("{{ message.content.split('</think>')[-1] }}", "qwen3") is None
    assert reasoning_of(None, "qwen3") == MODEL_TYPES["qwen3"]
    assert reasoning_of(None, "gpt_oss") == MODEL_TYPES["gpt-oss"]
    assert reasoning_of(None, "nobody") is reasoning_of(None) is None
    with pytest.raises(ValueError, match="unknown model_type 'smoke'"):
        reasoning_of(None, name="smoke")


def test_the_prompt_tells_whether_the_thinking_has_begun() -> None:
    how = MODEL_TYPES["deepseek-r1"]
    assert after_prompt(how, "<|Assistant|><think>\n") == Reasoning("<think>", "</think>", begun=True)
    assert not after_prompt(how, "<|Assistant|><think>\n\n</think>\n\n").begun
    assert not after_prompt(how, "what is <think>?<|Assistant|>").begun
