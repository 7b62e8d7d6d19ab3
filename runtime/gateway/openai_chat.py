"""POST /v1/chat/completions: a conversation in, the assistant's next message out, whole or in chunks.

Knows: OpenAI's chat fields and chunks, turns. Must not know: other routes, templates, how answers are made.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any, NamedTuple

from branchwork.lang.params import SamplingParams
from branchwork.lang.turnparser import CallArguments, CallBegan, Event, Said, Thought
from branchwork.runtime.gateway import openai_fields as fields
from branchwork.runtime.gateway.local import Ended
from branchwork.runtime.gateway.openai_shapes import (
    DONE,
    Shown,
    Token,
    Usage,
    broken,
    chat_logprobs,
    fingerprint,
    new_id,
    tokens,
)
from branchwork.runtime.gateway.replies import Part, parts
from branchwork.runtime.gateway.served import Served
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.turns import Ask, Turn, next_turn
from branchwork.runtime.gateway.web import EVENTS, Call, Stream, event

REFUSED = ("functions", "function_call", "audio", "web_search_options", "verbosity")
TOP = 20  # likeliest tokens that may be asked for


class Body(fields.Sampling, kw_only=True):
    messages: list[fields.Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[fields.ToolIn] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    modalities: list[str] | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None
    verbosity: Any = None


class _Chat(NamedTuple):
    """A request that can be answered."""

    served: Served
    turn: Turn
    params: SamplingParams
    head: dict[str, Any]  # the fields that every chunk begins with
    scored: bool


async def chat(call: Call[Body]) -> Any:
    """The answer: a chat.completion, or a stream of chat.completion.chunk."""
    if call.body.stream:
        return Stream(EVENTS, _chunks(call), broken)
    async with call.service.model(call.body.model) as served:
        asked = _asked(served, call.body, "chat.completion")
        choices: dict[int, dict[str, Any]] = {}
        usage = Usage()
        answers = parts(call.service, served, asked.turn, asked.params, stream=False)
        async with aclosing(answers):
            async for part in answers:
                assert part.ended is not None
                message = Heard(part.events)
                usage = usage.with_answer(part.ended.meta, message.thinking(served), first=not choices)
                choices[part.sample] = _choice(asked, part.ended, message)
        listed = [choices[index] for index in sorted(choices)]
        return {**asked.head, "choices": listed, "usage": usage.shape()}


class Heard:
    """What a whole answer says. calls: [name, arguments] of each."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.said = ""
        self.thought = ""
        self.calls: dict[int, list[str]] = {}
        for one in events:
            self.hear(one)

    def hear(self, one: Event) -> None:
        match one:
            case Said(text):
                self.said += text
            case Thought(text):
                self.thought += text
            case CallBegan(index, name):
                self.calls[index] = [name, ""]
            case CallArguments(index, text):
                self.calls[index][1] += text

    def thinking(self, served: Served) -> int:
        """Tokens of the thinking, as its text is written."""
        return len(served.encode(self.thought, special=False).ids) if self.thought else 0

    def finish(self, meta: dict[str, Any]) -> str:
        """The finish_reason of the answer."""
        if meta["finish_reason"] == "length":
            return "length"
        return "tool_calls" if self.calls else "stop"


