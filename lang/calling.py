"""Tool calls in a turn: how a model is told of its tools, what a call must look like, reading calls and running them.

Knows: a turn's shape and what its parser tells, nodes, tools. Must not know: backends, how any family writes calls.
A call that has begun is valid by constraint: the name of a tool, and arguments by that tool's schema.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from branchwork.lang.asked import Pairs, pairs_of
from branchwork.lang.expr import check_name, knobs_of, role
from branchwork.lang.ir import Gen, Reasoning, Seq
from branchwork.lang.toolformats import Call, Format, announced, format_named, written
from branchwork.lang.tools import Tool, ToolError, shown, told, tool, wait_for
from branchwork.lang.toolshapes import answer
from branchwork.lang.turnparser import CallArguments, CallBegan, CallBroken, CallEnded, Parser, Said, merged

WIDTH = 16  # calls of one turn that run at the same time
_turns = itertools.count(1)  # so that ids of calls differ between turns


def tool_system(tools: Iterable[Tool | Callable[..., Any]], text: str = "", format: str = "hermes") -> str:
    """The text of a system message that tells of tools, after `text`. Raises what `tools` raises for them."""
    listed = announced(format_named(format), [item.spec for item in as_tools(tools)])
    return f"{text}\n\n{listed}" if text else listed


def as_tools(given: Iterable[Tool | Callable[..., Any]]) -> tuple[Tool, ...]:
    """Tools, made of plain functions where need be.

    Raises ValueError for none, and for two of one name; TypeError for what is no list of them.
    """
    if not isinstance(given, Iterable):
        raise TypeError(f"tools come as a list, got {given!r}; write [{getattr(given, 'name', 'it')}]")
    found = tuple(item if isinstance(item, Tool) else tool(item) for item in given)
    names = [item.name for item in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several tools are named {', '.join(twice)}; give one of them another: bw.tool(name=...)")
    if not found:
        raise ValueError("there are no tools; give at least one")
    return found


# --- what a turn must look like


def tools(
    *given: Tool | Callable[..., Any],
    choice: str = "auto",
    parallel: bool = True,
    format: str | None = None,
    think: Pairs | None = None,
    name: str = "calls",
    **knobs: Any,
) -> Gen:
    """A gen in which the model may call tools; variable `name` is the ToolTurn. Tell of the tools with tool_system.

    choice: "auto" leaves it to the model, with "required" it has to call one, with "none" it may not, the name of a
    tool asks for that one. parallel: several calls may come, otherwise at most one.
    format: one of toolformats.FORMATS. think: (begin, end) texts around thinking, in which nothing counts as a call.
    knobs: as of gen.

    Raises ValueError for no tools, two of one name, an unknown choice or format; what tool() raises for a plain
    function; Invalid for a schema that is none; TypeError and ValueError for knobs.
    """
    check_name(name)
    form, found = format_named(format), as_tools(given)
    if think is not None and (not parallel or choice == "none"):
        raise TypeError("think goes with parallel calls only; leave out parallel=False and choice='none'")
    thinking = tuple(Reasoning(begin, end) for begin, end in pairs_of(think))
    constraint = answer(form, [item.spec for item in found], choice, parallel, thinking)
    read = functools.partial(_read, form, {item.name: item for item in found}, thinking, next(_turns))
    return Gen(name, knobs_of(knobs), constraint=constraint, readers={name: read})


# --- what came of it


@dataclass(frozen=True)
class ToolCall:
    """A call that a model made. arguments: by name, converted to the parameters' types.

    problem: why it cannot be run (no such tool, arguments that do not fit); only where a backend did not constrain it.
    """

    name: str
    arguments: dict[str, Any]
    id: str
    problem: str = ""


@dataclass(frozen=True)
class ToolResult:
    """What came of a call. text: what the model is told, also of an error. seconds: how long it took.

    value: what the function returned. error: what it raised, None when it went well.
    """

    call: ToolCall
    text: str
    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class ToolTurn(Sequence[ToolCall]):
    """The calls of a turn in order. text: what was said beside them, thinking left out. False when there are none."""

    calls: tuple[ToolCall, ...]
    text: str
    tools: Mapping[str, Tool] = field(repr=False)

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[ToolCall]:
        return iter(self.calls)

    @overload
    def __getitem__(self, index: int) -> ToolCall: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ToolCall, ...]: ...
    def __getitem__(self, index: int | slice) -> ToolCall | tuple[ToolCall, ...]:
        return self.calls[index]

    def run(self, timeout: float | None = None) -> list[ToolResult]:
        """Run the calls at the same time and wait; results in the order of the calls.

        timeout: seconds for each. A call that fails or takes longer has an error in its result and raises nothing; a
        `def` that takes longer is left behind in its thread, an `async def` is cancelled.
        """
        return list(wait_for(self.arun(timeout)))

    async def arun(self, timeout: float | None = None) -> list[ToolResult]:
        """The same on the caller's event loop. Cancelling it cancels the calls."""
        width = asyncio.Semaphore(WIDTH)

        async def one(call: ToolCall) -> ToolResult:
            async with width:
                return await _perform(self.tools, call, timeout)

        return list(await asyncio.gather(*(one(call) for call in self.calls)))


