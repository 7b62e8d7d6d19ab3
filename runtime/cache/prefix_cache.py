"""The only owner of page lifetimes: lease, extend, seal, release over one radix tree and one page pool.

Knows: ids, page numbers, leases. Must not know: requests, steps, tensors.

    tokens of a lease   0 .......... matched .......... sealed .......... covered
                        | in the tree  | put (or found) in  | own pages: only |
                        | when leased  | the tree by seal   | this lease's    |
    lease.pages         [ tree's page numbers ........... ][ own page numbers ]
                          0 ...................... sealed/P ........ covered/P

    `sealed` is a multiple of P and is where lease.node ends; every node from there to the root is locked by the lease.
    A page is at every moment exactly one of: free, in the tree, own of one lease.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from branchwork.runtime.cache.pages import PageAllocator
from branchwork.runtime.cache.radix import Node, RadixTree, Shown

RUN = 16  # tokens

P = ParamSpec("P")
T = TypeVar("T")


def _timed(
    verb: Callable[Concatenate[PrefixCache, P], T],
) -> Callable[Concatenate[PrefixCache, P], T]:
    """Count what a verb that walks the tree takes."""

    @wraps(verb)
    def counted(self: PrefixCache, /, *args: P.args, **kwargs: P.kwargs) -> T:
        begun = time.perf_counter()
        try:
            return verb(self, *args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - begun

    return counted


@dataclass(slots=True, eq=False)
class Lease:
    """A request's hold on its pages. `pages` is live: seal may replace entries by equal ones, extend appends,
    shrink cuts, adopt reorders own ones.

    matched: tokens found in the tree at the start. sealed: tokens now in the tree. Units: tokens.
    """

    node: Node
    pages: list[int]
    matched: int
    sealed: int


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Pages: pages = free + cached + own. available = free + evictable."""

    pages: int
    free: int
    cached: int
    own: int
    available: int
    evicted: int
    leases: int


