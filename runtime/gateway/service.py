"""What every HTTP dialect asks of the gateway: models by name, answers to prompts, and problems with a status.

Knows: models, in-process programs, limits. Must not know: any dialect's words, HTTP's bytes.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

from branchwork.lang.constraint import Constraint, ConstraintError, check
from branchwork.lang.params import SamplingParams
from branchwork.runtime.gateway.journal import Journal
from branchwork.runtime.gateway.local import CONNECTION, Ended, Piece, ProgramFailed
from branchwork.runtime.gateway.models import Models, Unavailable, Unknown, Wanted
from branchwork.runtime.gateway.served import Prompt, Say, Served
from branchwork.runtime.programs.embeds import EmbedFailed
from branchwork.runtime.wire import Usage

RETRY_AFTER = 1.0  # seconds, where nothing better is known
_STATUS = {  # by the codes of failed programs; others are the client's fault
    "queue_full": 503,
    "runtime_lost": 503,
    "engine_error": 500,
    "gateway_error": 500,
    "no_token": 500,
    "no_vector": 500,
    "out_of_memory": 503,
}


class Problem(Exception):
    """A request that cannot be served. status: HTTP's. code: short and stable. param: the field that is wrong.

    retry_after: seconds after which it may go, for 429 and 503.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after = RETRY_AFTER if retry_after is None and status in (429, 503) else retry_after


class Limits(NamedTuple):
    """body: bytes of a request. requests: under way at once. rate: requests a minute of one key, 0 for any number."""

    body: int = 16 * 2**20
    requests: int = 4096
    rate: int = 0


class Service:
    """One for the whole gateway. observers hear of every answer, also of those of programs over ZeroMQ; journal: who
    asked what."""

    def __init__(self, models: Models, limits: Limits = Limits()) -> None:  # noqa: B008 (frozen)
        self.models = models
        self.limits = limits
        self.under_way = 0
        self.draining = False
        self.observers: list[Callable[[Served, Ended], None]] = []
        self.journal = Journal()
        self._came: dict[str, deque[float]] = {}
        models.on_loaded.append(self._watch)

    @contextmanager
    def admitted(self, key: str = "") -> Iterator[None]:
        """A request is under way. key: whose, for the rate limit. Raises Problem 429 and 503."""
        if self.draining:
            raise Problem(503, "shutting_down", "this server is shutting down; ask another one, or again later")
        if self.under_way >= self.limits.requests:
            raise Problem(503, "overloaded", f"{self.under_way} requests are under way, as many as may be; try again")
        self._pace(key)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    @asynccontextmanager
    async def model(self, name: str, keep_alive: float | None = None, say: Say | None = None) -> AsyncIterator[Served]:
        """A model by name, loaded if need be, and kept while it is used. Raises Problem 404 and 503."""
        self.journal.wants(name)
        with _named(name):
            async with self.models.use(name, keep_alive, say) as served:
                yield served

    def wanted(self, name: str) -> Wanted:
        """What a name stands for. Raises Problem 404 and 503."""
        with _named(name):
            return self.models.wanted(name)

    async def answers(
        self,
        served: Served,
        prompt: Prompt,
        params: SamplingParams,
        constraint: Constraint | None = None,
        *,
        stream: bool = False,
    ) -> AsyncGenerator[Piece | Ended, None]:
        """params.n answers, as Local.answers gives them. Raises Problem, before the first of them where possible."""
        if constraint is not None:
            try:
                check(constraint)
            except ConstraintError as error:
                raise Problem(400, error.code, str(error)) from error
        if not prompt.ids:
            raise Problem(400, "empty_prompt", "the prompt is empty; give some text, or a message with content")
        answers = served.local.answers(prompt.ids, prompt.text, params, constraint, stream=stream)
        with _programs():
            async with aclosing(answers):
                async for event in answers:
                    if isinstance(event, Ended):
                        self._ended(served, event)
                    else:
                        self.journal.grew(len(event.ids))
                    yield event

    async def choice(self, served: Served, prompt: Prompt, choices: Sequence[str], method: str) -> Ended:
        """One of the choices, as `select` chooses (lang.choices); its meta holds every choice's scores."""
        with _programs():
            chosen = await served.local.choice(prompt.ids, prompt.text, choices, method)
        self._ended(served, chosen)
        return chosen

    async def embed(
        self, served: Served, prompts: Sequence[Sequence[int]], param: str | None = None
    ) -> list[list[float]]:
        """A vector for each prompt. param: the field that prompts came in. Raises Problem."""
        empty = next((index for index, ids in enumerate(prompts) if not ids), None)
        if empty is not None:
            raise Problem(400, "empty_prompt", f"text {empty} is empty; give some text", param)
        try:
            found = await served.embedded(prompts)
        except EmbedFailed as error:
            status = _STATUS.get(error.code, 400)
            which = f"text {error.index}: " if len(prompts) > 1 and status == 400 else ""
            raise Problem(status, error.code, f"{which}{error}", param if status == 400 else None) from error
        for one in found:
            self._ended(served, Ended(0, "", _told(one.usage)))
        return [array("f", one.vector).tolist() for one in found]

    async def drain(self, grace: float) -> bool:
        """Refuse what is new and wait for what is under way, at most `grace` seconds; whether all of it has ended."""
        self.draining = True
        late = time.monotonic() + grace
        while self.under_way and time.monotonic() < late:
            await asyncio.sleep(0.05)
        return not self.under_way

    def _ended(self, served: Served, ended: Ended) -> None:
        self.journal.answered(ended.meta, ended.sample)
        for observe in self.observers:
            observe(served, ended)

    def _watch(self, served: Served) -> None:
        """Programs over ZeroMQ are heard of at their host."""

        def heard(connection: bytes, meta: dict[str, Any]) -> None:
            if connection == CONNECTION:
                return  # `answers` and `choice` know more
            self.journal.program(served.name, meta)
            for observe in self.observers:
                observe(served, Ended(0, "", meta))

        served.host.observe = heard

    def _pace(self, key: str) -> None:
        if not self.limits.rate:
            return
        now, came = time.monotonic(), self._came.setdefault(key, deque())
        while came and came[0] <= now - 60:
            came.popleft()
        if len(came) >= self.limits.rate:
            wait = came[0] + 60 - now
            text = f"{len(came)} requests in the last minute, {self.limits.rate} may be made; try again in {wait:.0f} s"
            raise Problem(429, "rate_limited", text, retry_after=wait)
        came.append(now)


@contextmanager
def _named(model: str) -> Iterator[None]:
    """What is wrong with a model's name, or with loading it, as a Problem."""
    try:
        yield
    except Unknown as error:
        raise Problem(404, "model_not_found", str(error), "model") from error
    except Unavailable as error:
        raise Problem(503, error.code, f"model {model!r} cannot be loaded: {error}", "model") from error


@contextmanager
def _programs() -> Iterator[None]:
    """A program's failure as a Problem."""
    try:
        yield
    except ProgramFailed as error:
        raise Problem(_STATUS.get(error.code, 400), error.code, str(error)) from error


def _told(usage: Usage) -> dict[str, Any]:
    """What became of a text that was made a vector, as an answer's meta says it."""
    return {
        "finish_reason": "embedding",
        "prompt_tokens": usage.prompt,
        "cached_tokens": usage.reused,
        "computed_tokens": usage.computed,
        "preempted": usage.preempted,
        "queued_s": usage.queued,
        "first_s": usage.first,
        "total_s": usage.total,
    }
