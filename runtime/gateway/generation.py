"""/generate, /tokenize and /detokenize: text, ids or messages in, text and ids out.

Knows: Service, sampling parameters, constraints. Must not know: other dialects.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from branchwork.lang.constraint import Choice, Constraint, Grammar, JsonSchema, Regex
from branchwork.lang.params import SamplingParams, merge
from branchwork.runtime.gateway.chat import ChatTemplateError
from branchwork.runtime.gateway.local import Ended, Piece
from branchwork.runtime.gateway.served import Prompt, Served
from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.gateway.web import EVENTS, Call, Stream, event, plain

Id = Annotated[int, Meta(ge=0, lt=2**31)]
DONE = b"data: [DONE]\n\n"


class Message(msgspec.Struct):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Generate(msgspec.Struct, kw_only=True):
    """One of prompt, ids and messages. model: "" for the first that is served. params: as of `gen` (temperature,
    max_tokens, n, seed, logprobs ...), over those that the library has for the model. At most one of regex,
    json_schema, grammar and choices. special: the names of special tokens in the prompt stand for these."""

    model: str = ""
    prompt: str | None = None
    ids: list[Id] | None = None
    messages: list[Message] | None = None
    special: bool = True
    params: dict[str, Any] = {}
    regex: str | None = None
    json_schema: dict[str, Any] | bool | None = None
    grammar: str | None = None
    choices: list[str] | None = None
    stream: bool = False


class Tokenize(msgspec.Struct, kw_only=True):
    """Either text or messages, as /generate reads them."""

    model: str = ""
    text: str | None = None
    messages: list[Message] | None = None
    special: bool = True


class Detokenize(msgspec.Struct, kw_only=True):
    """ids of one model."""

    ids: list[Id]
    model: str = ""


async def generate(call: Call[Generate]) -> Any:
    """Answers to a text, to token ids or to a conversation, with their ids; with `stream` as server-sent events."""
    body = call.body
    if body.stream:
        return Stream(EVENTS, _streamed(call), lambda problem: event(plain(problem)) + DONE)
    async with call.service.model(named(call.service, body.model)) as served:
        params, constraint = _params(served, body.params), _constraint(body)
        found = prompt(served, text=body.prompt, ids=body.ids, messages=body.messages, special=body.special)
        answers: list[Any] = [None] * params.n
        async with aclosing(call.service.answers(served, found, params, constraint)) as events:
            async for one in events:
                if isinstance(one, Ended):
                    answers[one.sample] = _ended(one)
        return {"model": served.name, "answers": answers}


async def _streamed(call: Call[Generate]) -> AsyncGenerator[bytes, None]:
    body = call.body
    async with call.service.model(named(call.service, body.model)) as served:
        params, constraint = _params(served, body.params), _constraint(body)
        found = prompt(served, text=body.prompt, ids=body.ids, messages=body.messages, special=body.special)
        async with aclosing(call.service.answers(served, found, params, constraint, stream=True)) as events:
            async for one in events:
                yield event(_ended(one) if isinstance(one, Ended) else _piece(one))
    yield DONE


async def tokenize(call: Call[Tokenize]) -> Any:
    """The token ids of a text or a conversation, as /generate would read it, and the text of each."""
    body = call.body
    async with call.service.model(named(call.service, body.model)) as served:
        ids = prompt(served, text=body.text, ids=None, messages=body.messages, special=body.special, name="text").ids
        tokens = [served.texts.text_of([one]) for one in ids]
        return {"model": served.name, "ids": ids, "tokens": tokens, "count": len(ids)}


async def detokenize(call: Call[Detokenize]) -> Any:
    """The text of token ids."""
    async with call.service.model(named(call.service, call.body.model)) as served:
        return {"model": served.name, "text": served.texts.text_of(known(served, call.body.ids))}


def named(service: Service, model: str) -> str:
    """The model that is meant; the first that is served where none is named."""
    return model or service.models.names()[0]


def prompt(
    served: Served,
    *,
    text: str | None,
    ids: Sequence[int] | None,
    messages: Sequence[Message] | None,
    special: bool = True,
    name: str = "prompt",
) -> Prompt:
    """The one of the three that is given, as tokens. name: the text's field. Raises Problem 400."""
    if sum(one is not None for one in (text, ids, messages)) != 1:
        raise Problem(400, "invalid_request", f"give one of {name}, ids and messages, and no other", name)
    if ids is not None:
        return Prompt(list(known(served, ids)), served.texts.text_of(ids))
    if text is not None:
        return served.encode(text, special)
    try:
        return served.chat(msgspec.to_builtins(messages))
    except ChatTemplateError as error:
        raise Problem(400, "chat_template", f"the model's template refuses these: {error}", "messages") from error


def known(served: Served, ids: Sequence[int]) -> Sequence[int]:
    """ids, every one of them in the vocabulary. Raises Problem 400."""
    size = len(served.texts.token_bytes)
    if ids and max(ids) >= size:
        raise Problem(400, "bad_token", f"there is no token {max(ids)}; the vocabulary has {size}", "ids")
    return ids


def _params(served: Served, given: dict[str, Any]) -> SamplingParams:
    """What is given, over what the library says of the model. Raises Problem 400."""
    try:
        return merge(served.info.knobs, given)
    except (TypeError, ValueError, OverflowError) as error:
        raise Problem(400, "invalid_request", str(error), "params") from error


def _constraint(body: Generate) -> Constraint | None:
    found: list[Constraint] = []
    if body.regex is not None:
        found.append(Regex(body.regex))
    if body.json_schema is not None:
        found.append(JsonSchema(msgspec.json.encode(body.json_schema).decode()))
    if body.grammar is not None:
        found.append(Grammar(body.grammar))
    if body.choices is not None:
        found.append(Choice(tuple(body.choices)))
    if len(found) > 1:
        raise Problem(400, "invalid_request", "give at most one of regex, json_schema, grammar and choices")
    return found[0] if found else None


def _piece(piece: Piece) -> dict[str, Any]:
    told: dict[str, Any] = {"sample": piece.sample, "text": piece.text, "ids": piece.ids}
    if piece.logprobs:
        told |= {"output_token_logprobs": piece.logprobs, "output_top_logprobs": piece.tops}
    return told


def _ended(ended: Ended) -> dict[str, Any]:
    meta = ended.meta
    return {
        "sample": ended.sample,
        "text": ended.text,
        "ids": meta["output_ids"],
        "finish_reason": meta["finish_reason"],
        "meta": {name: value for name, value in meta.items() if name not in ("output_ids", "finish_reason")},
    }
