"""Budgets of whole programs: gens are cut to what is left, and past it everything that is not done says so."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang import loop
from branchwork.lang.backend import Call, Reply
from branchwork.lang.budget import Spending, checked
from branchwork.lang.live import LiveProgram
from branchwork.lang.params import SamplingParams
from branchwork.lang.protocol import Budget

LONG = 3600.0  # seconds that no test waits


def text_of(count: int) -> str:
    return " w" * count


def words(prompt: str, call: Call) -> Any:
    """As many words as were asked for, or the last choice."""
    return call.choices[-1] if call.kind == "select" else [text_of(call.params.max_tokens)] * call.params.n


def state_on(backend: bw.ScriptedBackend, **budget: Any) -> bw.ProgramState:
    return bw.ProgramState(LiveProgram(backend, budget=Budget(**budget)))


def failure(read: Any) -> bw.ProgramError:
    with pytest.raises(bw.ProgramError) as caught:
        read()
    return caught.value


async def hang(prompt: str, call: Call) -> str:
    await asyncio.sleep(LONG)
    return "never"


def test_a_gen_is_cut_to_what_is_left_and_the_next_one_is_refused() -> None:
    backend = bw.ScriptedBackend(words)
    s = state_on(backend, tokens=10)
    s += "a" + bw.gen("x", max_tokens=6) + bw.gen("y", max_tokens=6, min_tokens=5) + "." + bw.gen("z", max_tokens=6)
    assert len(s["x"].split()) == 6 and len(s["y"].split()) == 4
    asked = [(call.params.max_tokens, call.params.min_tokens) for call in backend.calls]
    assert asked == [(6, 0), (4, 4)]
    error = failure(lambda: s["z"])
    assert error.code == "budget" and "generated 10 tokens" in str(error) and "budget is 10" in str(error)
    assert error.source.startswith(__file__)
    assert failure(s.sync).code == "budget"


def test_what_is_generated_exactly_within_the_budget_can_go_on_without_gens() -> None:
    s = state_on(bw.ScriptedBackend(words), tokens=4)
    s += "a" + bw.gen("x", max_tokens=4) + "." + bw.select("y", ["p", "q"])
    assert s.text() == "a w w w w.q"


def test_forks_share_one_budget() -> None:
    backend = bw.ScriptedBackend(words)
    s = state_on(backend, tokens=25)
    forks = s.fork(4)
    for branch in forks:
        branch += "a" + bw.gen("x", max_tokens=10)
        branch.live.wait(lambda: s.live.machine.idle)
    forks.join()
    assert [len(branch["x"].split()) for branch in forks[:3]] == [10, 10, 5]
    assert failure(lambda: forks[3]["x"]).code == "budget"
    error = failure(lambda: s["x"])
    assert error.code == "budget" and error.cause is not None and error.cause.code == "budget"


def test_branches_that_run_at_once_are_stopped_when_they_are_over() -> None:
    released = asyncio.Event()

    async def answer(prompt: str, call: Call) -> str:
        if call.name == "late":
            await asyncio.sleep(LONG)
        await released.wait()
        return text_of(10)

    backend = bw.ScriptedBackend(answer)
    s = state_on(backend, tokens=15)
    forks = s.fork(3)
    forks += ["a" + bw.gen("x"), "b" + bw.gen("x"), "c" + bw.gen("late")]
    loop.post(released.set)
    error = failure(lambda: forks[2]["late"])
    assert error.code == "budget" and "20 tokens" in error.message and "budget is 15" in error.message
    assert s.live.machine.idle
    assert backend.running <= 1  # the last cancelled one may be on its way out
    assert [forks[index]["x"] for index in (0, 1)] == [text_of(10)] * 2


def test_samples_share_what_is_left() -> None:
    backend = bw.ScriptedBackend(words)
    s = state_on(backend, tokens=10)
    s += "a" + bw.gen("x", n=3, max_tokens=8)
    assert [len(text.split()) for text in s["x"]] == [3, 3, 3]


def test_time_ends_what_runs_and_everything_after_it() -> None:
    backend = bw.ScriptedBackend(hang)
    s = state_on(backend, seconds=0.05)
    began = time.monotonic()
    forks = s.fork(2)
    forks += [letter + bw.gen("x") for letter in "ab"]
    forks.join("first")
    s += bw.gen("y")
    error = failure(lambda: forks[0]["x"])
    assert error.code == "budget" and "its budget is 0.05 s" in error.message
    assert time.monotonic() - began < LONG / 10
    assert {failure(read).code for read in (lambda: s["x"], lambda: s["y"], s.sync, forks[1].text)} == {"budget"}
    s += "late" + bw.gen("z")
    assert failure(lambda: s["z"]).code == "budget"

    async def cancelled() -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        return backend.running

    assert loop.run(cancelled()) == 0


def test_a_program_that_is_done_in_time_is_left_alone() -> None:
    s = state_on(bw.ScriptedBackend(words), tokens=100, seconds=LONG)
    s += "a" + bw.gen("x", max_tokens=2) + "."
    assert s.text() == "a w w."
    s.live.end()


def test_tokens_of_an_executor_that_does_not_count_are_not_guessed() -> None:
    async def uncounted(prompt: str, call: Call) -> Reply:
        return Reply(("many words",))

    s = state_on(bw.ScriptedBackend(uncounted), tokens=1)
    s += "a" + bw.gen("x") + bw.gen("y")
    assert s["y"] == "many words"


def test_no_budget_is_no_limit() -> None:
    spending = Spending(Budget())
    call = Call(0, 0, 0, "gen", params=SamplingParams(max_tokens=10**6))
    spending.spend(10**9)
    assert spending.admit(call) == call and spending.exceeded() == ""


@pytest.mark.parametrize("limits", [{"tokens": 0}, {"tokens": -3}, {"seconds": 0.0}, {"seconds": -1.5}])
def test_a_budget_that_allows_nothing_is_refused(limits: dict[str, Any]) -> None:
    (name,) = limits
    with pytest.raises(ValueError, match=name):
        checked(Budget(**limits))
    assert checked(Budget(tokens=1, seconds=0.1)) == Budget(1, 0.1)
