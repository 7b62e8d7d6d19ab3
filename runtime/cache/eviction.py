"""Which unlocked leaf goes first when pages run out.

Knows: leaves that can be put in an order. Must not know: pages, leases, how a tree is built.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Leaf(Protocol):
    """What an order may look at."""

    access: int  # clock value of the last lease, seal or release that went through


Order = Callable[[Leaf], float]


def lru(leaf: Leaf) -> float:
    """Least recently used first."""
    return leaf.access


ORDERS: dict[str, Order] = {"lru": lru}

L = TypeVar("L", bound=Leaf)


class Evictor(Generic[L]):
    """The set of evictable leaves as a binary heap with lazy deletion: every verb is O(log n) amortised.

    A leaf's order is taken when it is added; whoever changes what the order looks at discards and adds again.
    """

    def __init__(self, order: Order = lru) -> None:
        self._order = order
        self._heap: list[tuple[float, int, L]] = []
        self._tickets: dict[L, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, leaf: L) -> bool:
        return leaf in self._tickets

    def add(self, leaf: L) -> None:
        self._next += 1
        self._tickets[leaf] = self._next
        heapq.heappush(self._heap, (self._order(leaf), self._next, leaf))
        if len(self._heap) > 2 * len(self._tickets) + 64:
            self._heap = [entry for entry in self._heap if self._tickets.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def discard(self, leaf: L) -> None:
        self._tickets.pop(leaf, None)

    def pop(self) -> L:
        """Remove and return the first leaf. Raises IndexError when there is none."""
        while True:
            _, ticket, leaf = heapq.heappop(self._heap)
            if self._tickets.get(leaf) == ticket:
                del self._tickets[leaf]
                return leaf
