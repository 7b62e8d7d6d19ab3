"""Ollama's /api/generate, /api/chat and embeddings: a request becomes a turn, and its answer objects or lines.

Knows: Ollama's fields of prompts and answers. Must not know: the library, engines.
"""

from __future__ import annotations

import json
import secrets
import time
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from branchwork.lang.reasoning import reasoning_of
from branchwork.lang.toolformats import json_text
from branchwork.lang.turnparser import CallArguments, CallBegan, CallEnded, Event, Said, Thought
from branchwork.runtime.gateway.local import Ended
from branchwork.runtime.gateway.ollama_dialect import as_lines, broken
from branchwork.runtime.gateway.ollama_fields import DEFAULTS, knobs, nanoseconds, seconds, shape, specs, stamp, window
from branchwork.runtime.gateway.replies import params_for, parts, room
from branchwork.runtime.gateway.served import Prompt, Served
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.turns import Ask, Turn, next_turn, rendered, resumed
from branchwork.runtime.gateway.web import LINES, Call, Stream
from branchwork.runtime.loading.create import check_template
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import jinja

Scored = tuple[float, int, str]  # log-probability, id and text of a token


class Asking(msgspec.Struct, kw_only=True):
    """What both ways to ask for text share. think: whether a model that can is to think, or how hard."""

    model: str
    stream: bool | None = None
    options: dict[str, Any] | None = None
    format: str | dict[str, Any] | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    truncate: bool = True


class Generate(Asking, kw_only=True):
    prompt: str = ""
    suffix: str = ""
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool = False
    images: list[Any] | None = None


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Chat(Asking, kw_only=True):
    messages: list[Message] = []
    tools: list[dict[str, Any]] | None = None


class Embed(msgspec.Struct):
    model: str
    input: str | list[str] = ""
    truncate: bool = True
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class Embeddings(msgspec.Struct):
    model: str
    prompt: str = ""
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class Way(NamedTuple):
    """How one of the two routes answers. begin: the turn that is asked for. shown: a message's fields as its own.
    last: what the last part tells besides."""

    begin: Callable[[Served], Turn]
    shown: Callable[[dict[str, Any]], dict[str, Any]]
    last: Callable[[Prompt, Ended], dict[str, Any]]


async def generate(call: Call[Generate]) -> Any:
    body = call.body
    if body.suffix:
        raise Problem(400, "unsupported", f"{body.model} does not support insert; leave suffix out", "suffix")
    _refuse_images(body.images)
    if body.raw and (body.template or body.system or body.context):
        raise Problem(400, "invalid_request", "raw mode does not support template, system, or context", "raw")

    def shown(message: dict[str, Any]) -> dict[str, Any]:
        return {"response": message.pop("content"), **message}

    def last(prompt: Prompt, ended: Ended) -> dict[str, Any]:
        kept = ended.meta["output_ids"][: ended.meta["kept_tokens"]]
        return {} if body.raw else {"context": [*prompt.ids, *kept]}

    way = Way(lambda served: _generated(served, body), shown, last)
    return await (_answer if body.prompt or body.context else _load)(call, way)


async def chat(call: Call[Chat]) -> Any:
    body = call.body
    for one in body.messages:
        _refuse_images(one.images)

    def shown(message: dict[str, Any]) -> dict[str, Any]:
        return {"message": {"role": "assistant", **message}}

    way = Way(lambda served: _chatted(served, body), shown, lambda prompt, ended: {})
    return await (_answer if body.messages else _load)(call, way)


async def embed(call: Call[Embed]) -> Any:
    """Vectors of texts; none of no text, which only loads the model."""
    body = call.body
    if body.dimensions:
        raise Problem(400, "unsupported", "dimensions other than the model's own are not served", "dimensions")
    texts = [body.input] if isinstance(body.input, str) else body.input
    began = time.monotonic()
    async with call.service.model(body.model, seconds(body.keep_alive)) as served:
        loaded = time.monotonic()
        prompts = [served.text_to_embed(text, truncate=body.truncate).ids for text in texts if text or len(texts) > 1]
        vectors = await call.service.embed(served, prompts, "input")
    return {
        "model": body.model,
        "embeddings": vectors,
        "total_duration": nanoseconds(time.monotonic() - began),
        "load_duration": nanoseconds(loaded - began),
        "prompt_eval_count": sum(map(len, prompts)),
    }


