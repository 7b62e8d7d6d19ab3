"""From a Plan to a Step: the only file where ids become tensors.

Knows: plans, numpy, the page layout. Must not know: models, sampling, who owns a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from branchwork.kernels import AttentionPlanner, HostPlan, PagedRows
from branchwork.runtime.execution.cuda import CudaDriver
from branchwork.runtime.execution.feed import Feed, Local, Part, Sends
from branchwork.runtime.models.step import Step
from branchwork.runtime.plan import Plan, Row

Ints = NDArray[np.int64]
PageNumbers = NDArray[np.int32]
_KEYS = count()
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Known:
    """A known token whose log-probability and `top` alternatives are wanted, for Plan row `row`.

    place: which of the known places' logits score it; several tokens may be scored at one place.
    """

    row: int
    token: int
    top: int
    place: int


@dataclass(frozen=True, slots=True)
class State:
    """Hidden states that Plan row `row` wants, at places first .. last - 1 of all of the step's; see Row.state."""

    row: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a Step's logits_index holds, in order.

    [ one place per entry of `drawing` | the places of `known`, row by row, ascending | those of `states` likewise ]
    drawing: the Plan row of each draw; a row with a draft of n guesses stands there n + 1 times.
    """

    drawing: tuple[int, ...]
    known: tuple[Known, ...]
    states: tuple[State, ...] = ()


@dataclass(frozen=True, slots=True)
class Gathered:
    """A Step on the host, for R rows of T tokens.

    table int32 [R, longest]: page numbers, zero past a row's own; None where attention is planned. places, draws: the
    tokens whose ids are what the step before drew, and which of its draws.
    """

    ids: Ints
    positions: Ints
    slots: Ints
    logits_index: Ints
    cu_rows: PageNumbers
    kv_len: PageNumbers
    table: PageNumbers | None
    planned: HostPlan | None
    places: Ints
    draws: Ints
    wanted: Wanted

    def parts(self) -> list[Part]:
        """Its arrays, to be sent. Fitted plans of one key, of T tokens and as many draws, have all but the last five
        alike in length."""
        first: list[Part] = [self.ids, self.positions, self.slots, self.logits_index]
        last = (self.cu_rows, self.kv_len, self.places, self.draws)
        if self.planned is not None:
            return [*first, *self.planned.arrays, *last]
        assert self.table is not None
        return [*first, self.table.ravel(), *last]

    def step(self, sent: Sequence[Tensor]) -> Step:
        """The Step, of its parts as they were sent."""
        ids, positions, slots, logits_index = sent[:4]
        cu_rows, kv_len = sent[-4:-2]
        rows = len(self.kv_len)
        if self.planned is not None:
            table, plans = kv_len.new_empty((rows, 0)), self.planned.placed(sent[4:-4])
        else:
            table, plans = sent[4].view(rows, -1), {}
        return Step(ids, positions, cu_rows, kv_len, table, slots, logits_index, plans)

    def follow(self, sent: Sequence[Tensor], drawn: Tensor | None) -> None:
        """Write what the step before drew into the ids that were sent. Raises ValueError where nothing was drawn."""
        if not len(self.places):
            return
        if drawn is None:
            raise ValueError("plan cannot be run: a row comes after a draw, but no step was before")
        ids = drawn.index_select(0, sent[-1]).clamp_(min=0)  # below 0 is no token
        sent[0].index_copy_(0, sent[-2], ids)


class Whole(NamedTuple):
    """Whole texts of rows, shorter ones first, for a model without a cache: ids and positions int64 [T]; lengths:
    tokens of each. states: those wanted, at places of the T tokens."""

    ids: Tensor
    positions: Tensor
    lengths: list[int]
    states: tuple[State, ...]


def whole(plan: Plan, device: torch.device) -> Whole:
    """Raises ValueError for a row that does not begin at position 0, or has no ids."""
    rows = plan.rows
    if any(row.start or not len(row.ids) for row in rows):
        raise ValueError("plan cannot be run: a row is no whole text")
    order = sorted(range(len(rows)), key=lambda r: len(rows[r].ids))
    lengths = [len(rows[r].ids) for r in order]
    ids = np.fromiter((token for r in order for token in rows[r].ids), np.int64, sum(lengths))
    positions = np.concatenate([np.arange(length) for length in lengths])
    states, at = [], 0
    for r, length in zip(order, lengths):
        first, last = {"": (0, 0), "first": (0, 1), "last": (length - 1, length), "sum": (0, length)}[rows[r].state]
        if last:
            states.append(State(r, at + first, at + last))
        at += length
    one, other = (torch.from_numpy(part).to(device) for part in (ids, positions))
    return Whole(one, other, lengths, tuple(states))


class Inputs:
    """Builds Steps. Remembers the rows of the step before: a row's page list mostly grows by one entry at its end."""

    def __init__(
        self,
        page_size: int,
        device: torch.device,
        planner: AttentionPlanner | None = None,
        feed: Sends | None = None,
    ) -> None:
        """planner: of the model's attention, where that is planned. feed: how arrays come to the device."""
        self._page_size = page_size
        self._device = device
        self._planner = planner
        self._feed = feed or (Local() if device.type == "cpu" else Feed(CudaDriver(device), device))
        self._rows: dict[int, _Pages] = {}

    def build(self, plan: Plan, drawn: Tensor | None = None) -> tuple[Step, Wanted]:
        """drawn: int64 on the device, what the step before drew, for rows that come after one of its draws.

        Raises ValueError for a row without ids or with fewer pages than its positions need.
        """
        gathered = self.gather(plan)
        return self.send(gathered, drawn), gathered.wanted

    def send(self, gathered: Gathered, drawn: Tensor | None = None) -> Step:
        """The Step on its device. Raises ValueError for rows that come after a draw when there was none."""
        sent = self._feed.send(gathered.parts())
        gathered.follow(sent, drawn)
        return gathered.step(sent)

    def gather(self, plan: Plan) -> Gathered:
        """A plan's Step on the host. Raises ValueError as `build`."""
        rows, size = plan.rows, self._page_size
        counts = np.fromiter((len(row.ids) for row in rows), np.int64, len(rows))
        starts = np.fromiter((row.start for row in rows), np.int64, len(rows))
        _check(rows, counts, starts, size)
        cuts = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=cuts[1:])
        tokens = int(cuts[-1])
        keys, pages = self._pages(rows)
        if tokens == len(rows):  # every row has one token: plain decode
            ids = np.fromiter((row.ids[0] for row in rows), np.int64, tokens)
            positions = starts
            at = (starts // size).tolist()
            mine = np.fromiter((numbers[i] for numbers, i in zip(pages, at)), np.int64, tokens)
        else:
            ids = np.fromiter((token for row in rows for token in row.ids), np.int64, tokens)
            owner = np.repeat(np.arange(len(rows)), counts)
            positions = np.arange(tokens) + (starts - cuts[:-1])[owner]
            at = np.split(positions // size, cuts[1:-1])
            mine = np.concatenate([numbers[i] for numbers, i in zip(pages, at)]).astype(np.int64)
        places, wanted = _wanted(rows, cuts)
        cu_rows, kv_len = cuts.astype(np.int32), (starts + counts).astype(np.int32)
        after = [r for r, row in enumerate(rows) if row.after >= 0]
        planned = None if self._planner is None else self._planner.plan(PagedRows(keys, pages, cu_rows, kv_len))
        return Gathered(
            ids=ids,
            positions=positions,
            slots=mine * size + positions % size,
            logits_index=places,
            cu_rows=cu_rows,
            kv_len=kv_len,
            table=_table(pages) if planned is None else None,
            planned=planned,
            places=cuts[after] if after else _NONE,
            draws=np.array([rows[r].after for r in after], np.int64) if after else _NONE,
            wanted=wanted,
        )

    def _pages(self, rows: Sequence[Row]) -> tuple[list[int], list[PageNumbers]]:
        """Each row's key, see PagedRows, and page numbers."""
        fresh: dict[int, _Pages] = {}
        keys, pages = [], []
        for row in rows:
            # another row of the same request has its own pages
            held = _Pages() if row.request in fresh else self._rows.get(row.request) or _Pages()
            pages.append(held.numbers(row.pages))
            keys.append(held.key)
            fresh.setdefault(row.request, held)
        self._rows = fresh
        return keys, pages


def _table(pages: Sequence[PageNumbers]) -> PageNumbers:
    """Page numbers [rows, longest], zero past a row's own."""
    table = np.zeros((len(pages), max(map(len, pages))), np.int32)
    for line, numbers in zip(table, pages):
        line[: len(numbers)] = numbers
    return table


class _Pages:
    """One request's page list as int32, converted once: comparing a list with its copy is 20 times as fast."""

    def __init__(self) -> None:
        self.key = next(_KEYS)  # another one whenever the list changes other than by growing
        self._seen: list[int] = []
        self._numbers = np.empty(64, np.int32)

    def numbers(self, pages: Sequence[int]) -> PageNumbers:
        had, have = len(self._seen), len(pages)
        if had > have or self._seen != (pages if had == have else pages[:had]):
            self._seen, had = [], 0
            self.key = next(_KEYS)
        if have > len(self._numbers):
            grown = np.empty(max(have, 2 * len(self._numbers)), np.int32)
            grown[:had] = self._numbers[:had]
            self._numbers = grown
        if had < have:
            tail = pages[had:]
            self._numbers[had:have] = tail
            self._seen.extend(tail)
        return self._numbers[:have]


def _wanted(rows: Sequence[Row], cuts: Ints) -> tuple[Ints, Wanted]:
    """Token indices whose logits are wanted and what each is for: see Wanted."""
    drawing = tuple(r for r, row in enumerate(rows) if row.shape is not None for _ in range(row.draft + 1))
    places = (cuts[1:] - 1)[list(drawing)]
    if any(row.draft for row in rows):
        back = [n for row in rows if row.shape is not None for n in range(row.draft, -1, -1)]
        places = places - np.asarray(back, np.int64)
    known: list[Known] = []
    scored: list[int] = []
    for r, row in enumerate(rows):
        if row.score_from >= len(row.ids) and not row.score_next:
            continue
        begin = int(cuts[r])
        for i in range(max(row.score_from, 1), len(row.ids) - row.draft):
            known.append(Known(r, row.ids[i], row.score_top, len(scored)))
            scored.append(begin + i - 1)
        if row.score_next:
            known += [Known(r, token, row.score_top, len(scored)) for token in row.score_next]
            scored.append(begin + len(row.ids) - 1)
    places = np.concatenate((places, np.asarray(scored, np.int64)))
    states, pooled = _states(rows, cuts, len(places))
    return np.concatenate((places, *pooled)), Wanted(drawing, tuple(known), states)


def _states(rows: Sequence[Row], cuts: Ints, before: int) -> tuple[tuple[State, ...], list[Ints]]:
    """The hidden states that rows want, and their token indices; before: places of others."""
    states: list[State] = []
    pooled: list[Ints] = []
    for r, row in enumerate(rows):
        if not row.state:
            continue
        begin, end = int(cuts[r]), int(cuts[r + 1])
        if row.state != "sum":
            begin, end = (begin, begin + 1) if row.state == "first" else (end - 1, end)
        pooled.append(np.arange(begin, end))
        states.append(State(r, before, before + end - begin))
        before += end - begin
    return tuple(states), pooled


def _check(rows: Sequence[Row], counts: Ints, starts: Ints, page_size: int) -> None:
    lacking = np.fromiter((len(row.pages) for row in rows), np.int64, len(rows)) * page_size < starts + counts
    if not rows or not counts.all() or lacking.any():
        bad = next((row.request for row, count, lack in zip(rows, counts, lacking) if lack or not count), None)
        raise ValueError(f"plan cannot be run: request {bad} has a row without ids or with too few pages")
