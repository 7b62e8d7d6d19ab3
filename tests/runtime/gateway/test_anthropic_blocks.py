"""Content blocks made from an answer's events, and the stream that tells of them."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from branchwork.lang.reasoning import THINK
from branchwork.lang.toolformats import ToolSpec, format_named
from branchwork.lang.turnparser import CallArguments, CallBegan, Parser, Said, Thought
from branchwork.runtime.gateway.anthropic_blocks import Blocks

ANSWER = (
    "<think>\nLet me look.\n</think>\n\nI will ask.\n<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Paris", "days": [1, 2]}}\n</tool_call>\n<tool_call>\n'
    '{"name": "time", "arguments": {}}\n</tool_call>'
)
TOOLS = [ToolSpec("weather"), ToolSpec("time")]


def read(pieces: list[str]) -> tuple[Blocks, list[dict[str, Any]]]:
    parser, blocks = Parser(format_named("hermes"), THINK, TOOLS), Blocks()
    told = [event for piece in pieces for event in blocks.read(parser.feed(piece))]
    return blocks, [*told, *blocks.read(parser.finish()), *blocks.finish()]


def rebuilt(told: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(type, text) of every block, as a client puts them together; fails where the order of events is wrong."""
    found: list[tuple[str, str]] = []
    opened = False
    for event in told:
        if event["type"] == "content_block_start":
            assert not opened and event["index"] == len(found)
            found.append((event["content_block"]["type"], ""))
        else:
            assert opened and event["index"] == len(found) - 1
        opened = event["type"] != "content_block_stop"
        if event["type"] == "content_block_delta":
            (text,) = (value for key, value in event["delta"].items() if key != "type")
            kind, before = found[-1]
            found[-1] = kind, before + (text if event["delta"]["type"] != "signature_delta" else "")
    assert not opened
    return found


def test_thinking_text_and_calls_are_blocks_in_their_order() -> None:
    blocks, _ = read([ANSWER])
    thought, said, *calls = blocks.content
    assert thought["thinking"] == "Let me look." and len(thought["signature"]) == 64
    assert said == {"type": "text", "text": "I will ask."} and blocks.called
    assert [(call["name"], call["input"]) for call in calls] == [
        ("weather", {"city": "Paris", "days": [1, 2]}),
        ("time", {}),
    ]


@given(st.lists(st.integers(1, 12), max_size=40))
def test_however_an_answer_is_cut_the_stream_tells_the_same(lengths: list[int]) -> None:
    ends = [0, *(end for end in accumulate(lengths) if end < len(ANSWER)), len(ANSWER)]
    blocks, told = read([ANSWER[first:last] for first, last in pairwise(ends)])
    whole, all_at_once = read([ANSWER])
    assert rebuilt(told) == rebuilt(all_at_once)
    assert [{**block, "id": ""} for block in blocks.content] == [{**block, "id": ""} for block in whole.content]


def test_a_call_that_never_ends_keeps_what_it_has() -> None:
    blocks = Blocks()
    blocks.read([CallBegan(0, "weather"), CallArguments(0, '{"city": "Par')])
    assert blocks.finish()[-1]["type"] == "content_block_stop"
    assert blocks.content[0]["input"] == {"city": "Par"}


def test_white_space_alone_is_no_block() -> None:
    blocks = Blocks()
    assert blocks.read([Said("\n")]) == [] and blocks.finish() == [] and blocks.content == []
    blocks.read([Thought("Hm."), Said("\n"), Said("Yes.")])
    assert [block["type"] for block in blocks.content] == ["thinking", "text"]
