"""In which order waiting requests are admitted: pure functions, and the queue that applies one.

Knows: requests' priority, age and cache hits. Must not know: budgets, pages, rows.
"""

from __future__ import annotations

from collections.abc import Callable

from branchwork.runtime.cache.prefix_cache import PrefixCache
from branchwork.runtime.scheduler.request import Request

Key = tuple[int, int, int]
Policy = Callable[[Request, int], Key]

AGEING = 32  # tokens of cache hit that one step of waiting is worth
FANOUT = 64  # tokens of cache hit that one branch is worth which waits for the answer to begin
MOST = 32  # branches that count
REFRESHED = 64  # waiting requests whose hit is looked up again per step


def lpm(request: Request, step: int) -> Key:
    """Longest prefix match first (SGLang, 2024, section 3), plus AGEING per step waited and FANOUT per waiting branch.

    Nothing starves: a request that waits is overtaken only by those that came at most hit / AGEING steps later (and by
    those that open forks, their branches counted up to MOST).
    """
    fanout = 0 if request.answer is None else min(request.answer.submit.fanout, MOST)
    return -request.priority, -request.hit - FANOUT * fanout - AGEING * (step - request.entered), request.key


def fcfs(request: Request, step: int) -> Key:
    """First come, first served."""
    return -request.priority, 0, request.key


POLICIES: dict[str, Policy] = {"lpm": lpm, "fcfs": fcfs}


class Queue:
    """The waiting requests. Hits are looked up on entry, then for REFRESHED of them per step in turn."""

    def __init__(self, cache: PrefixCache, policy: str) -> None:
        self._cache = cache
        self._policy = POLICIES[policy]
        self._requests: dict[int, Request] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: Request) -> bool:
        return request.key in self._requests

    def add(self, request: Request) -> None:
        self._requests[request.key] = request
        self._look(request)

    def remove(self, request: Request) -> None:
        del self._requests[request.key]

    def ordered(self, step: int) -> list[Request]:
        """All waiting requests, first to be admitted first."""
        waiting = list(self._requests.values())
        first = self._turn % len(waiting) if waiting else 0
        for request in waiting[first : first + REFRESHED]:
            self._look(request)
        self._turn = first + REFRESHED if first + REFRESHED < len(waiting) else 0
        policy = self._policy
        waiting.sort(key=lambda request: policy(request, step))
        return waiting

    def _look(self, request: Request) -> None:
        request.hit = self._cache.peek(request.known, request.reusable)
