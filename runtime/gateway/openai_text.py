"""POST /v1/completions: text or ids in, what comes after them out; with `echo` the prompt too, scored where asked for.

Knows: OpenAI's legacy completion fields and chunks. Must not know: conversations, tools, how answers are made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from branchwork.lang.params import SamplingParams
from branchwork.runtime.gateway import openai_fields as fields
from branchwork.runtime.gateway.local import Ended, Piece
from branchwork.runtime.gateway.openai_shapes import (
    DONE,
    Token,
    Usage,
    broken,
    fingerprint,
    new_id,
    text_logprobs,
    tokens,
)
from branchwork.runtime.gateway.served import Prompt, Served
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.web import EVENTS, Call, Stream, event

DEFAULT = 16  # tokens of an answer, where nothing else is asked for
TOP = 20


class Body(fields.Sampling, kw_only=True):
    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    best_of: int | None = None


class _Asked(NamedTuple):
    """A request that can be answered. none: no token is wanted; the one that is drawn all the same is not told."""

    served: Served
    prompts: list[Prompt]
    params: SamplingParams
    shape: Any
    head: dict[str, Any]
    none: bool


async def completion(call: Call[Body]) -> Any:
    """The answer: a text_completion, or a stream of them."""
    if call.body.stream:
        return Stream(EVENTS, _chunks(call), broken)
    async with call.service.model(call.body.model) as served:
        asked = _asked(served, call.body)
        choices: dict[int, dict[str, Any]] = {}
        usage = Usage()
        answers = _every(call, asked, stream=False)
        async with aclosing(answers):
            async for number, ended in answers:
                assert isinstance(ended, Ended)
                index = number * asked.params.n + ended.sample
                usage = _counted(usage, asked, ended)
                choices[index] = _whole(asked, call.body, asked.prompts[number], ended) | {"index": index}
        return {**asked.head, "choices": [choices[index] for index in sorted(choices)], "usage": usage.shape()}


def _asked(served: Served, body: Body) -> _Asked:
    """What a request asks for. Raises Problem 400."""
    fields.refuse(body, ("suffix",), "needs a model that fills in the middle; leave it out")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise Problem(400, "unsupported_parameter", "best_of other than n is not served; use n", "best_of")
    if body.logprobs is not None and not 0 <= body.logprobs <= TOP:
        raise Problem(400, "invalid_value", f"logprobs is from 0 to {TOP}", "logprobs")
    none = body.max_tokens == 0
    if none and not body.echo:
        raise Problem(400, "invalid_value", "max_tokens is at least 1, or 0 with echo", "max_tokens")
    most = DEFAULT if body.max_tokens is None else max(body.max_tokens, 1) if none else body.max_tokens
    scored = body.logprobs if body.echo else None
    params = fields.sampling(served, body, max_tokens=most, logprobs=body.logprobs, prompt_logprobs=scored)
    head = {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": fingerprint(served),
    }
    return _Asked(served, prompts_of(served, body.prompt, "prompt"), params, fields.shape_of(body), head, none)


def prompts_of(served: Served, given: str | Sequence[str | int | list[int]], where: str) -> list[Prompt]:
    """One text, one list of ids, or a list of either. Raises Problem 400."""
    if isinstance(given, str):
        return [served.encode(given)]
    numbers = [one for one in given if isinstance(one, int)]
    if not given or (numbers and len(numbers) < len(given)):
        text = f"{where} is a text, a list of token ids, or a list of either, and not empty"
        raise Problem(400, "invalid_value", text, where)
    if numbers:
        return [_of_ids(served, numbers, where)]
    return [
        served.encode(one) if isinstance(one, str) else _of_ids(served, one, where)
        for one in given
        if not isinstance(one, int)
    ]


def _of_ids(served: Served, ids: list[int], where: str) -> Prompt:
    wrong = next((one for one in ids if not 0 <= one < served.info.vocab), None)
    if wrong is not None:
        text = f"{where} holds the token id {wrong}; this model has those from 0 to {served.info.vocab - 1}"
        raise Problem(400, "invalid_value", text, where)
    return Prompt(ids, served.texts.text_of(ids))


async def _every(call: Call[Body], asked: _Asked, *, stream: bool) -> AsyncGenerator[tuple[int, Piece | Ended], None]:
    """The answers to all prompts at once, each with its prompt's number."""
    heard: asyncio.Queue[tuple[int, Piece | Ended] | Exception | None] = asyncio.Queue()

    async def listen(number: int, prompt: Prompt) -> None:
        answers = call.service.answers(asked.served, prompt, asked.params, asked.shape, stream=stream)
        try:
            async with aclosing(answers):
                async for one in answers:
                    heard.put_nowait((number, one))
        except Problem as problem:
            heard.put_nowait(problem)
        heard.put_nowait(None)

    tasks = [asyncio.create_task(listen(number, prompt)) for number, prompt in enumerate(asked.prompts)]
    left = len(tasks)
    try:
        while left:
            found = await heard.get()
            if found is None:
                left -= 1
            elif isinstance(found, Exception):
                raise found
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _counted(usage: Usage, asked: _Asked, ended: Ended) -> Usage:
    meta = {**ended.meta, "completion_tokens": 0} if asked.none else ended.meta
    return usage.with_answer(meta, first=ended.sample == 0)


