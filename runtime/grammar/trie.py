"""All tokens of a vocabulary as a byte trie in flat arrays.

Knows: bytes, ids. Must not know: automata, masks.

    node (preorder)  0   1   2   3   4   5        a node is one byte; its token (-1 for none) ends with that byte
    byte             a   c   a   r   t   d        depth counts from 1; skip is the first node behind the subtree
    depth            1   1   2   3   3   1
    skip             1   5   5   4   5   6
"""

from __future__ import annotations

import string
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NODE = np.dtype([("skip", "<i4"), ("token", "<i4"), ("depth", "<u2"), ("byte", "u1"), ("pad", "u1")])  # as in walk.c


def _kinds() -> NDArray[np.bool_]:
    lower, digits = string.ascii_lowercase, string.digits
    plain, words = "".join(map(chr, range(0x20, 0x7F))), string.ascii_letters + digits + "_"
    sets = (
        plain.replace('"', "").replace("\\", ""),  # of a JSON string, with what is beyond ASCII
        plain,  # with what is beyond ASCII
        words,
        lower,
        digits,
        words + ".-+%",
        words + " ",
        "".join(char for char in plain if char not in " #?"),  # of a URL
    )
    kinds = np.zeros((256, len(sets)), bool)
    for k, members in enumerate(sets):
        kinds[list(members.encode()), k] = True
    kinds[0xC2:0xF5, :TEXTS] = True
    return kinds


def _left() -> NDArray[np.uint8]:
    """[what is left of a character, byte] -> what is left then; numbers as in walk.c, _BROKEN: that is no text."""
    after = np.full((9, 256), _BROKEN, np.uint8)
    after[0, :0x80] = 0
    for first, last, left in [(0xC2, 0xDF, 1), (0xE0, 0xEF, 2), (0xF0, 0xF4, 3), (0xE0, 0xE0, 4), (0xED, 0xED, 5)]:
        after[0, first : last + 1] = left
    after[0, 0xF0], after[0, 0xF4] = 6, 7
    ways = [(0x80, 0xBF, 0), (0x80, 0xBF, 1), (0x80, 0xBF, 2), (0xA0, 0xBF, 1), (0x80, 0x9F, 1)]
    for left, (first, last, then) in enumerate([*ways, (0x90, 0xBF, 2), (0x80, 0x8F, 2)], 1):
        after[left, first : last + 1] = then
    return after


TEXTS = 2  # the first kinds: of whole characters, all those beyond ASCII among them
KINDS = _kinds()  # bool [256, 8]: sets of bytes that tokens are often made of and states often allow any number of
_BROKEN = 8
_LEFT = _left()


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
    def below(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32]]:
        """(fits, height, first, order) for walk.c: by node, a bit for each of KINDS that it and all below it belong to,
        and its bytes on the longest way down (255: that or more); tokens in preorder, and where in it those from each
        node on begin."""
        nodes, token = self.nodes, self.nodes["token"]
        by_depth = np.argsort(nodes["depth"], kind="stable")
        bounds = np.searchsorted(nodes["depth"][by_depth], np.arange(1, self.longest + 2))
        levels = [by_depth[begin:end] for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist())]
        fits = np.packbits(KINDS, axis=1, bitorder="little")[nodes["byte"], 0]
        texts = np.uint8(2**TEXTS - 1)
        left = np.zeros(len(nodes) + 1, np.uint8)  # of the character at each node; the last is that of the root
        for level in levels:
            before = left[self.parent[level]]
            left[level] = _LEFT[before, nodes["byte"][level]]
            fits[level] &= np.where(left[level] == _BROKEN, ~texts, 0xFF).astype(np.uint8)
            fits[level] |= np.where((before != 0) & (left[level] != _BROKEN), texts, 0).astype(np.uint8)
        height = np.ones(len(nodes), np.int64)
        for level in reversed(levels[1:]):
            parent = self.parent[level]
            starts = np.flatnonzero(np.append(True, parent[1:] != parent[:-1]))
            fits[parent[starts]] &= np.bitwise_and.reduceat(fits[level], starts)
            height[parent[starts]] = np.maximum.reduceat(height[level] + 1, starts)
        inside = np.flatnonzero(left[self.parent] != 0)  # what may follow there is not known by characters
        fits[inside] &= ~texts
        first = np.append(0, np.cumsum(token >= 0)).astype(np.int32)
        return fits, np.minimum(height, 255).astype(np.uint8), first, np.ascontiguousarray(token[token >= 0])

    @cached_property
    def children(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(first, order) in ranks by depth: the rank-th node from the top is order[rank], and its children have the
        ranks first[rank + 1] .. first[rank + 2] - 1. The root has rank -1."""
        order = np.argsort(self.nodes["depth"], kind="stable")
        rank = np.full(len(order) + 1, -1, np.int64)  # the last one is that of the root, node -1
        rank[order] = np.arange(len(order))
        return np.searchsorted(rank[self.parent[order]], np.arange(-1, len(order) + 1)), order

    @cached_property
    def ranked(self) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """(byte, token) by rank."""
        nodes = self.nodes[self.children[1]]
        return np.ascontiguousarray(nodes["byte"]), np.ascontiguousarray(nodes["token"])

    def rank(self, prefix: bytes) -> int:
        """The rank of the node that ends `prefix`, -1 for the empty one, -2 when there is none."""
        rank, (first, _), (byte, _) = -1, self.children, self.ranked
        for value in prefix:
            begin, end = first[rank + 1], first[rank + 2]
            rank = int(begin + np.searchsorted(byte[begin:end], value))
            if rank == end or byte[rank] != value:
                return -2
        return rank

    def find(self, prefix: bytes) -> tuple[int, int]:
        """(first, behind) of the nodes below `prefix`: those of the tokens that properly extend it. (0, 0) when no
        token begins with it."""
        rank = self.rank(prefix)
        if rank < 0:
            return 0, len(self.nodes) if rank == -1 else 0
        node = int(self.children[1][rank])
        return node + 1, int(self.nodes["skip"][node])
