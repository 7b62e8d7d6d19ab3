"""A bounded agent: a program that lets a model call tools, turn by turn, until it answers without a call.

Knows: the language's own pieces (roles, tools, results), its bounds. Must not know: backends, formats of calls.
The loop is one generator without waiting in it; two short drivers wait for it, one blocking and one awaiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from branchwork.lang import loop
from branchwork.lang.calling import ToolResult, ToolTurn, as_tools, tool_results, tool_system
from branchwork.lang.calling import tools as turn_with
from branchwork.lang.errors import ProgramError
from branchwork.lang.expr import assistant_begin, assistant_end, system, user
from branchwork.lang.function import Function
from branchwork.lang.ir import Gen
from branchwork.lang.state import ProgramState
from branchwork.lang.tools import Tool

ON_LIMIT = ("return", "raise")
LIMITS = {
    "max_turns": "the agent still called tools in turn {turns}, its last",
    "max_seconds": "the agent did not answer within {seconds:g} s",
    "max_tokens": "turn {turns} was cut off at its max_tokens",
}


@dataclass(frozen=True)
class AgentResult:
    """What an agent came to.

    answer: the text of its last turn beside calls. turns: how many the model had. calls: the results of all calls in
    order. stopped: "answer", or the bound that it reached: max_turns, max_seconds, max_tokens (of one turn).
    """

    answer: str
    turns: int
    calls: tuple[ToolResult, ...]
    stopped: str


@dataclass(frozen=True)
class _Read:
    """The loop wants the calls of the turn that it has laid on `branch`, which is cancelled after `seconds`."""

    branch: ProgramState[Any]
    seconds: float | None


@dataclass(frozen=True)
class _Run:
    """The loop wants the results of these calls, each within `timeout` seconds."""

    turn: ToolTurn
    timeout: float | None


_Loop = Generator[_Read | _Run, Any, AgentResult]


class Agent:
    """Made by `agent`. Each run is a program: its state has the variables "answer" and "calls" (of the last turn), its
    ret_value is the AgentResult. system: the text of the system message, tools included."""

    def __init__(
        self,
        tools: Iterable[Tool | Callable[..., Any]],
        system: str,
        max_turns: int,
        max_seconds: float | None,
        timeout: float | None,
        max_result: int | None,
        on_limit: str,
        format: str,
        calls: dict[str, Any],
    ) -> None:
        self.tools = as_tools(tools)
        self.system = tool_system(self.tools, system, format)
        self.max_turns, self.max_seconds, self.timeout = max_turns, max_seconds, timeout
        self.max_result, self.on_limit = max_result, on_limit
        self._calls = {"format": format, "name": "calls", "n": 1, **calls}
        self._turn()  # a wrong knob is raised where the agent is made
        self._function, self._coroutine = self._functions()

    def run(self, question: str, **options: Any) -> ProgramState[AgentResult]:
        """Run to the end in this thread. options: as of a Function's run (backend=, knobs ...)."""
        return self._function.run(question=question, **options)

    __call__ = run

    async def arun(self, question: str, **options: Any) -> ProgramState[AgentResult]:
        """The same without blocking the caller's loop, on which `async def` tools run. Cancelling it cancels all."""
        return await self._coroutine.arun(question=question, **options)

    def stream(self, question: str, **options: Any) -> ProgramState[AgentResult]:
        """Run in a thread of its own; read the state's text_iter or text_async_iter meanwhile."""
        return self._function.stream(question=question, **options)

    def run_batch(self, questions: Iterable[str], **options: Any) -> Any:
        """One run for each question, side by side, as a Function's run_batch does it."""
        return self._function.run_batch([{"question": question} for question in questions], **options)

    def on(self, s: ProgramState[Any], question: str) -> AgentResult:
        """Put a question on a branch of another program and go on until it is answered.

        The system message is the caller's: `s += bw.system(agent.system)` before the first question.
        """
        work = self._loop(s, question)
        step = next(work)
        while True:
            got: Any
            try:
                if isinstance(step, _Read):
                    with _cut(step.branch, step.seconds):
                        got = step.branch["calls"]
                else:
                    got = step.turn.run(step.timeout)
            except ProgramError as error:
                got = error
            try:
                step = work.throw(got) if isinstance(got, ProgramError) else work.send(got)
            except StopIteration as end:
                return self._ended(s, end.value)

    async def aon(self, s: ProgramState[Any], question: str) -> AgentResult:
        """The same for `async def` bodies."""
        work = self._loop(s, question)
        step = next(work)
        while True:
            got: Any
            try:
                if isinstance(step, _Read):
                    with _cut(step.branch, step.seconds):
                        got = await step.branch.get("calls")
                else:
                    got = await step.turn.arun(step.timeout)
            except ProgramError as error:
                got = error
            try:
                step = work.throw(got) if isinstance(got, ProgramError) else work.send(got)
            except StopIteration as end:
                return self._ended(s, end.value)

    # --- inside

    def _functions(self) -> tuple[Function[..., Any], Function[..., Any]]:
        def agent(s: ProgramState[Any], question: str) -> AgentResult:
            s += system(self.system)
            return self.on(s, question)

        async def agent_async(s: ProgramState[Any], question: str) -> AgentResult:
            s += system(self.system)
            return await self.aon(s, question)

        return Function(agent), Function(agent_async)

    def _turn(self) -> Gen:
        return turn_with(*self.tools, **self._calls)

    def _asked(self, s: ProgramState[Any], deadline: float | None) -> Generator[_Read, Any, tuple[ToolTurn, bool]]:
        """One turn of the model: its calls, and whether its text was cut off.

        With a deadline it is generated on a branch of its own, so that cutting it short leaves `s` as it was.
        """
        s += assistant_begin()
        if deadline is None:
            s += self._turn()
            calls = yield _Read(s, None)
            cut = s.meta("calls").get("finish_reason") == "length"
            s += assistant_end()
            return calls, cut
        forks = s.fork(1)
        forks += self._turn()
        try:
            calls = yield _Read(forks[0], max(deadline - time.monotonic(), 0.0))
            cut = forks[0].meta("calls").get("finish_reason") == "length"
            forks.join("concate_and_append")
            s["calls"] = calls
        finally:
            s += assistant_end()
        return calls, cut

    def _loop(self, s: ProgramState[Any], question: str) -> _Loop:
        deadline = None if self.max_seconds is None else time.monotonic() + self.max_seconds
        done: list[ToolResult] = []
        said = ""
        s += user(question)
        for turn in range(1, self.max_turns + 1):
            try:
                calls, cut = yield from self._asked(s, deadline)
            except ProgramError as error:
                stopped = _bound(error, deadline)
                if stopped is None:
                    raise
                return AgentResult(said, turn, tuple(done), stopped)
            said = calls.text
            if not calls:
                return AgentResult(said, turn, tuple(done), "max_tokens" if cut else "answer")
            results: list[ToolResult] = yield _Run(calls, self._patience(deadline))
            done += results
            s += tool_results(results, self.max_result)
            if deadline is not None and time.monotonic() >= deadline:
                return AgentResult(said, turn, tuple(done), "max_seconds")
        return AgentResult(said, self.max_turns, tuple(done), "max_turns")

    def _patience(self, deadline: float | None) -> float | None:
        """Seconds that a call may take: its timeout, and never longer than is left."""
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        known = [limit for limit in (left, self.timeout) if limit is not None]
        return min(known) if known else None

    def _ended(self, s: ProgramState[Any], result: AgentResult) -> AgentResult:
        s["answer"] = result.answer
        if result.stopped != "answer" and self.on_limit == "raise":
            why = LIMITS[result.stopped].format(turns=result.turns, seconds=self.max_seconds)
            raise ProgramError(result.stopped, f"{why}, after {len(result.calls)} calls")
        return result


