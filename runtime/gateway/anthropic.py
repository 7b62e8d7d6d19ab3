"""Anthropic's HTTP API: /v1/messages and its count of tokens, and its errors.

Knows: the API's answers as a whole, statuses. Must not know: how requests are read (anthropic_request) and blocks
written (anthropic_blocks).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.routing import Route

from branchwork.runtime.gateway.anthropic_blocks import Blocks
from branchwork.runtime.gateway.anthropic_request import Counted, Messages, knobs, read
from branchwork.runtime.gateway.local import Ended
from branchwork.runtime.gateway.replies import params_for, parts, room
from branchwork.runtime.gateway.served import Served
from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.gateway.turns import Turn, next_turn, rendered
from branchwork.runtime.gateway.web import EVENTS, Call, Dialect, Stream, event, route

PREFIXES = ("/v1/messages",)
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}
_OVERLOADED = ("overloaded", "queue_full", "out_of_memory", "shutting_down")


def _shape(problem: Problem) -> tuple[Any, dict[str, str]]:
    number = f"req_{secrets.token_hex(12)}"
    return {**_error(problem), "request_id": number}, {"request-id": number}


def _error(problem: Problem) -> dict[str, Any]:
    kind = "overloaded_error" if problem.code in _OVERLOADED else _TYPES.get(problem.status, "api_error")
    where = f"{problem.param}: " if problem.param and problem.param not in problem.message else ""
    return {"type": "error", "error": {"type": kind, "message": where + problem.message}}


DIALECT = Dialect("anthropic", _shape)


def routes(service: Service) -> list[Route]:
    return [
        route(service, DIALECT, "POST", "/v1/messages", Messages, _messages),
        route(service, DIALECT, "POST", "/v1/messages/count_tokens", Counted, _count),
    ]


async def _count(call: Call[Counted]) -> Any:
    async with call.service.model(call.body.model) as served:
        return {"input_tokens": len(rendered(served, read(served, call.body)).ids)}


async def _messages(call: Call[Messages]) -> Any:
    if call.body.stream:
        return Stream(EVENTS, _streamed(call), lambda problem: event(_error(problem), "error"))
    blocks = Blocks()
    async with call.service.model(call.body.model) as served:
        turn = next_turn(served, read(served, call.body))
        params = params_for(served, turn.prompt, {}, knobs(call.body))
        async with aclosing(parts(call.service, served, turn, params, stream=False)) as found:
            async for part in found:
                blocks.read(part.events)
                blocks.finish()
                if part.ended is not None:
                    reason, matched = _ending(served, turn, call.body, part.ended, blocks)
                    usage = _usage(part.ended.meta)
    return {
        **_message(call.body.model),
        "content": blocks.content,
        "stop_reason": reason,
        "stop_sequence": matched,
        "usage": usage,
    }


async def _streamed(call: Call[Messages]) -> AsyncGenerator[bytes, None]:
    """The events of a stream; the first of them once the answer has begun, so that what cannot be is a status."""
    blocks, begun = Blocks(), False
    async with call.service.model(call.body.model) as served:
        turn = next_turn(served, read(served, call.body))
        params = params_for(served, turn.prompt, {}, knobs(call.body))
        async with aclosing(parts(call.service, served, turn, params, stream=True)) as found:
            async for part in found:
                if not begun:
                    begun = True
                    usage = {"input_tokens": len(turn.prompt.ids), "output_tokens": 0}
                    message = {**_message(call.body.model), "content": [], "usage": usage}
                    yield event({"type": "message_start", "message": message}, "message_start")
                    yield event({"type": "ping"}, "ping")
                events = blocks.read(part.events)
                if part.ended is not None:
                    events += blocks.finish()
                for one in events:
                    yield event(one, one["type"])
                if part.ended is not None:
                    reason, matched = _ending(served, turn, call.body, part.ended, blocks)
                    delta = {"stop_reason": reason, "stop_sequence": matched}
                    told = {"type": "message_delta", "delta": delta, "usage": _usage(part.ended.meta)}
                    yield event(told, "message_delta")
                    yield event({"type": "message_stop"}, "message_stop")


def _message(model: str) -> dict[str, Any]:
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _ending(served: Served, turn: Turn, body: Messages, ended: Ended, blocks: Blocks) -> tuple[str, str | None]:
    """Why the answer ended, and the stop sequence that did it."""
    matched = ended.meta["matched"]
    if ended.meta["finish_reason"] == "length":
        full = body.max_tokens > room(served, turn.prompt)
        return "model_context_window_exceeded" if full else "max_tokens", None
    if matched in body.stop_sequences:
        return "stop_sequence", matched
    return "tool_use" if blocks.called else "end_turn", None


def _usage(meta: Mapping[str, Any]) -> dict[str, int]:
    cached = meta["cached_tokens"]
    return {
        "input_tokens": meta["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": meta["completion_tokens"],
    }
