"""From page tables to tiles: which tokens are attended together, over which positions, and whose parts are merged.

Knows: page tables, lengths and tree masks as numpy arrays. Must not know: torch, Triton, keys and values, requests.
Sources: Ye et al., "FlashInfer", 2025 (host-planned tiles of equal work); Juravsky et al., "Hydragen", 2024 (prefixes).

    positions of row a   [ shared by a b c d ][ shared by a b ][ own ]
    positions of row b   [ shared by a b c d ][ shared by a b ][ own ]
    positions of row c   [ shared by a b c d ][      own      ]
    positions of row d   [ shared by a b c d ][      own      ]
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[np.int32]

TREE = 64  # tokens of a row that a mask of ancestors can speak of


@dataclass(frozen=True, slots=True)
class Shape:
    """What plans depend on beside the rows.

    size: slots of a page. group: query heads of a key head; kv_heads: how many of these. heights: of the tiles that can
    be launched, ascending, in rows of the score matrix. units: processors to keep busy. window: as paged_attention's.
    """

    size: int
    group: int
    kv_heads: int
    heights: tuple[int, ...]
    units: int
    window: int = 0


class Policy(NamedTuple):
    """When reading twice is cheaper than merging; all in positions.

    share_from: what merging one more part of a token costs; 0 shares whatever can be. chunk: tiles are cut after so
    many; 0 chooses by the work at hand, so that each unit gets `per_unit` tiles of it, none shorter than `least`.
    A row's result does not depend on its batch if chunk is given and share_from is NEVER.
    """

    share_from: int = 64
    chunk: int = 0
    least: int = 256
    per_unit: int = 4


NEVER = 1 << 40


class Launch(NamedTuple):
    """Tiles of one height. tiles int32 [n, 8], longest first:

    row of the page table | first in order | tokens | first position | past the last | positions that all see |
    first of the positions that masks speak of | first slot of the parts, -1 to write the result at once
    """

    height: int
    tiles: Words


@dataclass(frozen=True, slots=True)
class Plan:
    """Work for `attention.attend`, all int32.

    order [T]: tokens so that those of one tile stand side by side. at [T]: position of each token. slots: parts in all.
    merged [M]: tokens with parts; cuts [M + 1] into parts: which, in order of position.
    """

    launches: tuple[Launch, ...]
    order: Words
    at: Words
    slots: int
    merged: Words
    cuts: Words
    parts: Words


class _Spans(NamedTuple):
    """Tokens order[first : first + tokens] and the positions from `low` to `high`, through page-table row `row`."""

    row: Ints
    first: Ints
    tokens: Ints
    low: Ints
    high: Ints


def plan(
    page_table: Words,
    cu_rows: Words,
    kv_len: Words,
    shape: Shape,
    policy: Policy = Policy(),  # noqa: B008 (frozen)
    ancestors: Words | None = None,
) -> Plan:
    """Tiles for ragged rows as `kernels.paged_attention` describes them; ancestors [T, 2] as `tree_attention` does.

    Raises ValueError for a group larger than the tallest tile, for rows longer than their positions, and for a page
    table too narrow.
    """
    counts, length = np.diff(cu_rows).astype(np.int64), kv_len.astype(np.int64)
    _check(page_table, counts, length, shape)
    owner = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(int(cu_rows[-1])) + (length - counts - cu_rows[:-1])[owner]  # position of each token's own key
    start = length - counts  # where the step's tokens, or those with a mask, begin
    at = place.copy()
    if ancestors is not None:
        start = length - np.minimum(counts, TREE)
        depth = np.unpackbits(np.ascontiguousarray(ancestors).view(np.uint8), axis=1).sum(axis=1, dtype=np.int64)
        at = np.where(place >= start[owner], start[owner] + depth - 1, place)

    # a row that fills tiles by itself gains nothing from sharing
    usable = np.where(counts * shape.group * 2 <= shape.heights[-1], start // shape.size, 0)
    usable[counts == 0] = 0
    rows, spans = _spans(page_table, usable, counts, length, shape, policy)
    order = _expand(cu_rows[rows].astype(np.int64), counts[rows])[1]
    tiles = _tiles(spans, order, at, place, start, shape, ancestors is not None)
    tiles, many = _chunks(tiles, order, shape, policy)
    return _finished(tiles, many, order, at, shape)


def _check(page_table: Words, counts: Ints, length: Ints, shape: Shape) -> None:
    if shape.group > shape.heights[-1]:
        raise ValueError(f"{shape.group} query heads share a key head; the tallest tile has {shape.heights[-1]} rows")
    if (counts < 0).any() or (counts > length).any():
        row = int(np.argmax((counts < 0) | (counts > length)))
        raise ValueError(f"row {row} has {counts[row]} tokens of this step but kv_len {length[row]}")
    if len(length) and -(-int(length.max()) // shape.size) > page_table.shape[1]:
        raise ValueError(
            f"a row of {int(length.max())} positions needs more than {page_table.shape[1]} pages of {shape.size}"
        )


def _spans(
    page_table: Words, usable: Ints, counts: Ints, length: Ints, shape: Shape, policy: Policy
) -> tuple[Ints, _Spans]:
    """Rows in an order where those with common pages stand side by side, and what they read: in common, then alone."""
    if policy.share_from >= NEVER or np.count_nonzero(usable) < 2:
        rows, segments, own = np.arange(len(counts)), np.empty((0, 4), np.int64), np.zeros(len(counts), np.int64)
    else:
        rows, segments, own = shared_segments(page_table, usable, counts, shape, policy.share_from)
    begin = np.concatenate(([0], np.cumsum(counts[rows])))
    first, last, low, high = segments.T
    alone = np.flatnonzero(counts[rows])
    return rows, _Spans(
        np.concatenate((rows[first], rows[alone])),
        np.concatenate((begin[first], begin[alone])),
        np.concatenate((begin[last] - begin[first], counts[rows[alone]])),
        np.concatenate((low * shape.size, own[rows[alone]] * shape.size)),
        np.concatenate((high * shape.size, length[rows[alone]])),
    )


def shared_segments(
    page_table: Words, usable: Ints, counts: Ints, shape: Shape, share_from: int
) -> tuple[Ints, Ints, Ints]:
    """(rows sorted by their pages, segments [n, 4], own).

    A segment (i, j, low, high) says that the sorted rows i .. j - 1 read pages low .. high - 1 together; own [R] is the
    first page that a row reads alone. usable [R]: a row's whole pages before the step's tokens.

    The segments are the inner nodes of the tree of common prefixes, where the positions not read again outweigh the
    parts to merge; a node that does not pay leaves its pages to its children.
    """
    keys = [page_table[r, :n].tobytes() for r, n in enumerate(usable.tolist())]
    rows = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    sorted_table, reach = page_table[rows], np.minimum(usable[rows][1:], usable[rows][:-1])
    wide = int(reach.max(initial=0))
    differ = np.ones((len(rows) - 1, wide + 1), bool)
    np.not_equal(sorted_table[1:, :wide], sorted_table[:-1, :wide], out=differ[:, :wide])
    common = np.minimum(differ.argmax(axis=1), reach)  # [R - 1] pages that neighbours have in common
    begin = np.concatenate(([0], np.cumsum(counts[rows])))
    own = np.zeros(len(rows), np.int64)
    segments: list[tuple[int, int, int, int]] = []
    nodes = [(0, len(rows), 0)]
    while nodes:
        i, j, low = nodes.pop()
        if j - i == 1:
            own[rows[i]] = low
            continue
        high = int(common[i : j - 1].min())
        tiles = -(-int(begin[j] - begin[i]) * shape.group // shape.heights[-1])
        if high > low and (j - i - tiles) * (high - low) * shape.size > (j - i) * share_from:
            segments.append((i, j, low, high))
            low = high
        cuts = [i, *(i + 1 + np.flatnonzero(common[i : j - 1] == high)).tolist(), j]
        nodes.extend((a, b, low) for a, b in pairwise(cuts))
    return rows, np.array(segments, np.int64).reshape(-1, 4), own


def _tiles(spans: _Spans, order: Ints, at: Ints, place: Ints, start: Ints, shape: Shape, tree: bool) -> dict[str, Ints]:
    """Spans cut into as many tokens as the tallest tile holds, and into what these can see."""
    most = shape.heights[-1] // shape.group
    which, begin = _expand(np.zeros(len(spans.row), np.int64), -(-spans.tokens // most))
    first = spans.first[which] + begin * most
    tokens = np.minimum(most, spans.tokens[which] - begin * most)
    low, high, row = spans.low[which], spans.high[which], spans.row[which]
    high = np.minimum(high, _over(np.maximum, place[order], first, tokens) + 1)
    earliest = _over(np.minimum, at[order], first, tokens)
    mask_from = start[row] if tree else high
    open_to = np.minimum(np.minimum(earliest + 1, mask_from), high)
    if shape.window > 0:
        low = np.maximum(low, earliest - shape.window + 1)
    tiles = {
        "row": row, "first": first, "tokens": tokens, "low": low, "high": high, "open_to": open_to, "mask": mask_from
    }  # fmt: skip
    return {name: column[low < high] for name, column in tiles.items()}


def _chunks(tiles: dict[str, Ints], order: Ints, shape: Shape, policy: Policy) -> tuple[dict[str, Ints], Ints]:
    """Tiles cut into chunks of positions, so that there are enough of even length for all units; and how many parts
    each entry of order has."""
    long = tiles["high"] - tiles["low"]
    chunk = policy.chunk or max(policy.least, int(long.sum()) * shape.kv_heads // (policy.per_unit * shape.units))
    pieces = -(-long // chunk)
    step = np.full(len(long), chunk) if policy.chunk else (long + 64 * pieces - 1) // (64 * pieces) * 64
    pieces = -(-long // step)
    which, begin = _expand(np.zeros(len(long), np.int64), pieces)
    cut = {name: column[which] for name, column in tiles.items()}
    cut["low"] = cut["low"] + begin * step[which]
    cut["high"] = np.minimum(cut["high"], cut["low"] + step[which])
    places = _expand(tiles["first"], tiles["tokens"])[1]
    many = np.bincount(places, np.repeat(pieces, tiles["tokens"]), len(order)).astype(np.int64)
    return cut, many


def _finished(tiles: dict[str, Ints], many: Ints, order: Ints, at: Ints, shape: Shape) -> Plan:
    """Slots given to parts, tiles dealt to the smallest height that holds them, longest first."""
    partial = _over(np.maximum, many, tiles["first"], tiles["tokens"]) > 1
    taken = np.where(partial, tiles["tokens"], 0)
    slot = np.where(partial, np.cumsum(taken) - taken, -1)
    places = _expand(tiles["first"], taken)[1]  # the entry of order behind each slot
    by_token = np.lexsort((np.repeat(tiles["low"], taken), order[places]))
    merged, parts = np.unique(order[places], return_counts=True)
    columns = (*(tiles[name] for name in ("row", "first", "tokens", "low", "high", "open_to", "mask")), slot)
    table = np.stack(columns, axis=1).astype(np.int32)
    table = table[np.argsort(tiles["low"] - tiles["high"], kind="stable")]
    height = np.searchsorted(np.array(shape.heights), table[:, 2] * shape.group)
    return Plan(
        tuple(Launch(shape.heights[h], np.ascontiguousarray(table[height == h])) for h in np.unique(height)),
        order.astype(np.int32),
        at.astype(np.int32),
        int(taken.sum()),
        merged.astype(np.int32),
        np.concatenate(([0], np.cumsum(parts))).astype(np.int32),
        by_token.astype(np.int32),
    )


def _expand(first: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """For runs of `counts` numbers from `first`: which run each belongs to, and the number."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - (np.cumsum(counts) - counts)[which] + first[which]


def _over(ufunc: np.ufunc, numbers: Ints, first: Ints, counts: Ints) -> Ints:
    """ufunc over numbers[first : first + counts], counts > 0, for each entry."""
    if not len(first):
        return first
    bounds = np.stack((first, first + counts), axis=1).ravel()
    reduced: Ints = ufunc.reduceat(np.append(numbers, numbers[-1:]), bounds)[::2]
    return reduced