def _asked(served: Served, body: Body, kind: str) -> _Chat:
    """What a request asks for. Raises Problem 400."""
    fields.refuse(body, REFUSED)
    if body.modalities and body.modalities != ["text"]:
        raise Problem(400, "unsupported_value", "modalities: this model writes text only", "modalities")
    if body.top_logprobs is not None and not body.logprobs:
        raise Problem(400, "invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= TOP:
        raise Problem(400, "invalid_value", f"top_logprobs is from 0 to {TOP}", "top_logprobs")
    most = fields.most(body, "max_completion_tokens", "max_tokens")
    params = fields.sampling(
        served, body, max_tokens=most, logprobs=(body.top_logprobs or 0) if body.logprobs else None
    )
    head = {
        "id": new_id("chatcmpl"),
        "object": kind,
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": fingerprint(served),
    }
    return _Chat(served, next_turn(served, _ask(served, body)), params, head, bool(body.logprobs))


def _ask(served: Served, body: Body) -> Ask:
    tools = fields.tools_of(body.tools)
    choice = fields.choice_of(body.tool_choice, tools)
    continued = bool(body.continue_final_message)
    if continued and (not body.messages or body.messages[-1].role != "assistant"):
        text = "continue_final_message needs the last message to be the assistant's"
        raise Problem(400, "invalid_value", text, "continue_final_message")
    if body.add_generation_prompt is not None and body.add_generation_prompt is continued:
        text = "add_generation_prompt is the contrary of continue_final_message; leave it out"
        raise Problem(400, "invalid_value", text, "add_generation_prompt")
    return Ask(
        fields.messages_of(body.messages),
        tools,
        choice.choice,
        choice.allowed,
        body.parallel_tool_calls is not False,
        fields.shape_of(body),
        continued,
        {
            **fields.effort(served, body.reasoning_effort, "reasoning_effort"),
            **fields.variables(served, body.chat_template_kwargs),
        },
    )


def _choice(asked: _Chat, ended: Ended, heard: Heard) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": heard.said, "refusal": None}
    if heard.thought:
        message["reasoning_content"] = heard.thought
    if heard.calls:
        message["content"] = heard.said or None
        message["tool_calls"] = [fields.call_of(new_id("call"), *called) for called in heard.calls.values()]
    logprobs = None
    if asked.scored:
        meta = ended.meta
        scored = tokens(asked.served, meta["output_token_logprobs"], meta["output_top_logprobs"])
        logprobs = chat_logprobs(Shown().feed(ended.text, scored))
    return {
        "index": ended.sample,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": heard.finish(ended.meta),
    }


# --- streaming


class _Told:
    """One choice under way."""

    def __init__(self) -> None:
        self.heard = Heard()
        self.shown = Shown()
        self.scores: list[Token] = []  # of text that is not sent yet
        self.begun = False


async def _chunks(call: Call[Body]) -> AsyncGenerator[bytes, None]:
    body = call.body
    async with call.service.model(body.model) as served:
        asked = _asked(served, body, "chat.completion.chunk")
        told: dict[int, _Told] = {}
        usage, ends = Usage(), 0
        answers = parts(call.service, served, asked.turn, asked.params, stream=True)
        nothing = {"usage": None} if body.usage_asked else {}
        async with aclosing(answers):
            async for part in answers:
                choice = told.get(part.sample) or told.setdefault(part.sample, _Told())
                for shape in _pieces(asked, choice, part):
                    shape = {"index": part.sample, **shape}
                    yield event({**asked.head, "choices": [shape], **nothing})
                if part.ended is not None:
                    usage = usage.with_answer(part.ended.meta, choice.heard.thinking(served), first=not ends)
                    ends += 1
        if body.usage_asked:
            yield event({**asked.head, "choices": [], "usage": usage.shape()})
        yield DONE


def _pieces(asked: _Chat, choice: _Told, part: Part) -> Iterator[dict[str, Any]]:
    """What is new of a choice, as a chunk's choice each."""
    if not choice.begun:
        choice.begun = True
        yield _delta({"role": "assistant", "content": "", "refusal": None})
    if part.piece is not None and asked.scored:
        scored = tokens(asked.served, part.piece.logprobs, part.piece.tops)
        choice.scores += choice.shown.feed(part.piece.text, scored)
    for found in part.events:
        choice.heard.hear(found)
        delta = _said(found)
        if delta:
            yield _delta(delta, _taken(asked, choice))
    if part.ended is not None:
        yield {**_delta({}, _taken(asked, choice)), "finish_reason": choice.heard.finish(part.ended.meta)}


def _delta(delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"delta": delta, "logprobs": logprobs, "finish_reason": None}


def _taken(asked: _Chat, choice: _Told) -> dict[str, Any] | None:
    """The log-probabilities that have come since the last chunk."""
    if not asked.scored or not choice.scores:
        return None
    scores, choice.scores = choice.scores, []
    return chat_logprobs(scores)


def _said(found: Event) -> dict[str, Any] | None:
    match found:
        case Said(text):
            return {"content": text}
        case Thought(text):
            return {"reasoning_content": text}
        case CallBegan(index, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": new_id("call"), "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
    return None
