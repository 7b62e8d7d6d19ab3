"""/v1/responses: answers that are kept, so that a later request goes on from the very tokens of an earlier one.

Knows: OpenAI's response fields and their order of events, turns, the store. Must not know: templates, other routes.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from branchwork.lang.constraint import Constraint, ConstraintError
from branchwork.lang.params import SamplingParams
from branchwork.runtime.gateway import openai_fields as fields
from branchwork.runtime.gateway.local import Ended
from branchwork.runtime.gateway.openai_items import Item, Output, ToolIn, listed, messages_of, tools_of
from branchwork.runtime.gateway.openai_shapes import Shown, Usage, chat_logprobs, error, new_id, tokens
from branchwork.runtime.gateway.openai_store import Kept, Store
from branchwork.runtime.gateway.replies import Part, parts
from branchwork.runtime.gateway.served import Prompt, Served
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.turns import Ask, Turn, next_turn, resumed
from branchwork.runtime.gateway.web import EVENTS, Call, Stream, bearer, event

REFUSED = ("background", "conversation", "prompt", "n", "max_tokens", "response_format")
INCLUDED = ("message.output_text.logprobs", "reasoning.encrypted_content")  # of the latter there is none


class Text(msgspec.Struct):
    format: fields.Format | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class Body(fields.Sampling, kw_only=True):
    input: str | list[Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    max_output_tokens: int | None = None
    tools: list[ToolIn] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    truncation: str | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None


class _Asked(NamedTuple):
    """A request that can be answered. messages: of the whole conversation. shape: the response without an answer."""

    served: Served
    turn: Turn
    params: SamplingParams
    head: str
    messages: list[dict[str, Any]]
    shape: dict[str, Any]


class Responses:
    """The handlers of these routes, with what they keep."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, call: Call[Body]) -> Any:
        """A response, or the stream of events in which it comes to be."""
        if call.body.stream:
            return Stream(EVENTS, self._events(call), _broken)
        shape: dict[str, Any] = {}
        async with aclosing(self._made(call)) as made:
            async for one in made:
                shape = one.get("response", shape)
        return shape

    async def get(self, call: Call[None]) -> Any:
        return (await self._kept(call, call.http.path_params["number"], 404)).response

    async def items(self, call: Call[None]) -> Any:
        """The items of a response's input."""
        found = (await self._kept(call, call.http.path_params["number"], 404)).input
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {}
        return {"object": "list", "data": found, **ends, "has_more": False}

    async def delete(self, call: Call[None]) -> Any:
        number = call.http.path_params["number"]
        if not await asyncio.to_thread(self._store.delete, number, _owner(call)):
            raise Problem(404, "not_found", f"there is no response {number!r}")
        return {"id": number, "object": "response", "deleted": True}

    async def _kept(self, call: Call[Any], number: str, status: int, param: str | None = None) -> Kept:
        kept = await asyncio.to_thread(self._store.get, number, _owner(call))
        if kept is None:
            code = "not_found" if param is None else "previous_response_not_found"
            raise Problem(status, code, f"there is no response {number!r}; it may be too old, or never stored", param)
        return kept

    async def _events(self, call: Call[Body]) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._made(call)) as made:
            async for one in made:
                yield event(one, one["type"])

    async def _made(self, call: Call[Body]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a response; the last one has it whole."""
        number = itertools.count()
        async with call.service.model(call.body.model) as served:
            before = None
            if call.body.previous_response_id is not None:
                before = await self._kept(call, call.body.previous_response_id, 400, "previous_response_id")
            asked = _asked(served, call.body, before)
            making = _Making(asked)
            answers = parts(call.service, served, asked.turn, asked.params, stream=bool(call.body.stream))
            begun = False
            async with aclosing(answers):
                async for part in answers:
                    for kind in () if begun else ("created", "in_progress"):  # only now it is certain to be answered
                        yield {"type": f"response.{kind}", "response": asked.shape, "sequence_number": next(number)}
                    begun = True
                    for told in making.hear(part):
                        yield {**told, "sequence_number": next(number)}
                    if part.ended is not None:
                        shape = making.response(part.ended)
                        await self._keep(call, asked, making.output, shape, part.ended)
                        kind = f"response.{shape['status']}"
                        yield {"type": kind, "response": shape, "sequence_number": next(number)}

    async def _keep(self, call: Call[Body], asked: _Asked, output: Output, shape: dict[str, Any], end: Ended) -> None:
        if call.body.store is False:
            return
        transcript = asked.served.answered(asked.turn.prompt, end.text, end.meta)
        messages = [*asked.messages, output.message()]
        given = listed(call.body.input)
        kept = Kept(shape["id"], _owner(call), asked.head, shape, given, messages, transcript.ids, transcript.text)
        await asyncio.to_thread(self._store.put, kept)


class _Making:
    """An answer that comes to be items."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self._shown = Shown()
        self._scores: list[dict[str, Any]] = []
        self._streamed = False
        self.output = Output()

    def hear(self, part: Part) -> Iterator[dict[str, Any]]:
        """What a stream tells of it."""
        piece, end = part.piece, part.ended
        if piece is not None:
            self._streamed = True
            self._score(piece.text, piece.logprobs, piece.tops)
        elif end is not None and not self._streamed:
            self._score(end.text, end.meta.get("output_token_logprobs", ()), end.meta.get("output_top_logprobs", ()))
        for found in part.events:
            yield from self.output.hear(found, self._taken())
        if end is not None:
            yield from self.output.finish(self._taken(), whole=end.meta["finish_reason"] != "length")

    def response(self, end: Ended) -> dict[str, Any]:
        """The whole response."""
        cut = end.meta["finish_reason"] == "length"
        thought = self.output.message().get("reasoning_content", "")
        thinking = len(self._asked.served.encode(thought, special=False).ids) if thought else 0
        usage = Usage().with_answer(end.meta, thinking)
        return {
            **self._asked.shape,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self.output.items,
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                "total_tokens": usage.prompt + usage.completion,
            },
        }

    def _score(self, text: str, scores: Any, tops: Any) -> None:
        shown = self._shown.feed(text, tokens(self._asked.served, scores, tops))
        self._scores += chat_logprobs(shown)["content"]

    def _taken(self) -> list[dict[str, Any]]:
        scores, self._scores = self._scores, []
        return scores


