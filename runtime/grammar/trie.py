"""All tokens of a vocabulary as a byte trie in flat arrays.

Knows: bytes, ids. Must not know: automata, masks.

    node (preorder)  0   1   2   3   4   5        a node is one byte; its token (-1 for none) ends with that byte
    byte             a   c   a   r   t   d        depth counts from 1; skip is the first node behind the subtree
    depth            1   1   2   3   3   1
    skip             1   5   5   4   5   6
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NODE = np.dtype([("skip", "<i4"), ("token", "<i4"), ("depth", "<u2"), ("byte", "u1"), ("pad", "u1")])  # as in walk.c


class Trie:
    """nodes: NODE [nodes], in preorder, siblings by byte. twins: int32 [pairs, 2]: a token of the trie and another id
    with the same bytes. longest: bytes of the longest token."""

    def __init__(self, tokens: list[bytes]) -> None:
        items = sorted((token, number) for number, token in enumerate(tokens) if token)
        byte, depth = bytearray(), [0][:0]
        ends: list[int] = []
        ids: list[int] = []
        twins: list[tuple[int, int]] = []
        before = b""
        for token, number in items:
            if token == before:
                twins.append((ids[-1], number))
                continue
            shared, most = 0, min(len(before), len(token))
            while shared < most and before[shared] == token[shared]:
                shared += 1
            byte += token[shared:]
            depth += range(shared + 1, len(token) + 1)
            ends.append(len(byte) - 1)
            ids.append(number)
            before = token
        self.longest = max((len(token) for token, _ in items), default=0)
        self.twins = np.array(twins, np.int32).reshape(-1, 2)
        self.nodes = np.zeros(len(byte), NODE)
        self.nodes["byte"] = np.frombuffer(bytes(byte), np.uint8)
        self.nodes["depth"] = depth
        self.nodes["token"] = -1
        self.nodes["token"][ends] = ids
        self.parent = np.full(len(byte), -1, np.int32)  # -1: no node above
        self._link()

    def _link(self) -> None:
        """Fill parent and skip, level by level from the top."""
        depth = self.nodes["depth"]
        skip = np.full(len(depth) + 1, len(depth), np.int32)  # the last one is that of the root, parent -1
        above = np.array([-1], np.int32)
        by_depth = np.argsort(depth, kind="stable").astype(np.int32)
        bounds = np.searchsorted(depth[by_depth], np.arange(1, self.longest + 2))
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
            level = by_depth[first:last]
            parent = above[np.searchsorted(above, level) - 1]
            self.parent[level] = parent
            following = np.append(level[1:], 0)
            sibling = np.append(parent[1:] == parent[:-1], False)
            skip[level] = np.where(sibling, following, skip[parent])
            above = level
        self.nodes["skip"] = skip[:-1]

    @cached_property
    def children(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(first, order): the children of node j are order[first[j + 1] : first[j + 2]]; the root is j = -1."""
        order = np.argsort(self.parent, kind="stable")
        return np.searchsorted(self.parent[order], np.arange(-1, len(order) + 1)), order

    def find(self, prefix: bytes) -> tuple[int, int]:
        """(first, behind) of the nodes below `prefix`: those of the tokens that properly extend it. (0, 0) when no
        token begins with it."""
        node, byte = -1, self.nodes["byte"]
        first, order = self.children
        for value in prefix:
            below = order[first[node + 1] : first[node + 2]]
            i = int(np.searchsorted(byte[below], value))
            if i == len(below) or byte[below[i]] != value:
                return 0, 0
            node = int(below[i])
        return node + 1, int(self.nodes["skip"][node]) if node >= 0 else len(byte)
