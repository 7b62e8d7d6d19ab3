"""/score and /rerank: how likely a model finds given texts.

Knows: Service, log-probabilities. Must not know: other dialects, how scores are computed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from branchwork.lang.choices import exact
from branchwork.lang.params import SamplingParams
from branchwork.runtime.gateway.generation import Id, Message, known, named, prompt
from branchwork.runtime.gateway.local import Ended
from branchwork.runtime.gateway.served import Prompt, Served
from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.gateway.web import Call

MANY = 1024  # continuations, documents
QUESTION = (
    "Query: {query}\n\nDocument: {document}\n\n"
    "Is the document relevant to the query? Answer with one word, {yes} or {no}."
)
_HOLES = re.compile(r"\{(query|document|yes|no)\}")


class Score(msgspec.Struct, kw_only=True):
    """Continuations of one prompt (text or ids); each is a text, or ids."""

    continuations: Annotated[list[str | list[Id]], Meta(min_length=1, max_length=MANY)]
    model: str = ""
    prompt: str | None = None
    ids: list[Id] | None = None
    special: bool = True


class Document(msgspec.Struct):
    """A document as other rerankers take it."""

    text: str


class Rerank(msgspec.Struct, kw_only=True):
    """documents by their relevance to the query. prompt: the question put to the model, with {query} and {document} in
    it and, if wanted, {yes} and {no}. choices: the words for yes and no. raw: the prompt is no user's turn, but all."""

    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MANY)]
    model: str = ""
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool = False
    prompt: str = QUESTION
    choices: tuple[str, str] = ("yes", "no")
    raw: bool = False


async def score(call: Call[Score]) -> Any:
    """The log-probability of each continuation after the prompt, token by token.

    A text is read together with the prompt: where its beginning merges with the prompt's end into one token, that
    token is scored too.
    """
    body = call.body
    async with call.service.model(named(call.service, body.model)) as served:
        before = prompt(served, text=body.prompt, ids=body.ids, messages=None, special=body.special)
        texts = [_whole(served, body, before, one) for one in body.continuations]
        found = await asyncio.gather(*[_scored(call.service, served, whole, start) for whole, start in texts])
        return {"model": served.name, "prompt_tokens": len(before.ids), "scores": found}


def _whole(served: Served, body: Score, before: Prompt, one: str | list[int]) -> tuple[Prompt, int]:
    """Prompt and continuation, and the index of the first token to score. Raises Problem 400."""
    if isinstance(one, list):
        whole = Prompt([*before.ids, *known(served, one)], before.text + served.texts.text_of(one))
    elif body.prompt is None:
        own = served.texts.encode([_Plain(one, body.special)])
        whole = Prompt([*before.ids, *own], before.text + one)
    else:
        whole = served.encode(body.prompt + one, body.special)
    start = next((n for n, (a, b) in enumerate(zip(before.ids, whole.ids)) if a != b), len(before.ids))
    if not one or start >= len(whole.ids):
        raise Problem(400, "invalid_request", "a continuation is empty; give some text, or ids", "continuations")
    if not start:
        text = "the first token of all has no probability: give a prompt, which every continuation comes after"
        raise Problem(400, "empty_prompt", text, "prompt")
    return whole, start


class _Plain(msgspec.Struct, frozen=True):
    """A piece of text for the tokenizer."""

    text: str
    special: bool
    ids: bytes = b""


async def _scored(service: Service, served: Served, whole: Prompt, start: int) -> dict[str, Any]:
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, logprob_start=start)
    tokens: Sequence[tuple[float, int, str]] = ()
    async with aclosing(service.answers(served, whole, params)) as events:
        async for one in events:
            if isinstance(one, Ended):
                tokens = one.meta["input_token_logprobs"]
    return {
        "logprob": sum(value for value, _, _ in tokens),
        "tokens": [{"id": token, "text": text, "logprob": value} for value, token, text in tokens],
    }


async def rerank(call: Call[Rerank]) -> Any:
    """Documents in the order of the probability that the model answers yes when it is asked about their relevance.

    This is a language model's own judgement, not a trained cross-encoder's: the answer holds the prompt, and a request
    may bring its own. relevance_score: P(yes) out of yes and no, 0 to 1.
    """
    body = call.body
    missing = [hole for hole in ("{query}", "{document}") if hole not in body.prompt]
    if missing:
        raise Problem(400, "invalid_request", f"the prompt lacks {' and '.join(missing)}", "prompt")
    yes, no = body.choices
    if not yes or not no or yes == no:
        raise Problem(400, "invalid_request", "choices are two words that differ: for yes, and for no", "choices")
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    async with call.service.model(named(call.service, body.model)) as served:
        asked = [_question(served, body, text) for text in texts]
        told = await asyncio.gather(*[call.service.choice(served, one, (yes, no), exact) for one in asked])
    scores = [one.meta["probabilities"][0] for one in told]
    order = sorted(range(len(texts)), key=lambda index: (-scores[index], index))[: body.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    tokens = {name: sum(one.meta[name] for one in told) for name in ("prompt_tokens", "cached_tokens")}
    return {"model": served.name, "prompt": body.prompt, "choices": body.choices, "results": results, "usage": tokens}


def _question(served: Served, body: Rerank, document: str) -> Prompt:
    yes, no = body.choices
    filling = {"query": body.query, "document": document, "yes": yes, "no": no}
    text = _HOLES.sub(lambda hole: filling[hole[1]], body.prompt)
    if body.raw:
        return served.encode(text, special=False)
    return prompt(served, text=None, ids=None, messages=[Message("user", text)])
