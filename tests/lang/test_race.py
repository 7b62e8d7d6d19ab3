"""Races between the branches of a fork: who wins, what becomes of the losers, and that everybody agrees on it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang import loop
from branchwork.lang.ir import Fork, Gen, Join, Laid, Text
from branchwork.lang.live import LiveProgram
from branchwork.lang.machine import Call, NodeDone, Program, Reply
from branchwork.lang.transcript import NodeFailed


class Gates:
    """Answers each call when its prompt is let through: `open(prompt, answer)`."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self._events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.backend = bw.ScriptedBackend(self._answer)

    async def _answer(self, prompt: str, call: Call) -> Any:
        await self._events[prompt].wait()
        return self.answers[prompt]

    def open(self, prompt: str, answer: Any = None) -> None:
        self.answers[prompt] = prompt.upper() if answer is None else answer
        loop.post(self._set, prompt)

    def _set(self, prompt: str) -> None:
        self._events[prompt].set()

    def still_running(self) -> int:
        """Calls that run once everything that is under way on the loop by now has been seen through."""

        async def turns() -> int:
            for _ in range(5):
                await asyncio.sleep(0)
            return self.backend.running

        return loop.run(turns())


@pytest.fixture
def gates() -> Iterator[Gates]:
    yield Gates()


def state_on(gates: Gates) -> bw.ProgramState:
    return bw.ProgramState(LiveProgram(gates.backend))


def children(s: bw.ProgramState, count: int) -> bw.ForkGroup:
    """Branches a, b, c ... each with a gen of x."""
    forks = s.fork(count)
    forks += [letter + bw.gen("x") for letter in "abcdefgh"[:count]]
    return forks


def code_of(read: Any) -> str:
    with pytest.raises(bw.ProgramError) as caught:
        read()
    return caught.value.code


def test_the_first_two_that_are_done_win_and_the_others_are_cancelled(gates: Gates) -> None:
    s = state_on(gates)
    forks = children(s, 4)
    forks.join("first", k=2)
    s += "|" + bw.gen("after")
    gates.open("d")
    assert forks[3]["x"] == "D"
    gates.open("b")
    gates.open("|", "end")
    assert s["x"] == ["B", "D"]
    assert forks.winners() == [1, 3]
    assert s["after"] == "end" and s.text() == "|end"
    assert gates.still_running() == 0
    assert forks[1].text() == "bB"


def test_reading_a_loser_says_that_it_was_outrun(gates: Gates) -> None:
    s = state_on(gates)
    forks = children(s, 2)
    forks.join("first")
    gates.open("b")
    assert s["x"] == ["B"]
    for read in (lambda: forks[0]["x"], forks[0].text, forks[0].sync, lambda: forks[0].meta("x")):
        assert code_of(read) == "outrun"
    with pytest.raises(bw.ProgramError, match="went on with 1 of 2 branches"):
        forks[0].sync()


def test_what_is_laid_on_a_loser_later_is_outrun_too_and_on_a_winner_runs(gates: Gates) -> None:
    s = state_on(gates)
    forks = children(s, 2)
    forks.join("first")
    gates.open("a")
    assert forks.winners() == [0]
    forks += "!" + bw.gen("y")
    gates.open("aA!", "more")
    assert forks[0]["y"] == "more"
    assert code_of(lambda: forks[1]["y"]) == "outrun"
    assert "y" not in s


def test_a_race_for_all_is_a_join(gates: Gates) -> None:
    s = state_on(gates)
    forks = children(s, 3)
    forks.join("first", k=3)
    for letter in "cab":
        gates.open(letter)
    assert s["x"] == ["A", "B", "C"] and forks.winners() == [0, 1, 2]


def test_of_those_done_before_the_join_the_lowest_win_and_the_others_stay_readable(gates: Gates) -> None:
    s = state_on(gates)
    forks = children(s, 3)
    for letter in "abc":
        gates.open(letter)
    assert [branch["x"] for branch in forks] == ["A", "B", "C"]
    forks.join("first", k=2)
    assert s["x"] == ["A", "B"]
    assert forks[2]["x"] == "C"


def test_branches_without_calls_are_done_at_once(gates: Gates) -> None:
    s = state_on(gates)
    forks = s.fork(2)
    forks[0] += "a" + bw.gen("x")
    forks[1]["x"] = 5
    forks.join("first")
    assert s["x"] == [5] and forks.winners() == [1]
    assert gates.still_running() == 0


def test_a_failed_branch_does_not_win(gates: Gates) -> None:
    s = state_on(gates)
    forks = children(s, 3)
    forks.join("first")
    gates.open("a", ValueError("broken"))
    assert code_of(lambda: forks[0]["x"]) == "executor_error"
    gates.open("c")
    assert s["x"] == ["C"] and forks.winners() == [2]


