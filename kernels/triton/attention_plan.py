"""From rows to tiles: which tokens are attended together, over which positions, and whose parts are merged.

Knows: page numbers, lengths and tree masks as numpy arrays. Must not know: torch, Triton, keys and values, requests.
Sources: Ye et al., "FlashInfer", 2025 (host-planned tiles of equal work); Juravsky et al., "Hydragen", 2024 (prefixes).

    positions of row a   [ shared by a b c d ][ shared by a b ][ own ]
    positions of row b   [ shared by a b c d ][ shared by a b ][ own ]
    positions of row c   [ shared by a b c d ][      own      ]
    positions of row d   [ shared by a b c d ][      own      ]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from branchwork.kernels.reference.planning import Words
from branchwork.kernels.triton.attention_kin import Ints, Kinship, shared_segments

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
DEPTH = 16  # parts a token has at most in a plan that is padded


class Launch(NamedTuple):
    """Tiles of one height. tiles int32 [n, 8], longest first:

    where page 0 would stand in `pages` | first in order | tokens | first position | past the last | positions that all
    see | first of the positions that masks speak of | first slot of the parts, -1 to write the result at once
    """

    height: int
    tiles: Words


@dataclass(frozen=True, slots=True)
class Plan:
    """Work for `attention.attend`, all int32.

    order [T]: tokens so that those of one tile stand side by side. at [T]: position of each token. slots: parts in all.
    merged [M]: tokens with parts; cuts [M + 1] into parts: which, in order of position. pages: pieces of one list of
    page numbers, in which tiles find theirs.
    """

    launches: tuple[Launch, ...]
    order: Words
    at: Words
    slots: int
    merged: Words
    cuts: Words
    parts: Words
    pages: tuple[Words, ...]

    @property
    def key(self) -> tuple[tuple[int, ...], bool]:
        """Heights of its launches, and whether parts are merged: what a captured launch of it depends on."""
        return tuple(launch.height for launch in self.launches), self.slots > 0

    @property
    def arrays(self) -> list[Words | tuple[Words, ...]]:
        """Everything that a device reads, the tiles first, the pages last and in their pieces."""
        tiles = (tiles.ravel() for _, tiles in self.launches)
        return [*tiles, self.order, self.at, self.merged, self.cuts, self.parts, self.pages]


class _Spans(NamedTuple):
    """Tokens order[first : first + tokens] and the positions from `low` to `high` of row `row`, whose page 0 would
    stand at `base` of the list of pages."""

    row: Ints
    base: Ints
    first: Ints
    tokens: Ints
    low: Ints
    high: Ints


def plan(
    pages: Sequence[Words],
    cu_rows: Words,
    kv_len: Words,
    shape: Shape,
    policy: Policy = Policy(),  # noqa: B008 (frozen)
    ancestors: Words | None = None,
) -> Plan:
    """Tiles for ragged rows as `kernels.paged_attention` describes them; pages[r]: row r's page numbers, in order.

    ancestors [T, 2] as `tree_attention` does. Raises ValueError as `plans`.
    """
    return plans(pages, cu_rows, kv_len, (shape,), policy, ancestors)[0]


def plans(
    pages: Sequence[Words],
    cu_rows: Words,
    kv_len: Words,
    shapes: Sequence[Shape],
    policy: Policy = Policy(),  # noqa: B008 (frozen)
    ancestors: Words | None = None,
    keys: Sequence[int] | None = None,
    kinship: Kinship | None = None,
) -> list[Plan]:
    """A plan for each of `shapes`, which differ in their windows alone; their order and pages are the same arrays.

    keys, kinship: see Kinship; what is remembered there from earlier plans need not be found again.
    Raises ValueError for a group larger than the tallest tile, for rows longer than their positions, and for too few
    pages.
    """
    shape = shapes[0]
    counts, length = np.diff(cu_rows).astype(np.int64), kv_len.astype(np.int64)
    _check(pages, counts, length, shape)
    owner = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(int(cu_rows[-1])) + (length - counts - cu_rows[:-1])[owner]  # position of each token's own key
    start = length - counts  # where the step's tokens, or those with a mask, begin
    at = place
    if ancestors is not None:
        start = length - np.minimum(counts, TREE)
        depth = np.unpackbits(np.ascontiguousarray(ancestors).view(np.uint8), axis=1).sum(axis=1, dtype=np.int64)
        at = np.where(place >= start[owner], start[owner] + depth - 1, place)

    # a row that fills tiles by itself gains nothing from sharing
    usable = np.where(counts * shape.group * 2 <= shape.heights[-1], start // shape.size, 0)
    usable[counts == 0] = 0
    if policy.share_from >= NEVER or np.count_nonzero(usable) < 2:
        rows, segments, own = np.arange(len(counts)), np.empty((0, 4), np.int64), np.zeros(len(counts), np.int64)
    else:
        rows, common = (kinship or Kinship()).sorted(range(len(counts)) if keys is None else keys, pages, usable)
        segments, own = shared_segments(
            rows, common, counts, shape.group, shape.heights[-1], policy.share_from, shape.size
        )
    spans, pieces = _spans(pages, rows, segments, own, counts, length, shape.size)
    order = _expand(cu_rows[rows].astype(np.int64), counts[rows])[1]
    common_arrays = (order.astype(np.int32), at.astype(np.int32), pieces)
    made = []
    for each in shapes:
        tiles = _tiles(spans, order, at, place, start, each, ancestors is not None)
        tiles, many = _chunks(tiles, order, each, policy)
        made.append(_finished(tiles, many, order, each, *common_arrays))
    return made


def fitted(made: Plan, shape: Shape, policy: Policy = Policy()) -> Plan | None:  # noqa: B008 (frozen)
    """A plan of rows that decode, padded to what such a plan with its key and as many tokens may hold.

    None where it holds more: rows that begin alike at very many depths, prompts. Tiles without tokens and tokens
    without parts do nothing.
    """
    tokens = len(made.order)
    for_idle = policy.per_unit * shape.units // shape.kv_heads + 1  # tiles cut so that every unit has some
    parts = DEPTH * tokens + for_idle
    launches = []
    for i, (height, tiles) in enumerate(made.launches):
        most = (tokens // 2 if i else 2 * tokens) + for_idle  # taller ones hold several tokens each
        if len(tiles) > most:
            return None
        launches.append(Launch(height, np.concatenate((tiles, np.zeros((most - len(tiles), 8), np.int32)))))
    if made.slots > parts:
        return None
    if not made.slots:
        return replace(made, launches=tuple(launches))
    idle = tokens - len(made.merged)
    return replace(
        made,
        launches=tuple(launches),
        slots=parts,
        merged=np.concatenate((made.merged, np.zeros(idle, np.int32))),
        cuts=np.concatenate((made.cuts, np.full(idle, made.cuts[-1], np.int32))),
        parts=np.concatenate((made.parts, np.zeros(parts - len(made.parts), np.int32))),
    )


def _check(pages: Sequence[Words], counts: Ints, length: Ints, shape: Shape) -> None:
    if shape.group > shape.heights[-1]:
        raise ValueError(f"{shape.group} query heads share a key head; the tallest tile has {shape.heights[-1]} rows")
    if (counts < 0).any() or (counts > length).any():
        row = int(np.argmax((counts < 0) | (counts > length)))
        raise ValueError(f"row {row} has {counts[row]} tokens of this step but kv_len {length[row]}")
    held = np.fromiter(map(len, pages), np.int64, len(pages))
    if (held * shape.size < length).any():
        row = int(np.argmax(held * shape.size < length))
        raise ValueError(f"a row of {int(length[row])} positions needs more than {held[row]} pages of {shape.size}")


def _spans(
    pages: Sequence[Words], rows: Ints, segments: Ints, own: Ints, counts: Ints, length: Ints, size: int
) -> tuple[_Spans, tuple[Words, ...]]:
    """What the sorted rows read, in common, then alone; and the pages of that, each listed once."""
    begin = np.concatenate(([0], np.cumsum(counts[rows])))
    first, last, low, high = segments.T
    alone = np.flatnonzero(counts[rows])
    mine = rows[alone]
    end = -(-length // size)
    shared = [pages[r][a:b] for r, a, b in zip(rows[first].tolist(), low.tolist(), high.tolist(), strict=True)]
    single = [pages[r][a:b] for r, a, b in zip(mine.tolist(), own[mine].tolist(), end[mine].tolist(), strict=True)]
    lengths = np.concatenate((high - low, end[mine] - own[mine]))
    base = np.cumsum(lengths) - lengths - np.concatenate((low, own[mine]))
    spans = _Spans(
        np.concatenate((rows[first], mine)),
        base,
        np.concatenate((begin[first], begin[alone])),
        np.concatenate((begin[last] - begin[first], counts[mine])),
        np.concatenate((low * size, own[mine] * size)),
        np.concatenate((high * size, length[mine])),
    )
    return spans, (*shared, *single, np.empty(0, np.int32))


def _tiles(spans: _Spans, order: Ints, at: Ints, place: Ints, start: Ints, shape: Shape, tree: bool) -> dict[str, Ints]:
    """Spans cut into as many tokens as the tallest tile holds, and into what these can see."""
    most = shape.heights[-1] // shape.group
    which, begin = _expand(np.zeros(len(spans.row), np.int64), -(-spans.tokens // most))
    first = spans.first[which] + begin * most
    tokens = np.minimum(most, spans.tokens[which] - begin * most)
    low, high = spans.low[which], spans.high[which]
    high = np.minimum(high, _over(np.maximum, place[order], first, tokens) + 1)
    earliest = _over(np.minimum, at[order], first, tokens)
    mask_from = start[spans.row[which]] if tree else high
    open_to = np.minimum(np.minimum(earliest + 1, mask_from), high)
    if shape.window > 0:
        low = np.maximum(low, earliest - shape.window + 1)
    tiles = {
        "base": spans.base[which], "first": first, "tokens": tokens,
        "low": low, "high": high, "open_to": open_to, "mask": mask_from,
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


def _finished(
    tiles: dict[str, Ints], many: Ints, order: Ints, shape: Shape, words: Words, at: Words, pages: tuple[Words, ...]
) -> Plan:
    """Slots given to parts, tiles dealt to the smallest height that holds them, longest first."""
    partial = _over(np.maximum, many, tiles["first"], tiles["tokens"]) > 1
    taken = np.where(partial, tiles["tokens"], 0)
    slot = np.where(partial, np.cumsum(taken) - taken, -1)
    places = _expand(tiles["first"], taken)[1]  # the entry of order behind each slot
    owners = order[places]
    by_token = np.lexsort((np.repeat(tiles["low"], taken), owners))
    parts = np.bincount(owners, minlength=len(order))
    merged = np.flatnonzero(parts)
    columns = (*(tiles[name] for name in ("base", "first", "tokens", "low", "high", "open_to", "mask")), slot)
    table = np.stack(columns, axis=1).astype(np.int32)
    table = table[np.argsort(tiles["low"] - tiles["high"], kind="stable")]
    of_height = np.searchsorted(shape.heights, table[:, 2] * shape.group)
    dealt = ((height, table[of_height == h]) for h, height in enumerate(shape.heights))
    return Plan(
        tuple(Launch(height, some) for height, some in dealt if len(some)),
        words,
        at,
        int(taken.sum()),
        merged.astype(np.int32),
        np.concatenate(([0], np.cumsum(parts[merged]))).astype(np.int32),
        by_token.astype(np.int32),
        pages,
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
