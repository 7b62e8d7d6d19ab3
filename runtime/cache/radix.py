"""The radix tree of token runs: match, split, grow, lock, evict.

Knows: packed int32 ids, page numbers, lock counts. Must not know: who allocates pages, requests, text.

    root --- [A: 0..2P) ---+--- [B: 2P..5P) ---+--- [C: 5P..6P)     a node's run is a multiple of P tokens and
                           |                   `--- [D: 5P..9P)     has one page number per P tokens
                           `--- [E: 2P..3P)                         siblings differ within their first page

A run is `bytes` (4 per token): equality is one memcmp, a child is found by its first page's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from typing import NamedTuple

import numpy as np

from branchwork.runtime.cache.eviction import ORDERS, Evictor

TOKEN = 4  # bytes of one id
_SIBLINGS = 1024  # children looked at to say where inside a page a prompt diverges


def common(left: bytes, right: bytes) -> int:
    """Number of leading tokens that two packed runs share."""
    count = min(len(left), len(right)) // TOKEN
    if count == 0:
        return 0
    differ = np.frombuffer(left, np.int32, count) != np.frombuffer(right, np.int32, count)
    first = int(differ.argmax())
    return first if differ[first] else count


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens below `parent`. locks: leases whose path goes through or ends at this node."""

    parent: Node | None
    data: bytes
    pages: list[int]
    children: dict[bytes, Node] = field(default_factory=dict)
    locks: int = 0
    access: int = 0


class Shown(NamedTuple):
    """A node as onlookers see it. parent: index of its parent among those shown, -1 for the root.

    tokens: of its run; head: the first ids of it, packed; children: all of them, shown or not; idle: leases, seals and
    releases anywhere in the tree since the last that went through it.
    """

    parent: int
    tokens: int
    pages: int
    locks: int
    children: int
    idle: int
    head: bytes


