"""Who asked what: every HTTP request with its id, from its arrival to its end, and what became of its answers.

Knows: ASGI, request ids, what `meta` says of an answer. Must not know: dialects, models, how any of it is shown.
"""

from __future__ import annotations

import re
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEPT = 100  # requests that have ended
ANSWERS = 8  # of one request that are kept; a scoring may have a thousand
ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TOLD = (  # of an answer's meta
    "finish_reason",
    "prompt_tokens",
    "cached_tokens",
    "computed_tokens",
    "completion_tokens",
    "diverged_at",
    "diverged_text",
    "preempted",
    "began_s",
    "queued_s",
    "first_s",
    "total_s",
    "forwards",
    "drafts",
    "choice",
)


class Asked(msgspec.Struct, eq=False):
    """One request. began: seconds since 1970; first, seconds: after that, to the first byte and to the end.

    route: the path as it is declared. tokens: streamed so far. answers: what `meta` says of each that has ended.
    The counts are of all answers, the prompt that several samples share counted once; the first few answers are kept.
    trace: the W3C traceparent that came with it. ended: the how many-th it was to end. A program's call over ZeroMQ
    stands here too, with the method PROGRAM.
    """

    number: int
    id: str
    method: str
    path: str
    began: float
    route: str = ""
    model: str = ""
    status: int = 0
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    answers: list[dict[str, Any]] = []
    answered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    completion_tokens: int = 0
    trace: str = ""
    ended: int = 0

    def take(self, meta: dict[str, Any], sample: int = 0) -> None:
        """One of its answers is whole. sample: its number among those of the same prompt."""
        self.answered += 1
        self.computed_tokens += meta["computed_tokens"]
        self.completion_tokens += meta.get("completion_tokens", 0)
        if not sample:
            self.prompt_tokens += meta["prompt_tokens"]
            self.cached_tokens += meta["cached_tokens"]
        if len(self.answers) < ANSWERS:
            self.answers.append({name: meta[name] for name in _TOLD if name in meta})


_CURRENT: ContextVar[Asked | None] = ContextVar("asked", default=None)


class Journal:
    """The requests under way by number, and the last that have ended with answers, or without the one they wanted.

    sinks: who hears of every request that has ended (logs, traces, metrics).
    """

    def __init__(self) -> None:
        self.under_way: dict[int, Asked] = {}
        self.ended: deque[Asked] = deque(maxlen=KEPT)
        self.sinks: list[Callable[[Asked], None]] = []
        self._next = self._ended = 0

    # --- what is known of the request that this task serves

    def takes(self, route: str) -> None:
        """The route that serves it."""
        if (asked := _CURRENT.get()) is not None:
            asked.route = route

    def wants(self, model: str) -> None:
        """The model that it asks for."""
        if (asked := _CURRENT.get()) is not None:
            asked.model = model

    def grew(self, tokens: int) -> None:
        """Tokens that it has been given."""
        if (asked := _CURRENT.get()) is not None:
            asked.tokens += tokens

    def answered(self, meta: dict[str, Any], sample: int) -> None:
        """One of its answers is whole."""
        if (asked := _CURRENT.get()) is not None:
            asked.take(meta, sample)

    # --- beginnings and ends

    def begin(self, method: str, path: str, given: str, trace: str) -> Asked:
        """A request has arrived. given: the id it came with, which is kept where it is a decent one."""
        number = self._number()
        name = given if ID.fullmatch(given) else uuid.uuid4().hex
        asked = self.under_way[number] = Asked(number, name, method, path, time.time(), trace=trace)
        return asked

    def end(self, asked: Asked) -> None:
        """It has ended; its status and seconds stand in it."""
        del self.under_way[asked.number]
        if asked.answers or (asked.model and asked.status >= 400):
            self._keep(asked)
        for hear in self.sinks:
            hear(asked)

    def program(self, model: str, meta: dict[str, Any]) -> None:
        """An answer in a program over ZeroMQ."""
        seconds = meta.get("total_s", 0.0)
        first = meta.get("first_s", 0.0)
        number = self._number()
        row = Asked(number, f"program-{number}", "PROGRAM", "", time.time() - seconds, model=model, status=200)
        row.first, row.seconds = first, seconds
        row.take(meta)
        self._keep(row)

    def _keep(self, asked: Asked) -> None:
        self._ended += 1
        asked.ended = self._ended
        self.ended.append(asked)

    def _number(self) -> int:
        self._next += 1
        return self._next


class Journalled:
    """ASGI middleware: every request is in the journal while it lasts, and its response bears its id."""

    def __init__(self, app: ASGIApp, journal: Journal) -> None:
        self._app = app
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given, trace = headers.get("x-request-id", ""), headers.get("traceparent", "")
        asked = self._journal.begin(scope["method"], scope["path"], given, trace)
        clock = time.perf_counter()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                asked.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = asked.id
            elif not asked.first and message.get("body"):
                asked.first = time.perf_counter() - clock
            await send(message)

        before = _CURRENT.set(asked)
        try:
            await self._app(scope, receive, sending)
        except Exception:
            asked.status = 500
            raise
        finally:
            _CURRENT.reset(before)
            asked.seconds = time.perf_counter() - clock
            asked.status = asked.status or 499  # the client left before it was told anything
            self._journal.end(asked)