def _whole(asked: _Asked, body: Body, prompt: Prompt, ended: Ended) -> dict[str, Any]:
    """A whole choice."""
    text = (prompt.text if body.echo else "") + ("" if asked.none else ended.text)
    logprobs = None
    if body.logprobs is not None:
        meta = ended.meta
        scored = tokens(asked.served, meta["output_token_logprobs"], meta["output_top_logprobs"])
        before = _scored(asked.served, prompt, ended) if body.echo else []
        logprobs = text_logprobs([*before, *([] if asked.none else scored)], 0)
    reason = "length" if ended.meta["finish_reason"] == "length" else "stop"
    return {"text": text, "logprobs": logprobs, "finish_reason": reason}


def _scored(served: Served, prompt: Prompt, ended: Ended) -> list[Token]:
    """The prompt's tokens. Of the first nothing is known, since nothing stands before it."""
    meta, first = ended.meta, prompt.ids[0]
    triples = [(None, first, served.texts.text_of([first])), *meta["input_token_logprobs"]]
    return tokens(served, triples, [[], *meta["input_top_logprobs"]])


# --- streaming


async def _chunks(call: Call[Body]) -> AsyncGenerator[bytes, None]:
    body = call.body
    async with call.service.model(body.model) as served:
        asked = _asked(served, body)
        usage = Usage()
        nothing = {"usage": None} if body.usage_asked else {}
        told: dict[int, _Told] = {}
        # a prompt's scores are known only at the end, and stand before everything else
        pieces = not (asked.none or (body.echo and body.logprobs is not None))
        answers = _every(call, asked, stream=pieces)
        async with aclosing(answers):
            async for number, one in answers:
                index = number * asked.params.n + one.sample
                choice = told.get(index) or told.setdefault(index, _Told())
                if not pieces:
                    assert isinstance(one, Ended)
                    shape = _whole(asked, body, asked.prompts[number], one)
                else:
                    shape = choice.shape(asked, body, asked.prompts[number], one)
                yield event({**asked.head, "choices": [shape | {"index": index}], **nothing})
                if isinstance(one, Ended):
                    usage = _counted(usage, asked, one)
        if body.usage_asked:
            yield event({**asked.head, "choices": [], "usage": usage.shape()})
        yield DONE


class _Told:
    """One choice under way."""

    def __init__(self) -> None:
        self._characters = 0
        self._begun = False

    def shape(self, asked: _Asked, body: Body, prompt: Prompt, one: Piece | Ended) -> dict[str, Any]:
        """What is new of it, as a chunk's choice."""
        text = prompt.text if body.echo and not self._begun else ""
        self._begun = True
        if isinstance(one, Ended):
            reason = "length" if one.meta["finish_reason"] == "length" else "stop"
            return {"text": text, "logprobs": None, "finish_reason": reason}
        logprobs = None
        if body.logprobs is not None:
            logprobs = text_logprobs(tokens(asked.served, one.logprobs, one.tops), self._characters)
        text += one.text
        self._characters += len(text)
        return {"text": text, "logprobs": logprobs, "finish_reason": None}
