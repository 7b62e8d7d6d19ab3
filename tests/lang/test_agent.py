"""The agent loop: calls and answers turn by turn, and what ends it."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from branchwork.lang.agent import Agent, AgentResult, agent
from branchwork.lang.backend import Reply, ScriptedBackend
from branchwork.lang.errors import ProgramError
from branchwork.lang.expr import system
from branchwork.lang.function import function
from branchwork.lang.protocol import Budget
from branchwork.lang.tools import tool


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
async def fetch(page: str) -> str:
    """Read a page."""
    await asyncio.sleep(0)
    if page == "lost":
        raise LookupError("no such page")
    return f"the text of {page}"


def written(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


SCRIPT = [written("multiply", a=6, b=7), written("fetch", page="a") + written("fetch", page="lost"), "It is 42."]
CALLS = ["multiply", "fetch", "fetch"]


def check_whole_run(state: Any, backend: ScriptedBackend) -> None:
    result = state.ret_value
    assert isinstance(result, AgentResult)
    assert (result.answer, result.turns, result.stopped) == ("It is 42.", 3, "answer")
    assert [done.call.name for done in result.calls] == CALLS and len({done.call.id for done in result.calls}) == 3
    assert state["answer"] == "It is 42." and not state["calls"]
    roles = [message["role"] for message in state.messages()]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool", "tool", "assistant"]
    assert '"error": "LookupError: no such page"' in backend.prompts[-1] and "the text of a" in backend.prompts[-1]


def test_an_agent_calls_until_it_answers() -> None:
    backend = ScriptedBackend(SCRIPT)
    check_whole_run(agent([multiply, fetch], "Be brief.").run("What is 6 times 7?", backend=backend), backend)
    assert backend.prompts[0].startswith("SYSTEM: Be brief.\n\n# Tools\n<tools>\n")


def test_an_awaited_agent_does_the_same() -> None:
    backend = ScriptedBackend(SCRIPT)

    async def main() -> Any:
        return await agent([multiply, fetch]).arun("What is 6 times 7?", backend=backend)

    check_whole_run(asyncio.run(main()), backend)


def test_a_streamed_agent_shows_every_turn() -> None:
    state = agent([multiply, fetch]).stream("?", backend=ScriptedBackend(SCRIPT))
    text = "".join(state.text_iter())
    assert text.count("<tool_call>") == 3 and text.rstrip().endswith("It is 42.")


def test_a_batch_runs_agents_side_by_side() -> None:
    def script(prompt: str, call: Any) -> str:
        number = prompt.split("number ")[1].split("\n")[0]
        return "done " + number if "TOOL:" in prompt else written("multiply", a=int(number), b=2)

    states = agent([multiply]).run_batch([f"number {n}" for n in range(5)], backend=ScriptedBackend(script))
    assert [state["answer"] for state in states] == [f"done {n}" for n in range(5)]
    assert [state.ret_value.calls[0].value for state in states] == [0, 2, 4, 6, 8]


def test_knobs_of_the_agent_and_of_the_run_reach_every_turn() -> None:
    backend = ScriptedBackend(SCRIPT)
    agent([multiply, fetch], max_tokens=99).run("?", backend=backend, temperature=0.25, n=3)
    seen = {(call.params.max_tokens, call.params.temperature, call.params.n) for call in backend.calls}
    assert seen == {(99, 0.25, 1)}


def test_a_plain_function_is_a_tool_of_an_agent() -> None:
    def shout(word: str) -> str:
        """Shout a word"""
        return word.upper()

    state = agent([shout]).run("?", backend=ScriptedBackend([written("shout", word="hi"), "HI"]))
    assert state.ret_value.calls[0].value == "HI"


# --- bounds


def endless(prompt: str, call: Any) -> str:
    return "Once more. " + written("multiply", a=1, b=1)


def test_the_last_turn_ends_an_agent_without_an_exception() -> None:
    backend = ScriptedBackend(endless)
    state = agent([multiply], max_turns=3).run("?", backend=backend)
    result = state.ret_value
    assert (result.stopped, result.turns, result.answer, len(result.calls)) == ("max_turns", 3, "Once more.", 3)
    assert state["answer"] == "Once more." and len(backend.calls) == 3


def test_the_last_turn_raises_where_that_is_wanted() -> None:
    with pytest.raises(ProgramError, match=r"max_turns: .*turn 2, its last, after 2 calls"):
        agent([multiply], max_turns=2, on_limit="raise").run("?", backend=ScriptedBackend(endless))


def ran(way: str, made: Agent, backend: ScriptedBackend) -> Any:
    return made.run("?", backend=backend) if way == "run" else asyncio.run(made.arun("?", backend=backend))


@pytest.mark.parametrize("way", ["run", "arun"])
def test_time_ends_an_agent_in_the_middle_of_a_word(way: str) -> None:
    state = ran(way, agent([multiply], max_seconds=1.0), ScriptedBackend(["a b c"], delay=3600))
    assert (state.ret_value.stopped, state.ret_value.turns) == ("max_seconds", 1)
    assert state["answer"] == "" and [turn["role"] for turn in state.messages()] == ["system", "user", "assistant"]


@pytest.mark.parametrize("way", ["run", "arun"])
def test_an_agent_with_time_left_runs_as_any_other(way: str) -> None:
    backend = ScriptedBackend(SCRIPT)
    check_whole_run(ran(way, agent([multiply, fetch], max_seconds=600.0), backend), backend)


@pytest.mark.parametrize("way", ["run", "arun"])
def test_time_ends_an_agent_in_the_middle_of_a_call(way: str) -> None:
    never = threading.Event()

    @tool
    def hang() -> None:
        never.wait()

    state = ran(way, agent([hang], max_seconds=1.0), ScriptedBackend([written("hang")]))
    never.set()
    assert state.ret_value.stopped == "max_seconds" and state.ret_value.turns == 1
    assert isinstance(state.ret_value.calls[0].error, TimeoutError)


def test_a_turn_that_is_cut_off_ends_an_agent() -> None:
    inside = agent([multiply]).run("?", backend=ScriptedBackend(['<tool_call>\n{"name": "mul']))
    assert inside.ret_value.stopped == "max_tokens" and inside["answer"] == ""
    reply = Reply(("It is for",), ({"finish_reason": "length"},))
    said = agent([multiply]).run("?", backend=ScriptedBackend([reply]))
    assert said.ret_value.stopped == "max_tokens" and said["answer"] == "It is for"


def test_the_budget_of_the_run_counts_all_turns() -> None:
    backend = ScriptedBackend(endless)
    with pytest.raises(ProgramError, match="budget"):
        agent([multiply]).run("?", backend=backend, budget=Budget(tokens=20))
    assert 1 < len(backend.calls) < 8


def test_what_goes_wrong_in_the_backend_is_no_bound() -> None:
    with pytest.raises(ProgramError, match="used up"):
        agent([multiply]).run("?", backend=ScriptedBackend([]))


def test_cancelling_an_awaited_agent_cancels_its_calls() -> None:
    async def main() -> None:
        began, ended = asyncio.Event(), asyncio.Event()

        @tool
        async def wait() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        running = asyncio.ensure_future(agent([wait]).arun("?", backend=ScriptedBackend([written("wait")])))
        await began.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.wait_for(ended.wait(), 10)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_turns": 0}, ValueError, "max_turns=0 allows nothing"),
        ({"max_seconds": -1.0}, ValueError, "max_seconds"),
        ({"on_limit": "sulk"}, ValueError, "return, raise"),
        ({"name": "x"}, TypeError, "calls"),
        ({"n": 2}, TypeError, "n=2"),
        ({"choice": "divide"}, ValueError, "divide"),
        ({"warmth": 3}, TypeError, "warmth"),
        ({"format": "smoke"}, ValueError, "smoke"),
    ],
)
def test_a_wrong_agent_is_refused_where_it_is_made(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        agent([multiply], **options)


# --- inside other programs


def test_an_agent_goes_on_with_a_branch_of_another_program() -> None:
    made = agent([multiply])

    @function
    def program(s: Any) -> list[str]:
        s += system(made.system)
        answers = [made.on(s, "6 times 7?").answer]
        forks = s.fork(2)
        answers += [made.on(branch, f"And {number}?").answer for number, branch in enumerate(forks)]
        return answers

    script = [written("multiply", a=6, b=7), "42", "zero", "one"]
    state = program.run(backend=ScriptedBackend(script))
    assert state.ret_value == ["42", "zero", "one"]


def test_agents_converse_side_by_side_in_an_async_program() -> None:
    def script(prompt: str, call: Any) -> str:
        return "four" if "TOOL: 4" in prompt else written("multiply", a=2, b=2)

    made: Agent = agent([multiply])

    @function
    async def program(s: Any) -> list[AgentResult]:
        s += system(made.system)
        forks = s.fork(3)
        return await asyncio.gather(*(made.aon(branch, "2 times 2?") for branch in forks))

    state = asyncio.run(program.arun(backend=ScriptedBackend(script)))
    assert [result.answer for result in state.ret_value] == ["four"] * 3
