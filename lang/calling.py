"""Tool calls in a turn: how a model is told of its tools, what a call must look like, reading calls and running them.

Knows: formats of tool calls as rows, constraints, nodes. Must not know: backends, how a constraint is enforced.
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

from branchwork.lang.asked import Pairs, schema_of, tagged
from branchwork.lang.constraint import (
    Constraint,
    Free,
    JsonSchema,
    Literal,
    Maybe,
    Tag,
    Tagged,
    check,
)
from branchwork.lang.constraint import Sequence as InOrder
from branchwork.lang.expr import check_name, knobs_of, role
from branchwork.lang.ir import Gen, Seq
from branchwork.lang.tools import Tool, ToolError, shown, told, tool, wait_for

CHOICES = ("auto", "required", "none")
WIDTH = 16  # calls of one turn that run at the same time
_turns = itertools.count(1)  # so that ids of calls differ between turns


# --- formats


@dataclass(frozen=True)
class Format:
    """How a family of models writes {"name": ..., "arguments": ...}: between `begin` and `end`, on lines of its own.

    announce: the part of the system message that lists the tools.
    """

    begin: str
    end: str
    announce: Callable[[Sequence[Tool]], str]


def _hermes(tools: Sequence[Tool]) -> str:
    lines = "\n".join(json.dumps(tool.schema["function"], ensure_ascii=False) for tool in tools)
    return f"# Tools\n<tools>\n{lines}\n</tools>"


def _qwen(tools: Sequence[Tool]) -> str:
    lines = "\n".join(json.dumps(tool.schema, ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
        'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


# the announcement of qwen is the text of the chat templates of Qwen2.5 and Qwen3, which they were trained on
FORMATS = {
    "hermes": Format("<tool_call>", "</tool_call>", _hermes),
    "qwen": Format("<tool_call>", "</tool_call>", _qwen),
}


def tool_system(tools: Iterable[Tool | Callable[..., Any]], text: str = "", format: str = "hermes") -> str:
    """The text of a system message that tells of tools, after `text`. Raises what `tools` raises for them."""
    listed = _format(format).announce(as_tools(tools))
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


def _format(name: str | None) -> Format:
    if name is not None and name not in FORMATS:
        raise ValueError(f"unknown tool call format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name or "hermes"]


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
    format: one of FORMATS. think: (begin, end) texts around thinking, in which nothing counts as a call.
    knobs: as of gen.

    Raises ValueError for no tools, two of one name, an unknown choice or format; what tool() raises for a plain
    function; Invalid for a schema that is none; TypeError and ValueError for knobs.
    """
    check_name(name)
    form, found = _format(format), as_tools(given)
    named = {item.name: item for item in found}
    if choice not in CHOICES and choice not in named:
        raise ValueError(f"choice={choice!r} is none of {', '.join(CHOICES)}, nor a tool: {', '.join(named)}")
    callable_ = found if choice in CHOICES else (named[choice],)
    if think is not None and (not parallel or choice == "none"):
        raise TypeError("think goes with parallel calls only; leave out parallel=False and choice='none'")
    constraint = _shape(form, callable_, choice, parallel, think)
    check(constraint)
    pairs = constraint.exempt if isinstance(constraint, Tagged) else ()
    read = functools.partial(_read, form, named, pairs, next(_turns))
    return Gen(name, knobs_of(knobs), constraint=constraint, readers={name: read})


def _shape(form: Format, found: Sequence[Tool], choice: str, parallel: bool, think: Pairs | None) -> Constraint:
    if choice == "none":
        return Free((form.begin,))
    if parallel:
        return tagged([_tag(form, item) for item in found], think, choice != "auto")
    rest = Free((form.begin,))
    call = InOrder((rest, Literal(f"{form.begin}\n"), _any_call(found), Literal(f"\n{form.end}")))
    return InOrder((Maybe(call) if choice == "auto" else call, rest))


def _tag(form: Format, item: Tool) -> Tag:
    """All begin alike, so that no call of anything else can begin; what comes next tells the tool."""
    before = Literal(f'\n{{"name": "{item.name}", "arguments": ')
    return Tag(form.begin, InOrder((before, _json(_closed(item.parameters)))), f"}}\n{form.end}")


def _any_call(found: Sequence[Tool]) -> JsonSchema:
    """A call of one of several tools as one JSON value."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": item.name},
                "arguments": _moved(_closed(item.parameters), f"#/anyOf/{index}/properties/arguments"),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, item in enumerate(found)
    ]
    return _json({"anyOf": calls})


def _json(schema: dict[str, Any]) -> JsonSchema:
    """White space as the model likes it: models learn `{"a": 1}`, and write nonsense where the spaces are forbidden."""
    return schema_of(JsonSchema(schema_of(schema).schema, whitespace="flexible"))


def _closed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that nobody asked for are left out, unless the schema speaks of them."""
    return {"additionalProperties": False, **parameters} if "properties" in parameters else dict(parameters)


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references still hold when it stands at `place` of another one."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if key in ("const", "enum", "default", "examples")
        else _moved(value, place)
        for key, value in schema.items()
    }


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


def _read(form: Format, named: Mapping[str, Tool], exempt: Sequence[tuple[str, str]], turn: int, text: str) -> ToolTurn:
    """The reader of a turn's text. Raises ValueError for one that was cut off inside a call."""
    said: list[str] = []
    calls: list[ToolCall] = []
    at = 0
    while True:
        places = [(place, pair) for pair in ((form.begin, form.end), *exempt) if (place := text.find(pair[0], at)) >= 0]
        if not places:
            break
        place, (begin, end) = min(places, key=lambda found: found[0])
        said.append(text[at:place])
        at = place + len(begin)
        if begin == form.begin:
            made, at = _decode(text, at, end)
            calls.append(_called(named, made, f"call_{turn}_{len(calls) + 1}"))
        else:
            ends = text.find(end, at)
            at = len(text) if ends < 0 else ends + len(end)
    said.append(text[at:])
    spoken = "\n".join(part.strip() for part in said if part.strip())
    return ToolTurn(tuple(calls), spoken, named)


def _decode(text: str, at: int, end: str) -> tuple[Any, int]:
    """The JSON value at a place and where the `end` after it is over."""
    start = at + len(text[at:]) - len(text[at:].lstrip())
    try:
        made, stop = json.JSONDecoder().raw_decode(text, start)
    except ValueError as error:
        raise ValueError(f"the tool call is not whole: {error}") from None
    rest = text[stop:]
    close = stop + len(rest) - len(rest.lstrip())
    if not text.startswith(end, close):
        raise ValueError(f"the tool call is not closed with {end!r}")
    return made, close + len(end)


def _called(named: Mapping[str, Tool], made: Any, number: str) -> ToolCall:
    fields = made if isinstance(made, dict) else {}
    name, arguments = fields.get("name"), fields.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolCall(str(name), {}, number, 'a call is {"name": text, "arguments": object}')
    if name not in named:
        return ToolCall(name, arguments, number, f"there is no tool {name!r}; there are {', '.join(named)}")
    try:
        return ToolCall(name, named[name].read(arguments), number)
    except ValueError as error:
        return ToolCall(name, arguments, number, f"wrong arguments for {name}: {error}")