async def embeddings(call: Call[Embeddings]) -> Any:
    """The vector of one text."""
    body = call.body
    async with call.service.model(body.model, seconds(body.keep_alive)) as served:
        prompts = [served.text_to_embed(body.prompt, truncate=True).ids] if body.prompt else []
        vectors = await call.service.embed(served, prompts, "prompt")
    return {"embedding": vectors[0] if vectors else []}


# --- turns


def _generated(served: Served, body: Generate) -> Turn:
    """The turn after one prompt. context: the tokens of earlier rounds, from which a new one goes on."""
    if body.raw:
        return Turn(served.encode(body.prompt), shape(body.format), None, None, ())
    context = _thinking(served, body)
    if body.template:
        context["template"] = _template(body.template)
    if not all(0 <= number < served.info.vocab for number in body.context or ()):
        raise Problem(400, "invalid_request", f"context takes ids of tokens, 0..{served.info.vocab - 1}", "context")
    ask = Ask([{"role": "user", "content": body.prompt}], shape=shape(body.format), context=context)
    if body.context:
        before = resumed(served, ask, Prompt(body.context, served.texts.text_of(body.context)))
        if before is None:
            raise Problem(400, "unsupported", "this model's template cannot go on from a context", "context")
        return next_turn(served, ask, before)
    system = [{"role": "system", "content": body.system}] if body.system else []
    return next_turn(served, ask._replace(messages=[*system, *ask.messages]))


def _chatted(served: Served, body: Chat) -> Turn:
    """The turn after a conversation; if it is too long its oldest messages are left out, unless told not to."""
    messages, tools, format = [_told(one) for one in body.messages], specs(body.tools), shape(body.format)
    context = _thinking(served, body)
    old = [at for at, one in enumerate(messages[:-1]) if one["role"] != "system"]

    def without(count: int) -> Ask:
        gone = set(old[:count])
        return Ask([one for at, one in enumerate(messages) if at not in gone], tools, shape=format, context=context)

    def fits(count: int) -> bool:
        return room(served, rendered(served, without(count)), window(body.options)) > 0

    count = bisect_left(range(len(old)), True, key=fits) if body.truncate and old and not fits(0) else 0
    return next_turn(served, without(count))


def _told(message: Message) -> dict[str, Any]:
    """A message in the words of chat templates."""
    told: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.thinking:
        told["reasoning_content"] = message.thinking
    if message.tool_calls:
        told["tool_calls"] = [_call(one) for one in message.tool_calls]
    if message.tool_name:
        told["name"] = message.tool_name
    if message.tool_call_id:
        told["tool_call_id"] = message.tool_call_id
    return told


def _call(given: Mapping[str, Any]) -> dict[str, Any]:
    function = given.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        text = "a tool call is {function: {name: text, arguments: object}}"
        raise Problem(400, "invalid_request", text, "messages")
    call = {"name": function["name"], "arguments": json_text(function.get("arguments") or {})}
    return {"type": "function", "id": str(given.get("id") or ""), "function": call}


def _template(text: str) -> str | None:
    try:
        check_template(text)
        return jinja(text)
    except LoadError as error:
        raise Problem(400, "invalid_template", error.message, "template") from error


def _thinking(served: Served, body: Asking) -> dict[str, Any]:
    """What `think` says to the template. Raises Problem 400 for a model that does not think."""
    if body.think is None:
        return {}
    if body.think and reasoning_of(served.template, served.info.family) is None:
        raise Problem(400, "unsupported", f'"{body.model}" does not support thinking', "think")
    effort = {"reasoning_effort": body.think} if isinstance(body.think, str) else {}
    return {"enable_thinking": bool(body.think), **effort}


def _refuse_images(images: list[Any] | None) -> None:
    if images:
        raise Problem(400, "unsupported", "this model reads text only; leave images out", "images")


# --- answers


async def _load(call: Call[Any], way: Way) -> Any:
    """Nothing is asked: the model is loaded, or let go when it is to be kept for no time at all."""
    body, models, keep = call.body, call.service.models, seconds(call.body.keep_alive)
    name = call.service.wanted(body.model).name
    if keep == 0:
        models.forget(name)
        stays = any(row.name == name and row.expires for row in models.loaded())
        return _object(body, way.shown({"content": ""}), {"done": True, "done_reason": "load" if stays else "unload"})
    async with call.service.model(body.model, keep):
        return _object(body, way.shown({"content": ""}), {"done": True, "done_reason": "load"})