def _asked(served: Served, body: Body, before: Kept | None) -> _Asked:
    """What a request asks for. before: the response that it goes on from. Raises Problem 400."""
    _check(body)
    tools = tools_of(body.tools)
    choice = fields.choice_of(body.tool_choice, tools)
    context = fields.variables(served, body.chat_template_kwargs)
    if body.reasoning is not None:
        context = {**fields.effort(served, body.reasoning.effort, "reasoning.effort"), **context}
    new = messages_of(body.input)
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    whole = [*(before.messages if before else ()), *new]
    ask = Ask(
        [*system, *whole],
        tools,
        choice.choice,
        choice.allowed,
        body.parallel_tool_calls is not False,
        _shape(body),
        False,
        context,
    )
    head = msgspec.json.encode([body.model, body.instructions or "", tools, context]).decode()
    prompt = None
    if before is not None and before.head == head:  # otherwise it begins in another way, and is another text
        prompt = resumed(served, ask._replace(messages=new), Prompt(before.ids, before.text))
    scored = body.top_logprobs is not None or INCLUDED[0] in (body.include or ())
    params = fields.sampling(
        served,
        body,
        max_tokens=fields.most(body, "max_output_tokens"),
        logprobs=(body.top_logprobs or 0) if scored else None,
    )
    return _Asked(served, next_turn(served, ask, prompt), params, head, whole, _response(body, params))


def _check(body: Body) -> None:
    """Refuse what is not served. Raises Problem 400."""
    fields.refuse(body, REFUSED)
    if body.truncation not in (None, "disabled"):
        raise Problem(400, "unsupported_value", "truncation other than disabled is not served", "truncation")
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        raise Problem(400, "unsupported_value", "text.verbosity is not served; leave it out", "text.verbosity")
    wrong = [name for name in body.include or () if name not in INCLUDED]
    if wrong:
        raise Problem(400, "unsupported_value", f"include: {wrong[0]!r} is not served", "include")
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= 20:
        raise Problem(400, "invalid_value", "top_logprobs is from 0 to 20", "top_logprobs")


def _shape(body: Body) -> Constraint | None:
    try:
        asked = fields.format_shape(body.text.format if body.text else None, "text.format")
    except ConstraintError as wrong:
        raise Problem(400, wrong.code, str(wrong), "text.format.schema") from wrong
    other = fields.shape_of(body)
    if asked is not None and other is not None:
        raise Problem(400, "invalid_value", "text.format and another constraint; give one of them", "text.format")
    return asked or other


def _response(body: Body, params: SamplingParams) -> dict[str, Any]:
    """The response before anything has been said."""
    told = msgspec.to_builtins(body)
    form = {key: value for key, value in ((told["text"] or {}).get("format") or {}).items() if value not in (None, "")}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": told["reasoning"] or {"effort": None, "summary": None},
        "store": body.store is not False,
        "temperature": params.temperature,
        "text": {"format": form or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": told["tools"] or [],
        "top_p": params.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _broken(problem: Problem) -> bytes:
    return event({"type": "error", **error(problem)["error"]}, "error")


def _owner(call: Call[Any]) -> str:
    """Whose responses a request may see: those made with the same key."""
    key = bearer(call.http)
    return hashlib.sha256(key.encode()).hexdigest()[:16] if key else ""
