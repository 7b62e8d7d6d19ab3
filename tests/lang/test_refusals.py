"""What cannot be sent is refused at the line that says it; what only looks odd arrives as what it is."""

from __future__ import annotations

import enum
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

import branchwork as bw
from branchwork.lang import ir
from branchwork.lang.constraint import Repeat
from branchwork.lang.params import SamplingParams, merge
from branchwork.lang.protocol import Nodes, Open, Start, decode_client, encode


class Fruit(str, enum.Enum):
    APPLE = "apple"


class Safe(str):
    """A text of a class of its own."""


def answer(prompt: str, call: Any) -> str:
    return "a"


@bw.function
def echo(s: bw.ProgramState[Any], text: str) -> None:
    s += "x" + bw.user(text) + bw.gen("a")


def laying(lay: Callable[[bw.ProgramState[Any]], object]) -> bw.Function[[], None]:
    @bw.function
    def body(s: bw.ProgramState[Any]) -> None:
        s += "x"
        lay(s)

    return body


@pytest.mark.parametrize("knob", ["max_tokens", "min_tokens", "top_k", "n", "seed", "logprobs", "prompt_logprobs"])
def test_a_fraction_is_refused_where_a_message_has_a_whole_number(knob: str) -> None:
    with pytest.raises(TypeError, match=f"{knob} must be a whole number, got 3.5"):
        bw.gen("x", **{knob: 3.5})


def test_numbers_of_numpy_are_sent_as_plain_ones() -> None:
    node = bw.gen(
        "x",
        max_tokens=np.int64(3),
        temperature=np.float32(0.5),
        top_p=np.float64(0.5),
        stop_token_ids=np.array([7, 8]),
        stop=[np.str_("\n")],
    )
    assert isinstance(node, ir.Gen)
    params = SamplingParams(**node.knobs)
    sent = decode_client(encode(Nodes(1, 0, (ir.Laid(0, ir.Gen("x", params=params)),))))
    assert isinstance(sent, Nodes)
    assert sent.nodes[0].node == ir.Gen("x", params=params)
    assert (params.max_tokens, params.temperature, params.stop_token_ids) == (3, 0.5, (7, 8))


@pytest.mark.parametrize("ids", [[True], [-1], [2**31], [1.5], "7", 1.5])
def test_what_is_no_token_id_is_refused(ids: Any) -> None:
    with pytest.raises(ValueError, match="stop_token_ids takes token ids"):
        bw.gen("x", stop_token_ids=ids)


@pytest.mark.parametrize("text", [np.str_("pear"), Fruit.APPLE, Safe("plum")])
def test_a_text_of_another_class_arrives_as_the_text_it_is(text: str) -> None:
    plain = str.__str__(text)
    laid = ir.Laid(0, ir.flatten(bw.user(text))[1])
    sent = decode_client(encode(Nodes(1, 0, (laid,))))
    assert isinstance(sent, Nodes)
    assert sent.nodes[0].node == ir.Text(plain)
    started = decode_client(encode(Start(1, 1, 1, (text,))))
    assert isinstance(started, Start) and started.arguments == (plain,)
    state = echo.run(text, backend=bw.ScriptedBackend(answer))
    assert state.messages()[0]["content"] == plain


@pytest.mark.parametrize("program", [echo, echo.compile()])
def test_half_a_surrogate_pair_is_refused_where_it_is_laid(program: Any) -> None:
    with pytest.raises(ValueError, match="character 1 of the text is half of a surrogate pair"):
        program.run("\u00e9\ud800", backend=bw.ScriptedBackend(answer))


def test_half_a_surrogate_pair_is_refused_in_choices_and_variables() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        bw.select("x", ["a", "\ud800"])
    with pytest.raises(ValueError, match="surrogate"):
        laying(lambda s: s.set_var("v", "\ud800")).run(backend=bw.ScriptedBackend(answer))


@pytest.mark.parametrize(
    "lay",
    [
        lambda s: s.set_var(3, "text"),
        lambda s: s.var_scope(3).__enter__(),
        lambda s: s.fork(2).join("majority", name=3),
        lambda s: s.fork(2).join("first", k=1.0),
        lambda s: bw.repeat("a", most=2.0),
    ],
)
def test_names_and_counts_of_the_wrong_type_are_refused_at_their_line(lay: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"3|1\.0|2\.0"):
        laying(lay).run(backend=bw.ScriptedBackend(answer))


def test_counts_of_a_repeat_are_those_that_were_given() -> None:
    part = bw.repeat("a", least=1, most=2).constraint
    assert isinstance(part, Repeat) and (part.least, part.most) == (1, 2)


@pytest.mark.parametrize("budget", [3, (1, 2), {"tokens": 3}, bw.Budget(tokens=3.5), bw.Budget(seconds="1")])
def test_what_is_no_budget_is_refused(budget: Any) -> None:
    with pytest.raises(TypeError, match="budget"):
        echo.run("a", budget=budget, backend=bw.ScriptedBackend(answer))


def test_a_budget_of_numpy_numbers_is_sent_as_plain_ones() -> None:
    invocation = echo.invoke(("a",), {"budget": bw.Budget(np.int64(3), np.float32(0.5))})
    sent = decode_client(encode(Open(1, budget=invocation.budget)))
    assert isinstance(sent, Open) and sent.budget == bw.Budget(3, 0.5)


@pytest.mark.parametrize("backend", ["http://localhost:30000", bw.ScriptedBackend])
def test_an_address_or_a_class_is_no_backend(backend: Any) -> None:
    with pytest.raises(TypeError, match=r"is no backend; give an object such as bw.Runtime\(\)"):
        echo.run("a", backend=backend)
    with pytest.raises(TypeError, match="is no backend"):
        bw.set_default_backend(backend)


@pytest.mark.parametrize("program", [echo, echo.compile()])
@pytest.mark.parametrize("batch", [["France"], [3], "France", {"text": "France"}])
def test_a_text_is_neither_a_row_nor_a_batch(program: Any, batch: Any) -> None:
    with pytest.raises(TypeError, match=r"a (row of a )?batch is"):
        program.run_batch(batch, backend=bw.ScriptedBackend(answer))


def test_a_compiled_batch_keeps_a_text_that_cannot_be_sent_to_its_row() -> None:
    rows = [("\ud800",), ("a",)]
    bad, good = echo.compile().run_batch(rows, return_exceptions=True, backend=bw.ScriptedBackend(answer))
    assert isinstance(bad, ValueError) and good["a"] == "a"


def test_errors_reach_another_process_whole() -> None:
    cause = bw.ProgramError("context_length", "too long", node=3, source="a.py:1")
    error = bw.ProgramError("branch_failed", "gone", node=4, source="a.py:2", cause=cause, transcript="so far")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.node == 4 and again.cause.node == 3
    refused = pickle.loads(pickle.dumps(bw.Refused("queue_full", "come back later")))
    assert (refused.code, refused.reason) == ("queue_full", "come back later")


@pytest.mark.parametrize("knob", ["stop", "stop_token_ids", "stop_regex"])
def test_a_knob_with_nothing_in_it_is_left_out_of_messages(knob: str) -> None:
    plain, empty = merge({"max_tokens": 3}), merge({"max_tokens": 3, knob: iter([])})
    assert msgspec.msgpack.encode(plain) == msgspec.msgpack.encode(empty)
