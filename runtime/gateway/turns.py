"""A model's next turn in a conversation, as chat dialects ask for it: its prompt, its shape, and how it is read.

Knows: what templates need, formats of calls and of thinking, constraints. Must not know: any dialect's words, HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from branchwork.lang.constraint import Constraint, ConstraintError, Literal, OneOf, Repeat, Tagged
from branchwork.lang.constraint import Sequence as InOrder
from branchwork.lang.ir import Reasoning
from branchwork.lang.reasoning import after_prompt, reasoning_of, thought_before
from branchwork.lang.toolformats import Call, Format, ToolSpec, announced, format_of, written
from branchwork.lang.toolshapes import answer
from branchwork.lang.turnparser import CallBroken, Event, Parser
from branchwork.runtime.gateway.chat import ChatTemplateError
from branchwork.runtime.gateway.served import Prompt, Served
from branchwork.runtime.gateway.service import Problem

_STRINGS = re.compile(r"arguments\s+is\s+string")  # in a template: it takes a call's arguments as JSON text
_TOOL = re.compile(r"[\w.-]{1,128}")


class Ask(NamedTuple):
    """What a turn comes after and what it may be.

    messages: {"role", "content", "tool_calls", ...}; contents are texts, calls as chat APIs have them, with their
    arguments as JSON text. choice: auto | required | none. allowed: names of the tools that may be called, None for
    all. parallel: several calls may come. shape: of the answer's text. continued: the last message goes on.
    context: further variables of the template.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[ToolSpec] = ()
    choice: str = "auto"
    allowed: Sequence[str] | None = None
    parallel: bool = True
    shape: Constraint | None = None
    continued: bool = False
    context: Mapping[str, Any] = {}


class Turn(NamedTuple):
    """form: how calls are written, None where none may come. reasoning: how thinking is, None where none comes."""

    prompt: Prompt
    constraint: Constraint | None
    form: Format | None
    reasoning: Reasoning | None
    tools: Sequence[ToolSpec]

    def reader(self) -> Reader:
        """A reader for one answer."""
        return Reader(Parser(self.form, self.reasoning, self.tools))


class Reader:
    """Tells a turn's text apart as it comes. A call that the end cuts off stays, as far as it came."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._cut = False

    def feed(self, text: str) -> list[Event]:
        """More of the text; what is certain now."""
        return list(self._kept(self._parser.feed(text)))

    def finish(self) -> list[Event]:
        """The text is over; what was waiting."""
        return list(self._kept(self._parser.finish()))

    def _kept(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, CallBroken):
                self._cut = event.began and event.cut
            elif not self._cut:
                yield event


def next_turn(served: Served, ask: Ask, before: Prompt | None = None) -> Turn:
    """The turn that an Ask is for. before: a prompt in its place, made otherwise. Raises Problem 400."""
    form = format_of(served.template, served.info.family)
    prompt = before or rendered(served, ask)
    reasoning = _reasoning(served, prompt)
    callable_ = [tool for tool in ask.tools if ask.allowed is None or tool.name in ask.allowed]
    try:
        shape = _shape(form, callable_, ask, reasoning)
    except (ConstraintError, ValueError) as error:
        raise Problem(400, "invalid_tools", f"the tools cannot be offered: {error}", "tools") from error
    calls = bool(callable_) and ask.choice != "none"
    return Turn(prompt, shape, form if calls else None, reasoning, callable_ if calls else ())


def rendered(served: Served, ask: Ask, *, generate: bool = True) -> Prompt:
    """The conversation as the model's template writes it. Raises Problem 400."""
    messages, context = prepared(served, ask._replace(messages=served.begun(ask.messages)))
    try:
        return served.chat(messages, generate=generate, continued=ask.continued, **context)
    except ChatTemplateError as error:
        text = f"the model's chat template does not take these messages: {error}"
        raise Problem(400, "invalid_messages", text, "messages") from error