def test_a_race_that_nobody_can_win_any_more_says_what_failed_first(gates: Gates) -> None:
    s = state_on(gates)
    forks = children(s, 3)
    forks.join("first", k=2)
    gates.open("b", ValueError("broken"))
    gates.open("c", ValueError("as well"))
    with pytest.raises(bw.ProgramError, match="2 of 3 branches failed") as caught:
        s.sync()
    assert caught.value.code == "race_lost"
    assert caught.value.cause is not None and caught.value.cause.code == "executor_error"
    assert code_of(forks.winners) == "race_lost"
    assert code_of(lambda: s["x"]) == "race_lost"


def test_a_loser_takes_its_own_forks_with_it(gates: Gates) -> None:
    s = state_on(gates)
    forks = s.fork(2)
    inner = forks[0].fork(2)
    inner += [letter + bw.gen("y") for letter in "pq"]
    inner.join()
    forks[1] += "a" + bw.gen("x")
    forks.join("first")
    gates.open("a")
    assert s["x"] == ["A"]
    assert gates.still_running() == 0
    assert {code_of(lambda b=branch: b["y"]) for branch in (*inner, forks[0])} == {"outrun"}


def test_a_race_inside_a_race(gates: Gates) -> None:
    s = state_on(gates)
    forks = s.fork(2)
    for outer, branch in enumerate(forks):
        inner = branch.fork(2)
        inner += [f"{outer}{letter}" + bw.gen("x") for letter in "ab"]
        inner.join("first")
    forks.join("first")
    gates.open("1b")
    assert s["x"] == [["1B"]] and forks.winners() == [1]
    assert gates.still_running() == 0


def test_rounds_of_races_each_go_on_from_the_last(gates: Gates) -> None:
    s = state_on(gates)
    winners = []
    for round_ in range(3):
        forks = s.fork(3)
        forks += lambda index, r=round_: f"{r}{index}" + bw.gen(f"x{r}")
        forks.join("first")
        gates.open(f"{'-' * round_}{round_}{2 - round_}")
        winners += forks.winners()
        s += "-"
    assert winners == [2, 1, 0]
    assert gates.still_running() == 0


def test_a_majority_is_there_as_soon_as_nobody_can_overtake_it(gates: Gates) -> None:
    s = state_on(gates)
    forks = s.fork(5)
    forks += [letter + bw.gen("x") + bw.gen("why") for letter in "abcde"]
    forks.join("majority", name="x")
    s += "so " + s.ref("x")
    gates.open("a", " 4")
    gates.open("a 4", "r0")
    for letter, vote in (("b", "5"), ("c", "4 "), ("e", "4")):
        gates.open(letter, vote)
        gates.open(letter + vote, f"r{letter}")
    assert s["x"] == " 4" and s["why"] == ["r0", "rc", "re"]
    assert forks.winners() == [0, 2, 4]
    assert s.text() == "so  4"
    assert code_of(lambda: forks[3]["x"]) == "outrun"
    assert forks[1]["x"] == "5"
    assert gates.still_running() == 0


def test_of_equal_votes_the_lowest_branch_decides(gates: Gates) -> None:
    s = state_on(gates)
    forks = children(s, 4)
    forks.join("majority", name="x")
    for letter, vote in zip("dcba", ("no", "yes", "no", "yes")):
        gates.open(letter, vote)
    assert s["x"] == "yes" and forks.winners() == [0, 2]


def test_branches_that_fail_or_have_no_vote_do_not_count(gates: Gates) -> None:
    s = state_on(gates)
    forks = s.fork(3)
    forks[0] += "a" + bw.gen("x")
    forks[1] += "b" + bw.gen("other")
    forks[2] += "c" + bw.gen("x")
    forks.join("majority", name="x")
    gates.open("a", ValueError("broken"))
    gates.open("b")
    gates.open("c", "yes")
    assert s["x"] == "yes" and forks.winners() == [2]
    assert s["other"] == []


def test_no_votes_are_no_majority(gates: Gates) -> None:
    s = state_on(gates)
    forks = s.fork(2)
    forks += [letter + bw.gen("x") for letter in "ab"]
    forks.join("majority", name="x")
    gates.open("a", ValueError("broken"))
    gates.open("b", ValueError("broken"))
    with pytest.raises(bw.ProgramError, match="no majority") as caught:
        s["x"]
    assert caught.value.code == "race_lost" and caught.value.cause is not None


def test_a_majority_may_be_of_a_variable_that_the_parent_has(gates: Gates) -> None:
    s = state_on(gates)
    s["x"] = "before"
    forks = children(s, 3)
    forks.join("majority", name="x")
    gates.open("a", "new")
    gates.open("c", "new")
    assert s["x"] == "new"


