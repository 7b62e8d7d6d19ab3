"""Rows that begin with the same pages: found, remembered from step to step, and made into common reading.

Knows: page numbers as numpy arrays. Must not know: torch, tiles' heights, requests, keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from branchwork.kernels.reference.planning import Words

Ints = NDArray[np.int64]
BULK = 4  # when more than one row in so many is new, sorting all is cheaper than finding each one's place
LEAP = 8  # a row that has grown by more pages than that is placed anew: a prompt that was computed, not an answer


class Kinship:
    """Rows sorted by their pages, and how many pages neighbours have in common.

    A row is known by a key: while it keeps its key, its pages change by growing at the end alone. One that is found
    again and has grown a little stays where it stands: what it has grown by is hardly ever another's, and if it were,
    less would be shared than could be.
    """

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._usable: Ints = np.empty(0, np.int64)  # [n] pages of each that were compared
        self._common: Ints = np.empty(0, np.int64)  # [n - 1] pages that neighbours have in common

    def sorted(self, keys: Sequence[int], pages: Sequence[Words], usable: Ints) -> tuple[Ints, Ints]:
        """(rows in order, [R - 1] pages that each and the next have in common among the first usable [R]).

        keys: one a row, no two alike.
        """
        row_of = dict(zip(keys, range(len(keys)), strict=True))
        rows, kept = self._found(row_of, usable)
        if (len(keys) - len(kept)) * BULK > len(keys):
            rows, common = _sorted(pages, usable)
        else:
            common = self._grown(kept, rows, pages, usable)
            for row in sorted({*range(len(keys))}.difference(rows)) if len(kept) < len(keys) else ():
                _join(row, rows, common, pages, usable)
        self._keys = [keys[row] for row in rows]
        order = np.array(rows, np.int64)
        self._usable, self._common = usable[order], np.array(common, np.int64)
        return order, self._common

    def _found(self, row_of: dict[int, int], usable: Ints) -> tuple[list[int], list[int]]:
        """Rows that are known and stay where they are, in order; and their places in the order before."""
        limits, rows, kept = usable.tolist(), [], []
        for i, (key, before) in enumerate(zip(self._keys, self._usable.tolist(), strict=True)):
            row = row_of.get(key)
            if row is not None and limits[row] <= before + LEAP and (before or not limits[row]):
                rows.append(row)
                kept.append(i)
        return rows, kept

    def _grown(self, kept: list[int], rows: list[int], pages: Sequence[Words], usable: Ints) -> list[int]:
        """What neighbours have in common now: where they were alike as far as they went, they are compared further."""
        if len(kept) < 2:
            return []
        cuts = np.array(kept)
        held, before = np.minimum.reduceat(self._common[: kept[-1]], cuts[:-1]), self._usable[cuts]
        ordered = usable[rows]
        reach = np.minimum(ordered[1:], ordered[:-1])
        common: list[int] = np.minimum(held, reach).tolist()
        for i in np.flatnonzero((held >= np.minimum(before[1:], before[:-1])) & (reach > held)).tolist():
            common[i] = alike(pages[rows[i]], pages[rows[i + 1]], common[i], int(reach[i]))
        return common


def _sorted(pages: Sequence[Words], usable: Ints) -> tuple[list[int], list[int]]:
    """All rows in order, and what neighbours have in common."""
    content = [numbers[:limit].tobytes() for numbers, limit in zip(pages, usable.tolist(), strict=True)]
    rows = sorted(range(len(content)), key=content.__getitem__)
    ordered = usable[rows]
    reach = np.minimum(ordered[1:], ordered[:-1]).tolist()
    return rows, [alike(pages[a], pages[b], 0, end) for (a, b), end in zip(pairwise(rows), reach, strict=True)]


def _join(row: int, rows: list[int], common: list[int], pages: Sequence[Words], usable: Ints) -> None:
    """A new row takes its place in both lists."""
    mine, limit = pages[row], int(usable[row])
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        other, end = pages[rows[middle]], int(usable[rows[middle]])
        n = alike(mine, other, 0, min(limit, end))
        after = limit > end if n == min(limit, end) else mine[n].tobytes() > other[n].tobytes()
        low, high = (middle + 1, high) if after else (low, middle)
    beside = [rows[i] for i in (low - 1, low) if 0 <= i < len(rows)]
    shared = [alike(mine, pages[other], 0, min(limit, int(usable[other]))) for other in beside]
    at = max(low - 1, 0)
    common[at : at + max(len(beside) - 1, 0)] = shared
    rows.insert(low, row)


def alike(one: Words, other: Words, low: int, high: int) -> int:
    """How many of the first `high` pages two rows have in common, knowing that the first `low` are."""
    if high <= low or one[low] != other[low]:
        return low
    differ = one[low:high] != other[low:high]
    first = int(differ.argmax())
    return low + first if differ[first] else high


def shared_segments(
    rows: Ints, common: Ints, counts: Ints, group: int, tallest: int, share_from: int, size: int
) -> tuple[Ints, Ints]:
    """(segments [n, 4], own [R]) of rows sorted by their pages.

    A segment (i, j, low, high) says that the sorted rows i .. j - 1 read pages low .. high - 1 together; own[r] is the
    first page that row r reads alone. common [R - 1] as Kinship gives it; group, tallest, size: of attention_plan's
    Shape.

    The segments are the inner nodes of the tree of common prefixes, where the positions not read again outweigh the
    parts to merge; a node that does not pay leaves its pages to its children.
    """
    begin = np.concatenate(([0], np.cumsum(counts[rows])))
    own = np.zeros(len(rows), np.int64)
    segments: list[tuple[int, int, int, int]] = []
    nodes = [(0, len(rows), 0)]
    while nodes:
        i, j, low = nodes.pop()
        if j - i == 1:
            own[rows[i]] = low
            continue
        inner = common[i : j - 1]
        high = int(inner.min())
        tiles = -(-int(begin[j] - begin[i]) * group // tallest)
        if high > low and (j - i - tiles) * (high - low) * size > (j - i) * share_from:
            segments.append((i, j, low, high))
            low = high
        cuts = np.flatnonzero(inner == high) + (i + 1)
        if low and len(cuts) == j - i - 1:  # only leaves below
            own[rows[i:j]] = low
        elif len(cuts) < j - i - 1:
            nodes.extend((a, b, low) for a, b in pairwise([i, *cuts.tolist(), j]))
    return np.array(segments, np.int64).reshape(-1, 4), own
