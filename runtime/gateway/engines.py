"""What the engines of all loaded models say of themselves, asked at once and within a time.

Knows: loaded models, their hosts' questions. Must not know: HTTP, who wants to know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from branchwork.runtime.gateway.models import Row
from branchwork.runtime.gateway.service import Service

T = TypeVar("T")
Facts = dict[str, float | int | str]


class Told(NamedTuple):
    """A loaded model and what its engine says; None where it did not answer in time."""

    row: Row
    facts: Facts | None


async def stats(service: Service, seconds: float) -> list[Told]:
    """Of every loaded model, the latest used first."""
    rows = service.models.loaded()
    found = await _all(rows, lambda row: row.served.host.ask("stats"), seconds)
    return [Told(row, facts) for row, facts in zip(rows, found, strict=True)]


async def flush(service: Service, seconds: float) -> list[Told]:
    """Empty every loaded model's cache of what no request holds; each says how many pages that `freed`."""
    rows = service.models.loaded()
    found = await _all(rows, lambda row: row.served.host.ask("flush_cache"), seconds)
    return [Told(row, facts) for row, facts in zip(rows, found, strict=True)]


async def within(asked: Awaitable[T], seconds: float) -> T | None:
    """An engine's answer; None when it takes longer."""
    try:
        return await asyncio.wait_for(asked, seconds)
    except (TimeoutError, asyncio.TimeoutError):
        return None


async def _all(rows: Sequence[Row], ask: Callable[[Row], Awaitable[T]], seconds: float) -> list[T | None]:
    return list(await asyncio.gather(*[within(ask(row), seconds) for row in rows]))
