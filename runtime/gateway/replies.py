"""Answers to a turn, told apart as they come, and the sampling parameters that a prompt leaves room for.

Knows: turns and their readers, Service, the context. Must not know: any dialect's fields, HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from branchwork.lang.asked import schema_of
from branchwork.lang.constraint import ConstraintError, JsonSchema
from branchwork.lang.params import SamplingParams, merge
from branchwork.lang.turnparser import Event
from branchwork.runtime.gateway.local import Ended, Piece
from branchwork.runtime.gateway.served import Prompt, Served
from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.gateway.turns import Turn


class Part(NamedTuple):
    """More of answer number `sample`. piece: what it was read from, None in an answer that is not streamed.

    ended: with the last part.
    """

    sample: int
    events: list[Event]
    piece: Piece | None
    ended: Ended | None


async def parts(
    service: Service, served: Served, turn: Turn, params: SamplingParams, *, stream: bool
) -> AsyncGenerator[Part, None]:
    """params.n answers told apart, in pieces as they come or each as a whole. Raises Problem as Service.answers."""
    readers = [turn.reader() for _ in range(params.n)]
    answers = service.answers(served, turn.prompt, params, turn.constraint, stream=stream)
    async with aclosing(answers) as events:
        async for event in events:
            reader = readers[event.sample]
            if isinstance(event, Piece):
                yield Part(event.sample, reader.feed(event.text), event, None)
            else:
                whole = [] if stream else reader.feed(event.text)
                yield Part(event.sample, [*whole, *reader.finish()], None, event)


def params_for(served: Served, prompt: Prompt, *layers: Mapping[str, Any], window: int | None = None) -> SamplingParams:
    """Sampling parameters from layers of lang.params' knobs, later ones winning: the first is a dialect's defaults,
    after it come the library's own. max_tokens is cut to the room after the prompt.

    window: see room. Raises Problem 400, also for a prompt that leaves no room.
    """
    left = room(served, prompt, window)
    if left < 1:
        text = f"the prompt has {len(prompt.ids)} tokens, the context holds {left + len(prompt.ids)}; shorten it"
        raise Problem(400, "context_length", text)
    first, *rest = layers or ({},)
    try:
        params = merge({"max_tokens": left}, first, served.info.knobs, *rest)
    except (TypeError, ValueError) as error:
        raise Problem(400, "invalid_parameter", str(error)) from error
    return msgspec.structs.replace(params, max_tokens=min(params.max_tokens, left))


def schema(value: Mapping[str, Any] | bool) -> JsonSchema:
    """JSON that a JSON Schema accepts, with white space as models like it. Raises Problem 400."""
    try:
        return msgspec.structs.replace(schema_of(value), whitespace="flexible")
    except ConstraintError as error:
        raise Problem(400, error.code, str(error)) from error


def room(served: Served, prompt: Prompt, window: int | None = None) -> int:
    """Tokens that fit after a prompt; 0 or less for none. window: tokens of both together, if fewer than may be."""
    info = served.info
    kept = info.pages * info.page_size or info.context
    return min(info.context, kept, window or info.context) - len(prompt.ids)
