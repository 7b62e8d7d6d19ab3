"""Answers that come with their nodes: they are taken as they are, by the author's record and by whoever executes."""

from __future__ import annotations

from typing import Any

import pytest

import branchwork as bw
from branchwork.lang.constraint import Capture, Literal, Sequence
from branchwork.lang.ir import Answered, Fork, Gen, Join, Laid, Ref, Select, Sent, Text
from branchwork.lang.live import LiveProgram
from branchwork.lang.machine import Call, NodeDone, NodeFailed, Program
from branchwork.lang.params import SamplingParams


def state_of(*nodes: Sent, script: Any = ()) -> tuple[bw.ProgramState, bw.ScriptedBackend]:
    """Nodes laid on branch 0, without a function around them."""
    backend = bw.ScriptedBackend(script)
    live = LiveProgram(backend)
    state = bw.ProgramState(live)
    state._last = live.lay(0, nodes, "here:1")[-1]
    return state, backend


def test_given_answers_need_no_call_and_leave_text_variables_and_meta() -> None:
    meta = {"seed": 7}
    state, backend = state_of(
        Text("Q"),
        Gen("x", given=Answered((" A",), (meta,))),
        Select("y", (" p", " q"), given=Answered((" q",))),
        Gen("z"),
        script=["!"],
    )
    assert state.text() == "Q A q!" and (state["x"], state["y"], state["z"]) == (" A", " q", "!")
    assert state.meta("x") == meta and state.meta("y") == {}
    assert backend.prompts == ["Q A q"]


def test_samples_captures_and_refs_of_given_answers() -> None:
    turn = Sequence((Literal("<"), Capture("part", Literal("inner")), Literal(">")))
    state, backend = state_of(
        Gen("many", params=SamplingParams(n=2), given=Answered(("a", "b"))),
        Gen("turn", constraint=turn, given=Answered(("<inner>",), captures={"part": "inner"})),
        Ref(0, "part"),
    )
    assert state["many"] == ["a", "b"] and state["part"] == "inner"
    assert state.text() == "a<inner>inner"
    assert backend.calls == []


def test_a_given_failure_stops_its_branch_again() -> None:
    state, backend = state_of(Text("Q"), Gen("x", given=Answered((), failed=("boom", "it broke"))), Gen("y"))
    with pytest.raises(bw.ProgramError, match="it broke") as caught:
        state["x"]
    assert (caught.value.code, caught.value.source) == ("boom", "here:1")
    with pytest.raises(bw.ProgramError) as caught:
        state["y"]
    assert caught.value.code == "branch_failed" and caught.value.cause is not None
    assert backend.calls == []


def test_an_answer_without_a_value_is_refused_where_it_is_executed() -> None:
    program = Program()
    program.feed(0, [Laid(0, Gen("x", given=Answered(())))])
    (failed,) = program.advance()
    assert isinstance(failed, NodeFailed) and failed.code == "empty_reply"


def test_a_race_among_given_answers_goes_on_with_the_given_winners() -> None:
    program = Program()
    outrun = Answered((), failed=("outrun", "another was faster"))
    program.feed(0, [Laid(0, Fork((1, 2, 3)))])
    for branch, answer in ((1, Answered(("A",))), (2, outrun), (3, Answered(("C",)))):
        program.feed(branch, [Laid(branch, Gen("x", given=answer))])
    program.feed(0, [Laid(4, Join((1, 2, 3), "first", 1, given=(2,)))])
    outputs = program.advance()
    assert not any(isinstance(output, Call) for output in outputs)
    assert NodeDone(0, 4, ("2",)) in outputs
    assert program.branch(0).variables["x"] == ["C"]