async def _answer(call: Call[Any], way: Way) -> Any:
    """One object, or a stream of lines."""
    body = call.body
    if not 0 <= body.top_logprobs <= 20:
        raise Problem(400, "invalid_request", "top_logprobs must be between 0 and 20", "top_logprobs")
    streamed = body.stream is not False
    lines = _objects(call, way, streamed)
    if streamed:
        return Stream(LINES, as_lines(lines), broken)
    async with aclosing(lines):
        return await anext(lines)


async def _objects(call: Call[Any], way: Way, streamed: bool) -> AsyncGenerator[dict[str, Any], None]:
    """The objects of an answer: as they come, the last one done; or one that is all."""
    body, came = call.body, time.monotonic()
    given, limit = knobs(body.options), window(body.options)
    if body.logprobs or body.top_logprobs:
        given["logprobs"] = body.top_logprobs
    async with call.service.model(body.model, seconds(body.keep_alive)) as served:
        loaded = time.monotonic()
        turn = way.begin(served)
        params = params_for(served, turn.prompt, DEFAULTS, given, window=limit)
        reader = _Reader()
        async with aclosing(parts(call.service, served, turn, params, stream=streamed)) as found:
            async for part in found:
                said = reader.read(part.events)
                ended = part.ended
                if ended is None:
                    assert part.piece is not None
                    scores = _scores(part.piece.logprobs, part.piece.tops)
                    if any(said.values()) or scores:
                        yield _object(body, way.shown(said), {"done": False, **scores})
                    continue
                meta = ended.meta
                scores = {} if streamed else _scores(meta.get("output_token_logprobs"), meta.get("output_top_logprobs"))
                if streamed and any(said.values()):
                    yield _object(body, way.shown(said), {"done": False})
                    said = {"content": ""}
                figures = _figures(meta, loaded - came, time.monotonic() - came)
                yield _object(body, way.shown(said), {**scores, **figures, **way.last(turn.prompt, ended)})


def _object(body: Asking, shown: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": body.model, "created_at": stamp(), **shown, **rest}


class _Reader:
    """Events of an answer as the fields of messages; a call is told of once it is whole."""

    def __init__(self) -> None:
        self._calls: dict[int, list[str]] = {}

    def read(self, events: Iterable[Event]) -> dict[str, Any]:
        """content, and thinking and tool_calls where there are any."""
        content, thinking, calls = [], [], []
        for event in events:
            match event:
                case Said(text):
                    content.append(text)
                case Thought(text):
                    thinking.append(text)
                case CallBegan(index, name):
                    self._calls[index] = [name]
                case CallArguments(index, text):
                    self._calls[index].append(text)
                case CallEnded(index):
                    name, *arguments = self._calls.pop(index)
                    function = {"index": index, "name": name, "arguments": json.loads("".join(arguments))}
                    calls.append({"id": f"call_{secrets.token_hex(4)}", "function": function})
        said: dict[str, Any] = {"content": "".join(content)}
        if thinking:
            said["thinking"] = "".join(thinking)
        if calls:
            said["tool_calls"] = calls
        return said


def _figures(meta: Mapping[str, Any], load: float, total: float) -> dict[str, Any]:
    """What the last object says of an answer. Times in nanoseconds."""
    return {
        "done": True,
        "done_reason": "length" if meta["finish_reason"] == "length" else "stop",
        "total_duration": nanoseconds(total),
        "load_duration": nanoseconds(load),
        "prompt_eval_count": meta["prompt_tokens"],
        "prompt_eval_duration": nanoseconds(max(meta["first_s"] - meta["queued_s"], 0.0)),
        "eval_count": meta["completion_tokens"],
        "eval_duration": nanoseconds(max(meta["total_s"] - meta["first_s"], 0.0)),
    }


def _scores(chosen: Iterable[Scored] | None, tops: Iterable[list[Scored]] | None) -> dict[str, Any]:
    """logprobs, where any were asked for."""
    found = [
        {**_score(one), "top_logprobs": [_score(top) for top in near]} for one, near in zip(chosen or (), tops or ())
    ]
    return {"logprobs": found} if found else {}


def _score(scored: Scored) -> dict[str, Any]:
    value, _, text = scored
    return {"token": text, "logprob": value, "bytes": list(text.encode())}