async def _perform(tools: Mapping[str, Tool], call: ToolCall, timeout: float | None) -> ToolResult:
    if call.problem:
        problem = ToolError(call.problem)
        return ToolResult(call, told(problem), error=problem)
    began = time.monotonic()
    task = asyncio.ensure_future(_guarded(tools[call.name], call))
    try:
        await asyncio.wait({task}, timeout=timeout)
    finally:
        unfinished = task.cancel()  # False for one that is done
    seconds = time.monotonic() - began
    if unfinished:
        late = TimeoutError(f"{call.name} took longer than {timeout:g} s")
        return ToolResult(call, told(late), error=late, seconds=seconds)
    if task.cancelled():
        gone = ToolError(f"{call.name} was cancelled")
        return ToolResult(call, told(gone), error=gone, seconds=seconds)
    text, value, error = task.result()
    return ToolResult(call, text, value, error, seconds)


async def _guarded(item: Tool, call: ToolCall) -> tuple[str, Any, BaseException | None]:
    """Text, value and error. Whatever a tool raises is for the model; also an exit, which must not end the program."""
    try:
        value = await item.perform(call.arguments)
        return shown(value), value, None
    except (Exception, SystemExit) as error:
        return told(error), None, error


def tool_results(results: Iterable[ToolResult | str], limit: int | None = None) -> Seq:
    """A message of role tool for each result. limit: characters of each, the rest is left out and said to be."""
    items: list[Any] = []
    for result in results:
        text = result if isinstance(result, str) else result.text
        if limit is not None and len(text) > limit:
            text = f"{text[:limit]}... ({len(text) - limit} more characters left out)"
        items += role("tool", text).items
    return Seq(tuple(items))


def _read(form: Format, named: Mapping[str, Tool], thinking: Sequence[Reasoning], turn: int, text: str) -> ToolTurn:
    """The reader of a turn's text. Raises ValueError for one that was cut off inside a call."""
    parser = Parser(form, thinking, [item.spec for item in named.values()])
    said: list[str] = []
    calls: list[ToolCall] = []
    name, arguments = "", list[str]()
    for event in merged([*parser.feed(text), *parser.finish()]):
        number = f"call_{turn}_{len(calls) + 1}"
        match event:
            case Said(words):
                said.append(words.strip())
            case CallBegan(name=name):
                arguments = []
            case CallArguments(text=piece):
                arguments.append(piece)
            case CallEnded():
                calls.append(_called(named, name, "".join(arguments), number))
            case CallBroken(began=began, cut=cut):
                if cut:
                    raise ValueError("the tool call is not whole")
                example = written([Call("name", '{"argument": "value"}')], form)
                calls.append(ToolCall(name if began else "", {}, number, f"a call is written {example}"))
    return ToolTurn(tuple(calls), "\n".join(part for part in said if part), named)


def _called(named: Mapping[str, Tool], name: str, arguments: str, number: str) -> ToolCall:
    try:
        given = json.loads(arguments)
    except RecursionError:
        return ToolCall(name, {}, number, f"the arguments for {name} are nested too deep")
    if name not in named:
        return ToolCall(name, given, number, f"there is no tool {name!r}; there are {', '.join(named)}")
    try:
        return ToolCall(name, named[name].read(given), number)
    except ValueError as error:
        return ToolCall(name, given, number, f"wrong arguments for {name}: {error}")
