"""Turns as templates and models differ: tools that a template does not know, thinking, calls in the history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import branchwork.runtime.sapling as sapling
from branchwork.lang.constraint import Regex, Sequence, walk
from branchwork.lang.protocol import ModelInfo
from branchwork.lang.toolformats import ToolSpec
from branchwork.lang.turnparser import CallArguments, CallBegan, Said, Thought
from branchwork.runtime.gateway.served import Prompt, Served
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.text import Texts
from branchwork.runtime.gateway.turns import Ask, next_turn, resumed, specs
from branchwork.runtime.loading.hub import Resolved

MODEL = Path(sapling.__file__).parent
TEXTS = Texts(MODEL)
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1,  "b":2}'}}
ADD = ToolSpec("add", "Add two numbers.", {"type": "object", "properties": {"a": {"type": "integer"}}})

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
THINKS = PLAIN.replace("<assistant>{%", "<assistant>{% if enable_thinking is false %}<think></think>{% endif %}{%")
BEGUN = PLAIN.replace("<assistant>{%", "<assistant><think>\n{%")
OBJECTS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "[{{ tools | length }} {{ c.function.name }} {{ c.function.arguments | tojson }}]"
    "{% endfor %}{{ m.content }}{% endfor %}"
)


def model(template: str | None) -> Served:
    """A model of which only the text side has begun."""
    served = Served("sapling", [], Path("/nowhere"), lambda connection, message: None)
    served.texts, served.template, served.specials = TEXTS, template, {}
    served.found = Resolved("sapling", Path("/nowhere"))
    served.info = ModelInfo(name="sapling", family="oak", context=2048, vocab=3072, eos_ids=(2,), frames=None)  # type: ignore[arg-type]
    return served


def test_a_template_without_tools_is_helped() -> None:
    result = {"role": "tool", "content": "3", "tool_call_id": "call_1"}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, result]
    text = next_turn(model(PLAIN), Ask(messages, [ADD])).prompt.text
    assert text.startswith("<system># Tools") and "Add two numbers." in text
    assert '{"name": "add", "arguments": {"a":1,  "b":2}}' in text and text.endswith("<tool>3\n<assistant>")
    told = next_turn(model(PLAIN), Ask([{"role": "system", "content": "Be kind."}, USER], [ADD])).prompt.text
    assert told.startswith("<system>Be kind.\n\n# Tools") and told.count("<system>") == 1


def test_a_template_gets_arguments_as_it_takes_them() -> None:
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert '[1 add {"a": 1, "b": 2}]' in next_turn(model(OBJECTS), Ask(messages, [ADD])).prompt.text
    own = model(json.loads((MODEL / "tokenizer_config.json").read_text())["chat_template"])
    assert '"arguments": {"a":1,  "b":2}}' in next_turn(own, Ask(messages, [ADD])).prompt.text
    broken = {**CALL, "function": {"name": "add", "arguments": "{"}}
    with pytest.raises(Problem, match="'add' are no JSON"):
        next_turn(model(OBJECTS), Ask([USER, {"role": "assistant", "content": "", "tool_calls": [broken]}], [ADD]))


def test_thinking_is_told_apart_from_the_answer() -> None:
    turn = next_turn(model(BEGUN), Ask([USER], shape=Regex("[0-9]+")))
    assert turn.reasoning is not None and turn.reasoning.begun and isinstance(turn.constraint, Sequence)
    assert Regex("[0-9]+") in list(walk(turn.constraint))
    reader = turn.reader()
    events = [*reader.feed("one and "), *reader.feed("one</th"), *reader.feed("ink>\n2"), *reader.finish()]
    assert "".join(event.text for event in events if isinstance(event, Thought)) == "one and one"
    assert "".join(event.text for event in events if isinstance(event, Said)) == "2"


def test_thinking_that_the_template_has_ended_is_not_expected() -> None:
    assert next_turn(model(THINKS), Ask([USER])).reasoning is not None
    done = next_turn(model(THINKS), Ask([USER], shape=Regex("a"), context={"enable_thinking": False}))
    assert done.reasoning is None and done.constraint == Regex("a")


def test_a_call_that_is_cut_off_stays_as_far_as_it_came() -> None:
    reader = next_turn(model(PLAIN), Ask([USER], [ADD])).reader()
    events = reader.feed('So.\n<tool_call>\n{"name": "add", "arguments": {"a": 1') + reader.finish()
    assert [event for event in events if isinstance(event, Said)] == [Said("So.")]
    assert CallBegan(0, "add") in events
    arguments = "".join(event.text for event in events if isinstance(event, CallArguments))
    assert arguments and '{"a": 1'.startswith(arguments)


OWN = json.loads((MODEL / "tokenizer_config.json").read_text())["chat_template"]


@pytest.mark.parametrize("template", [PLAIN, OWN], ids=["plain", "own"])
def test_a_resumed_conversation_is_the_same_text_and_keeps_its_tokens(template: str) -> None:
    served = model(template)
    first = next_turn(served, Ask([USER])).prompt
    odd = served.texts.encode([]) + [
        served.texts.encode([Plain(letter)])[0] for letter in "Hello"
    ]  # not as it is encoded
    transcript = served.answered(first, "Hello", {"output_ids": [*odd, 2], "kept_tokens": len(odd)})
    more = resumed(served, Ask([{"role": "user", "content": "<|im_end|> And?"}]), transcript)
    assert more is not None and more.ids[: len(transcript.ids)] == [*first.ids, *odd]
    whole = [USER, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "<|im_end|> And?"}]
    assert more.text == next_turn(served, Ask(whole)).prompt.text
    assert served.texts.text_of(more.ids) == more.text


class Plain:
    """A piece of text."""

    special, ids = False, b""

    def __init__(self, text: str) -> None:
        self.text = text


def test_a_template_that_says_nothing_of_an_answer_cannot_be_resumed() -> None:
    assert resumed(model("{{ messages[0].content }}"), Ask([USER]), Prompt([1], "a")) is None


def test_a_stop_inside_a_token_leaves_the_rest_as_text() -> None:
    served = model(PLAIN)
    ids = TEXTS.encode([Plain("The capital")])
    text = "The cap"
    kept = next(n for n in range(len(ids), -1, -1) if len(TEXTS.text_of(ids[:n])) <= len(text))
    after = served.answered(Prompt([5], "x"), text, {"output_ids": ids, "kept_tokens": kept})
    assert TEXTS.text_of(after.ids[1:]) == text and after.ids[1 : 1 + kept] == ids[:kept] and after.text == "xThe cap"


@pytest.mark.parametrize("names", [["a b"], [""], ["add", "add"]])
def test_tools_need_names_that_differ(names: list[str]) -> None:
    with pytest.raises(Problem) as caught:
        specs((name, "", None) for name in names)
    assert caught.value.param == "tools"