class RadixTree:
    """Runs of tokens and the pages that cover them. Source: Zheng et al., SGLang (2024), section 3."""

    def __init__(self, page_size: int, eviction: str = "lru") -> None:
        if page_size < 1:
            raise ValueError(f"page_size must be at least 1, got {page_size}")
        self.root = Node(None, b"", [])
        self.width = TOKEN * page_size  # bytes of one page's ids
        self.pages = 0  # in all nodes
        self.count = 0  # nodes without the root
        self.unlocked_pages = 0  # in nodes that no lease goes through: all of them can be evicted, leaf by leaf
        self.evictor: Evictor[Node] = Evictor(ORDERS[eviction])
        self._clock = 0

    # --- following

    def walk(self, node: Node, data: bytes) -> tuple[Node, list[int]]:
        """Follow `data` downwards from `node` by whole pages; splits where it leaves a run half-way.

        Returns the node at whose end the match ends, and the pages of the matched part.
        """
        width, end, at = self.width, len(data) // self.width * self.width, 0
        pages: list[int] = []
        while at < end:
            child = node.children.get(data[at : at + width])
            if child is None:
                break
            if at + len(child.data) <= end and data.startswith(child.data, at):
                node = child
                pages += node.pages
                at += len(node.data)
                continue
            node = self._split(child, common(data[at:end], child.data) * TOKEN // width)
            pages += node.pages
            break
        return node, pages

    def peek(self, data: bytes) -> int:
        """Tokens of `data` that whole pages of the tree cover. Changes nothing."""
        node, at = self._descend(data)
        child = node.children.get(data[at : at + self.width])
        if child is not None and len(data) - at >= self.width:
            at += common(data[at:], child.data) * TOKEN // self.width * self.width
        return at // TOKEN

    def diverges(self, data: bytes) -> int:
        """Index of the first token of `data` that no path of the tree has, to the token (not to the page)."""
        node, at = self._descend(data)
        rest = data[at:]
        child = node.children.get(rest[: self.width])
        if child is not None:
            return at // TOKEN + common(rest, child.data)
        if not rest or self.width == TOKEN:
            return at // TOKEN
        return at // TOKEN + max((common(rest, key) for key in islice(node.children, _SIBLINGS)), default=0)

    def _descend(self, data: bytes) -> tuple[Node, int]:
        """The last node wholly matched by `data`, and the bytes matched."""
        node, at, width = self.root, 0, self.width
        while True:
            child = node.children.get(data[at : at + width])
            if child is None or not data.startswith(child.data, at):
                return node, at
            node = child
            at += len(child.data)

    # --- changing

    def _split(self, node: Node, pages: int) -> Node:
        """Cut `node` after `pages` pages and return the new upper part.

        `node` itself stays the lower part: leases that end at its end go on doing so.
        """
        cut = pages * self.width
        assert node.parent is not None
        upper = Node(node.parent, node.data[:cut], node.pages[:pages], locks=node.locks, access=node.access)
        node.parent.children[node.data[: self.width]] = upper
        node.parent = upper
        node.data, node.pages = node.data[cut:], node.pages[pages:]
        upper.children[node.data[: self.width]] = node
        self.count += 1
        return upper

    def grow(self, node: Node, data: bytes, pages: list[int]) -> Node:
        """Lay `data` (whole pages, not yet below `node`) at the end of a node that the caller has locked, or the root.

        Returns the node that ends with `data`, locked by the caller's one lock. The run is extended in place when the
        caller alone ends there, so that a prompt computed in chunks stays one node.
        """
        self.pages += len(pages)
        if node is not self.root and node.locks == 1 and not node.children:
            node.data += data
            node.pages += pages
            return node
        self.count += 1
        child = Node(node, data, list(pages), locks=1, access=self._tick())
        node.children[data[: self.width]] = child
        return child

    def lock(self, node: Node, above: Node | None = None) -> None:
        """Count one more lease on the path from `node` up to `above` (exclusive; the root when None)."""
        stop, now = above or self.root, self._tick()
        while node is not stop:
            if node.locks == 0:
                self.unlocked_pages -= len(node.pages)
                self.evictor.discard(node)
            node.locks += 1
            node.access = now
            assert node.parent is not None
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Count one lease less on the path from `node` to the root."""
        now = self._tick()
        while node is not self.root:
            node.locks -= 1
            node.access = now
            if node.locks == 0:
                self.unlocked_pages += len(node.pages)
                if not node.children:
                    self.evictor.add(node)
            assert node.parent is not None
            node = node.parent

    def evict(self, count: int) -> list[int]:
        """Give up `count` pages (all unlocked ones, when fewer): leaves in the order, tails first."""
        gone: list[int] = []
        while len(gone) < count and len(self.evictor):
            leaf = self.evictor.pop()
            take = min(count - len(gone), len(leaf.pages))
            gone += leaf.pages[-take:]
            if take < len(leaf.pages):
                del leaf.pages[-take:]
                leaf.data = leaf.data[: -take * self.width]
                self.evictor.add(leaf)
                break
            self._remove(leaf)
        self.pages -= len(gone)
        self.unlocked_pages -= len(gone)
        return gone

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.data[: self.width]]
        self.count -= 1
        if parent is not self.root and parent.locks == 0 and not parent.children:
            self.evictor.add(parent)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    # --- looking

    def nodes(self) -> Iterator[Node]:
        """Every node but the root, parents before children."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node is not self.root:
                yield node
            stack.extend(node.children.values())

    def show(self, limit: int, head: int) -> tuple[list[Shown], int]:
        """At most `limit` nodes, always the one used last of those whose parents are shown; and how many there are.

        head: ids of each run.
        """
        heap: list[tuple[int, int, int, Node]] = []
        shown: list[Shown] = []
        pushed = 0

        def push(node: Node, above: int) -> None:
            nonlocal pushed
            for child in node.children.values():
                pushed += 1
                heappush(heap, (-child.access, pushed, above, child))

        push(self.root, -1)
        while heap and len(shown) < limit:
            *_, above, node = heappop(heap)
            push(node, len(shown))
            tokens, idle = len(node.data) // TOKEN, self._clock - node.access
            first = node.data[: head * TOKEN]
            shown.append(Shown(above, tokens, len(node.pages), node.locks, len(node.children), idle, first))
        return shown, self.count

    def check(self) -> None:
        """Raises AssertionError, saying which node is wrong, when an invariant of the tree alone does not hold."""
        unlocked = pages = leaves = nodes = 0
        for node in self.nodes():
            name = f"node at pages {node.pages[:4]}..."
            assert node.data and len(node.data) == len(node.pages) * self.width, f"{name}: run and pages differ"
            assert node.parent is not None and node.parent.children.get(node.data[: self.width]) is node, (
                f"{name}: its parent does not know it by its first page"
            )
            assert node.locks >= sum(child.locks for child in node.children.values()), f"{name}: locked less than below"
            pages += len(node.pages)
            nodes += 1
            if node.locks == 0:
                unlocked += len(node.pages)
                assert (node in self.evictor) == (not node.children), f"{name}: eviction set is wrong about it"
                leaves += not node.children
            else:
                assert node not in self.evictor, f"{name}: locked, yet evictable"
        assert nodes == self.count, f"the tree counts {self.count} nodes and has {nodes}"
        assert pages == self.pages, f"the tree counts {self.pages} pages and has {pages}"
        assert unlocked == self.unlocked_pages, f"the tree counts {self.unlocked_pages} unlocked pages, has {unlocked}"
        assert leaves == len(self.evictor), f"{len(self.evictor)} evictable leaves listed, {leaves} exist"