def test_typed_votes_are_values_on_the_parent(gates: Gates) -> None:
    s = state_on(gates)
    forks = s.fork(3)
    forks += [letter + bw.gen("x", type=int) + "," + bw.gen("y", type=int) for letter in "abc"]
    forks.join("majority", name="x")
    for letter, vote in (("a", "7"), ("c", "7")):
        gates.open(letter, vote)
        gates.open(f"{letter}{vote},", "12")
    assert s["x"] == 7 and s["y"] == [12, 12]


def test_typed_values_of_winners_are_lists_of_values(gates: Gates) -> None:
    s = state_on(gates)
    forks = s.fork(3)
    forks += [letter + bw.gen("x", type=int) for letter in "abc"]
    forks.join("first", k=2)
    gates.open("c", "3")
    gates.open("b", "2")
    assert s["x"] == [2, 3]


def test_a_race_in_an_async_body(gates: Gates) -> None:
    @bw.function
    async def program(s: Any) -> Any:
        forks = children(s, 3)
        forks.join("first")
        gates.open("b")
        return await s.get("x"), forks.winners()

    state = asyncio.run(program.arun(backend=gates.backend))
    assert state.ret_value == (["B"], [1])


def test_a_streaming_reader_of_a_loser_is_told(gates: Gates) -> None:
    @bw.function
    def program(s: Any) -> Any:
        forks = children(s, 2)
        forks.join("first")
        gates.open("b")
        return forks

    state = program.stream(backend=gates.backend)
    loser = state.ret_value[0]
    assert code_of(lambda: list(loser.text_iter("x"))) == "outrun"


def test_a_branch_that_the_author_cancels_cannot_win(gates: Gates) -> None:
    s = state_on(gates)
    forks = children(s, 3)
    forks.join("first")
    forks[0].cancel()
    gates.open("a")
    gates.open("c")
    assert s["x"] == ["C"]
    assert code_of(lambda: forks[0]["x"]) == "cancelled"


def test_a_winner_that_the_author_cancelled_meanwhile_fails_the_join() -> None:
    """The executor's decision and the author's cancel cross on their way."""
    program = Program(decides=False)
    program.feed(0, [Laid(0, Fork((1, 2)))])
    program.feed(1, [Laid(1, Gen("x"))])
    program.feed(2, [Laid(2, Gen("x"))])
    program.feed(0, [Laid(3, Join((1, 2), "first", 1)), Laid(4, Text("more"))])
    join = next(output for output in program.advance() if isinstance(output, Call) and output.kind == "join")
    program.cancel(1)
    program.reply(join.id, Reply(("0",)))
    failed = {output.node: output.code for output in program.advance() if isinstance(output, NodeFailed)}
    assert failed == {1: "cancelled", 3: "branch_failed", 4: "branch_failed"}
    assert program.branch(0).failure is not None and program.branch(0).failure.cause == 1


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"mode": "first", "k": 0}, "k is 1 to 2"),
        ({"mode": "first", "k": 3}, "k is 1 to 2"),
        ({"mode": "majority"}, "name="),
        ({"mode": "first", "name": "x"}, "name="),
        ({"mode": "fastest"}, "gather_variable"),
    ],
)
def test_a_join_that_cannot_be_is_refused_where_it_is_written(gates: Gates, arguments: Any, says: str) -> None:
    s = state_on(gates)
    forks = s.fork(2)
    with pytest.raises(ValueError, match=says):
        forks.join(**arguments)


def test_winners_are_known_after_a_join_alone(gates: Gates) -> None:
    s = state_on(gates)
    forks = children(s, 2)
    assert code_of(forks.winners) == "no_join"
    forks.join()
    gates.open("a")
    gates.open("b")
    assert forks.winners() == [0, 1]


@pytest.mark.parametrize(
    "join", [Join((1, 2), "first", 0), Join((1, 2), "first", 5), Join((1,), "first", 1, given=(7,))]
)
def test_a_join_that_no_author_can_write_fails_alone(join: Join) -> None:
    program = Program()
    program.feed(0, [Laid(0, Fork((1, 2))), Laid(1, join)])
    failed = [output for output in program.settle() if isinstance(output, NodeFailed)]
    assert [(failure.node, failure.code) for failure in failed] == [(1, "bad_join")]


def test_winners_that_are_given_win_whoever_is_done_first() -> None:
    program = Program()
    program.feed(0, [Laid(0, Fork((1, 2)))])
    program.feed(1, [Laid(1, Gen("x"))])
    program.feed(2, [Laid(2, Gen("x"))])
    program.feed(0, [Laid(3, Join((1, 2), "first", 1, given=(1,)))])
    first, second = (output for output in program.advance() if isinstance(output, Call))
    program.reply(first.id, Reply(("A",)))
    assert not any(isinstance(output, NodeDone) and output.node == 3 for output in program.advance())
    program.reply(second.id, Reply(("B",)))
    assert NodeDone(0, 3, ("1",)) in program.advance()
    assert program.branch(0).variables["x"] == ["B"]
