"""What the engines of all loaded models say of themselves, asked at once, each one time, and within a time.

Knows: loaded models, their hosts' questions. Must not know: HTTP, who wants to know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
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
    """Of every loaded model, the latest used first; names that share an engine tell the same."""
    return await _told(service, "stats", seconds)


async def flush(service: Service, seconds: float) -> list[Told]:
    """Empty every loaded model's cache of what no request holds; each says how many pages that `freed`."""
    return await _told(service, "flush_cache", seconds)


def apart(told: Sequence[Told]) -> list[Told]:
    """One of each engine: under the first of its names."""
    return list({one.row.served.host: one for one in reversed(told)}.values())[::-1]


async def within(asked: Awaitable[T], seconds: float) -> T | None:
    """An engine's answer; None when it takes longer."""
    try:
        return await asyncio.wait_for(asked, seconds)
    except (TimeoutError, asyncio.TimeoutError):
        return None


async def _told(service: Service, what: str, seconds: float) -> list[Told]:
    rows = service.models.loaded()
    hosts = list(dict.fromkeys(row.served.host for row in rows))
    found = await asyncio.gather(*[within(host.ask(what), seconds) for host in hosts])
    facts = dict(zip(hosts, found, strict=True))
    return [Told(row, facts[row.served.host]) for row in rows]
