"""Structural tags: what a begin starts is constrained, what is exempt is not, text around is free."""

from __future__ import annotations

from functools import partial

import pytest

from branchwork.lang.constraint import Invalid, JsonSchema, Regex, Tag, Tagged
from branchwork.runtime.grammar.llg import compile_llguidance
from tests.runtime.grammar.vocabularies import SMALL

compact = partial(JsonSchema, whitespace="compact")

CALL = compact('{"type":"object","properties":{"x":{"type":"integer"}},"required":["x"],"additionalProperties":false}')
TOOLS = (Tag("<call>", CALL, "</call>"), Tag("<n>", Regex("[0-9]+"), "</n>"))


def takes(tagged: Tagged, text: str) -> bool:
    matcher, tokens = compile_llguidance(tagged, SMALL).start(), SMALL.encode(text.encode())
    return matcher.accept(tokens) == len(tokens) and matcher.is_accepting


@pytest.mark.parametrize("text", ["", "hi <cal>", 'hi <call>{"x":1}</call> bye', "<n>12</n><n>3</n>", "1 < 2\n<n"])
def test_free_text_with_whole_tags_is_taken(text: str) -> None:
    assert takes(Tagged(TOOLS), text)


@pytest.mark.parametrize("text", ["<call>", "<call>{}</call>", "<n>x</n>", "<n>1", "<n>1</n", 'a<call>{"x":1}<n>1</n>'])
def test_a_begun_tag_must_be_kept_to_and_closed(text: str) -> None:
    assert not takes(Tagged(TOOLS), text)


def test_exempt_sections_hold_anything_up_to_their_end() -> None:
    tagged = Tagged(TOOLS, exempt=(("<think>", "</think>"),))
    assert takes(tagged, "<think><n>not a number</think><n>1</n>")
    assert takes(tagged, "<think> never closed <n>")
    assert not takes(tagged, "<think></think><n>x")


def test_at_least_one_asks_for_a_tag() -> None:
    tagged = Tagged(TOOLS, at_least_one=True, exempt=(("<think>", "</think>"),))
    assert not takes(tagged, "nothing") and not takes(tagged, "<think><n>1</n></think>")
    assert takes(tagged, "<think>a</think> so <n>1</n> done")


def test_tags_that_begin_alike_are_told_apart() -> None:
    tags = (Tag("<f", Regex("=[0-9]"), ">"), Tag("<foo", Regex("[a-z]"), ">"), Tag("<f", Regex("-"), ">"))
    assert all(takes(Tagged(tags), text) for text in ("<f=1>", "<foox>", "<f->"))
    assert not takes(Tagged(tags), "<fx>")


def test_a_tag_without_a_begin_is_refused() -> None:
    with pytest.raises(Invalid, match="needs a begin"):
        takes(Tagged((Tag("", CALL, ""),)), "")