def resumed(served: Served, ask: Ask, transcript: Prompt) -> Prompt | None:
    """A transcript that ends with the model's own answer, and after it the conversation of an Ask that goes on from it.

    None where the template does not write these messages on their own.
    """
    known = "tools" in (served.template or "")  # otherwise they are told of in the transcript already
    messages, context = prepared(served, ask if known else ask._replace(tools=()))
    try:
        return served.resume(transcript, messages, **context)
    except ChatTemplateError:
        return None


def prepared(served: Served, ask: Ask) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """Messages and context as this model's template needs them. Raises Problem 400.

    What a template does not write itself (tools, calls) is put into the texts of messages.
    """
    template = served.template or ""
    form = format_of(served.template, served.info.family)
    try:
        messages = [_message(message, template, form) for message in ask.messages]
    except ValueError as error:
        raise Problem(400, "invalid_messages", str(error), "messages") from error
    context: dict[str, Any] = {"tools": [tool.schema for tool in ask.tools] or None, **ask.context}
    if ask.tools and "tools" not in template:
        told = announced(form, ask.tools)
        system = messages[0] if messages and messages[0]["role"] == "system" else None
        text = f"{system['content']}\n\n{told}" if system else told
        messages[: 1 if system else 0] = [{"role": "system", "content": text}]
    return messages, context


def specs(tools: Iterable[tuple[str, str, Mapping[str, Any] | None]]) -> list[ToolSpec]:
    """Tools by name, description and JSON Schema of the arguments (None for none). Raises Problem 400."""
    found: dict[str, ToolSpec] = {}
    for name, description, parameters in tools:
        if not _TOOL.fullmatch(name) or name in found:
            why = "stands twice" if name in found else "must be 1 to 128 letters, digits or characters of '_.-'"
            raise Problem(400, "invalid_tools", f"the tool name {name!r} {why}", "tools")
        found[name] = ToolSpec(name, description, parameters or {"type": "object", "properties": {}})
    return list(found.values())


def _message(message: Mapping[str, Any], template: str, form: Format) -> Mapping[str, Any]:
    calls = message.get("tool_calls")
    if not calls or ("tool_calls" in template and _STRINGS.search(template)):
        return message
    functions = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    if "tool_calls" not in template:
        text = written([Call(*function) for function in functions], form)
        said = "\n".join(part for part in (message.get("content"), text) if part)
        return {**message, "content": said, "tool_calls": None}
    parsed = [
        {**call, "function": {"name": name, "arguments": _object(name, text)}}
        for call, (name, text) in zip(calls, functions)
    ]
    return {**message, "tool_calls": parsed}


def _object(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the arguments of a call of {name!r} are no JSON: {error}") from None


def _reasoning(served: Served, prompt: Prompt) -> Reasoning | None:
    how = reasoning_of(served.template, served.info.family)
    if how is None or prompt.text.rstrip().endswith(how.end.strip()):  # thinking is over before the answer begins
        return None
    return after_prompt(how, prompt.text)


def _shape(form: Format, tools: Sequence[ToolSpec], ask: Ask, how: Reasoning | None) -> Constraint | None:
    """What the answer must be: its text, calls, or either."""
    if ask.choice == "required" and not tools:
        raise ValueError("a call is required, and there is no tool that may be called")
    if not tools or (ask.choice == "none" and ask.shape is not None):
        shape = ask.shape
    elif ask.choice == "required":
        shape = _calls(form, tools, ask.parallel)
    elif ask.shape is None:
        return answer(form, tools, ask.choice, ask.parallel, how)
    else:
        shape = OneOf((_calls(form, tools, ask.parallel), ask.shape))
    return shape if how is None else thought_before(shape, how)


def _calls(form: Format, tools: Sequence[ToolSpec], parallel: bool) -> Constraint:
    """Calls from the answer's first character to its last."""
    shape = answer(form, tools, "required", parallel or not form.begin)
    if not isinstance(shape, Tagged):
        return shape
    ways = [InOrder((Literal(tag.begin), tag.content, *([Literal(tag.end)] if tag.end else []))) for tag in shape.tags]
    one = ways[0] if len(ways) == 1 else OneOf(tuple(ways))
    return one if form.begin or not parallel else Repeat(one, 1, 0, form.between)
