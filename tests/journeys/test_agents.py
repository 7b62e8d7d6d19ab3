"""Tools and agents on the real runtime: sapling calls functions, hears of their results, and answers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

import branchwork as bw
from branchwork.lang.agent import agent
from branchwork.lang.calling import tool_system, tools
from branchwork.lang.mcp import mcp
from branchwork.lang.tools import tool

Room = Literal["kitchen", "bedroom", "office"]


@tool
def get_weather(city: str) -> dict[str, Any]:
    """Get the weather of a city."""
    if city == "Lima":
        raise LookupError("no station in Lima")
    return {"sky": "cloudy", "temperature": 12}


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
async def set_light(room: Room, color: Literal["red", "blue"]) -> str:
    """Set the color of the light in a room."""
    await asyncio.sleep(0)
    return f"{room} {color}"


HELPER = agent([get_weather, multiply], max_turns=3, max_tokens=80, temperature=0)


def test_the_model_calls_the_right_tool_and_answers_from_its_result(runtime: bw.Runtime) -> None:
    weather = HELPER.run("What is the weather in Paris?", backend=runtime)
    call = weather.ret_value.calls[0].call
    assert (call.name, call.arguments) == ("get_weather", {"city": "Paris"})
    assert weather["answer"] == "The sky is cloudy and the temperature is 12."
    product = HELPER.run("What is 12 times 7?", backend=runtime)
    assert product.ret_value.calls[0].value == 84 and "84" in product["answer"]
    plain = HELPER.run("What is the capital of France?", backend=runtime)
    assert plain.ret_value.calls == () and plain["answer"] == "The capital of France is Paris."


def test_the_transcript_is_what_the_models_own_template_renders(runtime: bw.Runtime) -> None:
    text = HELPER.run("What is 12 times 7?", backend=runtime).text()
    assert text.startswith("<|im_start|>system\n# Tools\n<tools>\n")
    call = '<tool_call>\n{"name": "multiply", "arguments": {"a": 12, "b": 7}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{call}<|im_end|>\n<|im_start|>tool\n84<|im_end|>\n<|im_start|>assistant\n" in text


def test_later_turns_of_an_agent_reuse_the_earlier_ones(runtime: bw.Runtime) -> None:
    state = HELPER.run("How is the weather in Oslo?", backend=runtime)
    meta = state.meta("calls")
    assert state.ret_value.turns == 2 and meta["prompt_tokens"] - meta["cached_tokens"] < 40


def test_a_failing_tool_is_told_to_the_model_and_the_agent_goes_on(runtime: bw.Runtime) -> None:
    state = HELPER.run("What is the weather in Lima?", backend=runtime)
    failed = state.ret_value.calls[0]
    assert isinstance(failed.error, LookupError)
    assert failed.text == '{"error": "LookupError: no station in Lima"}'
    assert '<|im_start|>tool\n{"error"' in state.text() and state.ret_value.turns >= 2


def test_two_questions_on_one_branch_are_two_calls(runtime: bw.Runtime) -> None:
    @bw.function
    def program(s: Any) -> list[str]:
        s += bw.system(HELPER.system)
        return [HELPER.on(s, question).answer for question in ("What is 12 times 7?", "Is it raining in Rome?")]

    answers = program.run(backend=runtime).ret_value
    assert "84" in answers[0] and "cloudy" in answers[1]


def test_awaited_agents_and_async_tools_run_side_by_side(runtime: bw.Runtime) -> None:
    made = agent([set_light, multiply], max_turns=3, max_tokens=80, temperature=0)

    async def main() -> list[Any]:
        asked = ("Set the kitchen light to blue.", "What is 31 times 6?", "Set the office light to red.")
        return await asyncio.gather(*(made.arun(question, backend=runtime) for question in asked))

    values = [state.ret_value.calls[0].value for state in asyncio.run(main())]
    assert values == ["kitchen blue", 186, "office red"]


@bw.function
def one_turn(s: Any, question: str, **options: Any) -> None:
    s += bw.system(tool_system([set_light, multiply]))
    s += bw.user(question)
    s += bw.assistant(tools(set_light, multiply, **options))


@pytest.mark.parametrize("parallel", [True, False])
def test_whatever_is_drawn_every_call_is_valid(runtime: bw.Runtime, parallel: bool) -> None:
    rows = [{"question": "Make the light blue.", "seed": seed, "parallel": parallel} for seed in range(16)]
    states = one_turn.run_batch(rows, backend=runtime, temperature=1.2, max_tokens=200, choice="required")
    whole = 0
    for state in states:
        if state.meta("calls")["finish_reason"] == "length":
            continue  # cut off in the middle: reading it raises
        calls = state["calls"]
        assert calls and not any(call.problem for call in calls) and (parallel or len(calls) == 1)
        whole += 1
    assert whole >= 4


def test_a_tool_can_be_asked_for_and_forbidden(runtime: bw.Runtime) -> None:
    knobs: dict[str, Any] = {"backend": runtime, "temperature": 0, "max_tokens": 120}
    asked = one_turn.run("Set the kitchen light to blue.", choice="multiply", **knobs)["calls"]
    assert {call.name for call in asked} == {"multiply"}
    assert not one_turn.run("What is 12 times 7?", choice="none", **knobs)["calls"]


async def until(runtime: bw.Runtime, *, running: bool) -> None:
    """Wait until something runs there, or nothing does any more."""
    for _ in range(1000):
        stats = await asyncio.to_thread(runtime.stats)
        if bool(stats["requests"] or stats["leases"]) == running:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not so after 1000 looks: {stats}")


def test_time_cuts_a_running_agent_and_frees_what_it_held(runtime: bw.Runtime) -> None:
    made = agent([multiply], max_seconds=0.15, max_tokens=1700, ignore_eos=True, temperature=1.5)
    state = made.run("What is the capital of France?", backend=runtime)
    assert state.ret_value.stopped == "max_seconds" and state["answer"] == ""
    asyncio.run(until(runtime, running=False))


def test_an_agent_with_a_time_limit_writes_and_reuses_the_same(runtime: bw.Runtime) -> None:
    made = agent([get_weather, multiply], max_seconds=600.0, max_tokens=80, temperature=0)
    limited = made.run("What is 12 times 7?", backend=runtime)
    assert limited.text() == HELPER.run("What is 12 times 7?", backend=runtime).text()
    forked = [record for record in limited.live.records.values() if record.meta]
    assert forked[1].meta[0]["prompt_tokens"] - forked[1].meta[0]["cached_tokens"] < 40


def test_cancelling_an_awaited_agent_frees_what_it_held(runtime: bw.Runtime) -> None:
    async def main() -> None:
        made = agent([multiply], max_tokens=1700, ignore_eos=True)
        running = asyncio.ensure_future(made.arun("What is 12 times 7?", backend=runtime))
        await until(runtime, running=True)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(runtime, running=False)

    asyncio.run(main())


def test_the_model_calls_a_tool_of_an_mcp_server(runtime: bw.Runtime, tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="the extra branchwork[mcp] is not installed")
    script = tmp_path / "server.py"
    script.write_text(
        "from mcp.server.mcpserver import MCPServer\n"
        "server = MCPServer('timers')\n\n"
        "@server.tool()\n"
        "def set_timer(minutes: int) -> str:\n"
        "    '''Start a timer'''\n"
        "    return f'The timer rings in {minutes} minutes'\n\n"
        "server.run()\n"
    )
    with mcp([sys.executable, str(script)]) as server:
        made = agent([*server.tools, multiply], max_turns=2, max_tokens=80, temperature=0)
        state = made.run("Set a timer for 25 minutes.", backend=runtime)
    result = state.ret_value.calls[0]
    assert result.call.arguments == {"minutes": 25} and result.text == "The timer rings in 25 minutes"
    assert f"<|im_start|>tool\n{result.text}<|im_end|>" in state.text()