def _bound(error: ProgramError, deadline: float | None) -> str | None:
    """The bound that made a turn fail; None when it was no bound of the agent."""
    if error.code == "incomplete":
        return "max_tokens"
    if error.code == "cancelled" and deadline is not None and time.monotonic() >= deadline:
        return "max_seconds"
    return None


@contextmanager
def _cut(branch: ProgramState[Any], seconds: float | None) -> Iterator[None]:
    """Stop a branch after `seconds`, also in the middle of a word."""
    if seconds is None:
        yield
        return
    over = asyncio.run_coroutine_threadsafe(_cancel_after(branch, seconds), loop.get())
    try:
        yield
    finally:
        over.cancel()


async def _cancel_after(branch: ProgramState[Any], seconds: float) -> None:
    await asyncio.sleep(seconds)
    branch.cancel()


def agent(
    tools: Iterable[Tool | Callable[..., Any]],
    system: str = "",
    *,
    max_turns: int = 8,
    max_seconds: float | None = None,
    timeout: float | None = None,
    max_result: int | None = None,
    on_limit: str = "return",
    format: str = "hermes",
    **calls: Any,
) -> Agent:
    """An agent with these tools: it asks the model, runs the calls it makes, lays their results, and so on.

    system: what stands before the list of tools in the system message. max_turns: turns of the model. max_seconds: for
    a whole run; a turn under way is cut off then, and so are calls. A budget= given to run is the program's: a
    turn that it cuts ends the agent as max_tokens does, and where none is left ProgramError (budget) is raised.
    timeout: seconds for each call. max_result: characters of a result that the model gets to see.
    on_limit: "return" says in AgentResult.stopped that a bound was reached, "raise" raises ProgramError.
    calls: choice, parallel and think as of bw.tools, and every knob of a gen (max_tokens is that of one turn).

    Raises ValueError for bounds that allow nothing, and what bw.tools raises.
    """
    for name, bound in (("max_turns", max_turns), ("max_seconds", max_seconds), ("max_result", max_result)):
        if bound is not None and bound <= 0:
            raise ValueError(f"{name}={bound!r} allows nothing; give a positive number")
    if on_limit not in ON_LIMIT:
        raise ValueError(f"on_limit={on_limit!r} is neither of {', '.join(ON_LIMIT)}")
    if calls.get("n", 1) != 1:
        raise TypeError(
            f"n={calls['n']!r} would give several turns at once; run several agents, or fork and use agent.on"
        )
    if "name" in calls:
        raise TypeError('the variable of an agent\'s calls is "calls"; leave out name')
    return Agent(tools, system, max_turns, max_seconds, timeout, max_result, on_limit, format, calls)