class PrefixCache:
    """See the module's picture. Ids are array('i'), so that slices pack without a copy per token.

    seconds: what walking, growing and evicting from the tree have taken so far."""

    def __init__(self, pages: int, page_size: int, eviction: str = "lru") -> None:
        self.page_size = page_size
        self.seconds = 0.0
        self._pool = PageAllocator(pages)
        self._tree = RadixTree(page_size, eviction)
        self._leases: set[Lease] = set()
        self._evicted = 0

    @property
    def pages(self) -> int:
        return self._pool.pages

    @property
    def available(self) -> int:
        """Pages that extend could hand out now: free ones and those in unlocked nodes."""
        return self._pool.free_count + self._tree.unlocked_pages

    # --- the verbs

    @_timed
    def lease(self, ids: array[int], limit: int) -> Lease:
        """Lock the longest run of whole pages in the tree that begins ids[:limit]."""
        node, pages = self._tree.walk(self._tree.root, ids[:limit].tobytes())
        self._tree.lock(node)
        matched = len(pages) * self.page_size
        lease = Lease(node, pages, matched, matched)
        self._leases.add(lease)
        return lease

    def extend(self, lease: Lease, upto: int) -> bool:
        """Allocate own pages until positions [0, upto) are covered, evicting if need be.

        While half of the pool is free, small pages are taken in runs of RUN tokens: rows that grow by one token a step
        then stay neighbours in memory, which attention reads up to twice as fast.
        Returns False, and changes nothing, when not even evicting everything unlocked would do.
        """
        size = self.page_size
        missing = (upto + size - 1) // size - len(lease.pages)
        if missing <= 0:
            return True
        missing = max(missing, self._roomy(upto) - len(lease.pages))
        short = missing - self._pool.free_count
        if short > 0:
            if short > self._tree.unlocked_pages:
                return False
            self._evict(short)
        lease.pages += self._pool.alloc(missing)
        return True

    @_timed
    def _evict(self, pages: int) -> None:
        self._pool.free(self._tree.evict(pages))
        self._evicted += pages

    def shrink(self, lease: Lease, upto: int) -> None:
        """Free the own pages that `extend(lease, upto)` would not have taken: what they hold is void."""
        size = self.page_size
        keep = max((upto + size - 1) // size, lease.sealed // size, self._roomy(upto))
        if keep < len(lease.pages):
            self._pool.free(reversed(lease.pages[keep:]))  # the next extend gets the same ones in the same order
            del lease.pages[keep:]

    def adopt(self, lease: Lease, source: int, count: int, at: int) -> None:
        """Own pages [source, source + count) of the lease become its pages from index `at` on; those that were there,
        and all behind them, come after.

            pages   [ sealed | a b | c d | x y ]     adopt(source=4, count=2, at=2), counted from a
                    [ sealed | a b | x y | c d ]     c d are what shrink takes
        """
        first = lease.sealed // self.page_size
        assert first <= at <= source and source + count <= len(lease.pages), (
            f"pages {source}+{count} to {at} of {lease}"
        )
        moved = lease.pages[source : source + count]
        del lease.pages[source : source + count]
        lease.pages[at:at] = moved

    def _roomy(self, upto: int) -> int:
        """Pages for positions [0, upto) in whole runs, 0 when the pool is too full or pages are large."""
        if self.page_size >= RUN or self._pool.free_count <= self._pool.pages // 2 + RUN:
            return 0
        return -(-upto // RUN) * RUN // self.page_size

    @_timed
    def seal(self, lease: Lease, ids: array[int], upto: int) -> None:
        """Put the whole pages of ids[:upto] into the tree, where others can match them.

        Pages that the tree already has replace the lease's own (which are freed): their KV is that of the same ids at
        the same positions. The caller answers for it that the KV is computed before, or in the step that is planned.
        """
        full = upto // self.page_size * self.page_size
        if full <= lease.sealed:
            return
        first, last = lease.sealed // self.page_size, full // self.page_size
        assert last <= len(lease.pages), f"sealing {full} tokens, but {len(lease.pages)} pages are covered"
        data = ids[lease.sealed : full].tobytes()
        node, shared = self._tree.walk(lease.node, data)
        self._tree.lock(node, above=lease.node)
        if shared:
            self._pool.free(lease.pages[first : first + len(shared)])
            lease.pages[first : first + len(shared)] = shared
        if first + len(shared) < last:
            node = self._tree.grow(
                node, data[len(shared) * self._tree.width :], lease.pages[first + len(shared) : last]
            )
        lease.node, lease.sealed = node, full

    @_timed
    def release(self, lease: Lease) -> None:
        """Unlock the path and free the own pages. The lease is dead afterwards; releasing it again is a KeyError."""
        self._leases.remove(lease)
        self._tree.unlock(lease.node)
        self._pool.free(lease.pages[lease.sealed // self.page_size :])
        lease.pages = []  # a new list: rows of a step under way still hold the old one

    # --- questions

    @_timed
    def peek(self, ids: array[int], limit: int) -> int:
        """Tokens that lease(ids, limit) would match now. Changes nothing."""
        return self._tree.peek(ids[:limit].tobytes())

    @_timed
    def diverges(self, ids: array[int]) -> int:
        """Index of the first id that is not in the tree, len(ids) when all are."""
        return self._tree.diverges(ids.tobytes())

    def stats(self) -> CacheStats:
        free, cached = self._pool.free_count, self._tree.pages
        own = self.pages - free - cached
        return CacheStats(self.pages, free, cached, own, self.available, self._evicted, len(self._leases))

    def show(self, limit: int, head: int) -> tuple[list[Shown], int]:
        """At most `limit` nodes of the tree with the first `head` ids of each, and how many there are."""
        return self._tree.show(limit, head)

    def flush(self) -> int:
        """Drop everything that no lease holds. Returns the number of pages freed."""
        gone = self._tree.evict(self._tree.unlocked_pages)
        self._pool.free(gone)
        return len(gone)

    def check(self) -> None:
        """Raises AssertionError, with the figures, when a page is not exactly one of free, cached, own."""
        self._tree.check()
        holders: Counter[Node] = Counter()
        owner: dict[int, str] = {}

        def claim(pages: list[int], who: str) -> None:
            for page in pages:
                assert 0 <= page < self.pages, f"page {page} of {who} is outside the pool of {self.pages}"
                assert page not in owner, f"page {page} is {owner[page]} and {who}"
                owner[page] = who

        claim(self._pool.free_pages(), "free")
        for node in self._tree.nodes():
            claim(node.pages, "in the tree")
        for number, lease in enumerate(self._leases):
            path: list[int] = []
            node = lease.node
            while node.parent is not None:
                holders[node] += 1
                path[:0] = node.pages
                node = node.parent
            sealed = lease.sealed // self.page_size
            assert node is self._tree.root, f"lease {number} holds a path that left the tree"
            assert path == lease.pages[:sealed], f"lease {number}: its first {sealed} pages are not its path's"
            claim(lease.pages[sealed:], f"own of lease {number}")
        assert len(owner) == self.pages, f"{self.pages - len(owner)} of {self.pages} pages are nobody's (leaked)"
        for node in self._tree.nodes():
            assert node.locks == holders[node], (
                f"node at pages {node.pages[:4]}... has {node.locks} locks and {holders[node]} leases"
            )
