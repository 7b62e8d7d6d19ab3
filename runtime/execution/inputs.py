"""From a Plan to a Step: the only file where ids become tensors.

Knows: plans, numpy, the page layout. Must not know: models, sampling, who owns a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from branchwork.runtime.models.step import Step
from branchwork.runtime.plan import Plan, Row

Ints = NDArray[np.int64]
PageNumbers = NDArray[np.int32]


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
class Wanted:
    """What a Step's logits_index holds, in order.

    [ one place per entry of `drawing` | the places of `known`, row by row, ascending ]
    drawing: the Plan row of each draw; a row with a draft of n guesses stands there n + 1 times.
    """

    drawing: tuple[int, ...]
    known: tuple[Known, ...]


class Inputs:
    """Builds Steps. Remembers the rows of the step before: a row's page list mostly grows by one entry at its end."""

    def __init__(self, page_size: int, device: torch.device) -> None:
        self._page_size = page_size
        self._device = device
        self._rows: dict[int, _Pages] = {}

    def build(self, plan: Plan, drawn: Tensor | None = None) -> tuple[Step, Wanted]:
        """drawn: int64 on the device, what the step before drew, for rows that come after one of its draws.

        Raises ValueError for a row without ids or with fewer pages than its positions need.
        """
        rows = plan.rows
        counts = np.fromiter((len(row.ids) for row in rows), np.int64, len(rows))
        starts = np.fromiter((row.start for row in rows), np.int64, len(rows))
        _check(rows, counts, starts, self._page_size)
        cuts = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=cuts[1:])
        tokens = int(cuts[-1])
        table = self._table(rows)
        if tokens == len(rows):  # every row has one token: plain decode
            ids = np.fromiter((row.ids[0] for row in rows), np.int64, tokens)
            owner, positions = np.arange(tokens), starts
        else:
            ids = np.fromiter((token for row in rows for token in row.ids), np.int64, tokens)
            owner = np.repeat(np.arange(len(rows)), counts)
            positions = np.arange(tokens) + (starts - cuts[:-1])[owner]
        pages = table[owner, positions // self._page_size]
        slots = pages.astype(np.int64) * self._page_size + positions % self._page_size
        places, wanted = _wanted(rows, cuts)
        step = Step(
            ids=self._followed(self._tensor(ids), rows, cuts, drawn),
            positions=self._tensor(positions),
            cu_rows=self._tensor(cuts.astype(np.int32)),
            kv_len=self._tensor((starts + counts).astype(np.int32)),
            page_table=self._tensor(table),
            slots=self._tensor(slots),
            logits_index=self._tensor(places),
        )
        return step, wanted

    def _table(self, rows: Sequence[Row]) -> PageNumbers:
        """Page numbers [rows, longest], zero past a row's own."""
        table = np.zeros((len(rows), max(len(row.pages) for row in rows)), np.int32)
        fresh: dict[int, _Pages] = {}
        for r, row in enumerate(rows):
            if row.request in fresh:  # another row of the same request, which has its own pages
                table[r, : len(row.pages)] = row.pages
                continue
            held = self._rows.get(row.request) or _Pages()
            table[r, : len(row.pages)] = held.numbers(row.pages)
            fresh[row.request] = held
        self._rows = fresh
        return table

    def _followed(self, ids: Tensor, rows: Sequence[Row], cuts: Ints, drawn: Tensor | None) -> Tensor:
        """The ids, with what the step before drew where rows come after that."""
        places = [r for r, row in enumerate(rows) if row.after >= 0]
        if not places:
            return ids
        if drawn is None:
            raise ValueError(f"request {rows[places[0]].request} comes after a draw, but no step was before")
        draws = self._tensor(np.fromiter((rows[r].after for r in places), np.int64, len(places)))
        return ids.index_copy(0, self._tensor(cuts[places]), drawn[draws].clamp(min=0))  # below 0 is no token

    def _tensor(self, values: Ints | PageNumbers) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)


class _Pages:
    """One request's page list as int32, converted once: comparing a list with its copy is 20 times as fast."""

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._numbers = np.empty(64, np.int32)

    def numbers(self, pages: Sequence[int]) -> PageNumbers:
        had, have = len(self._seen), len(pages)
        if had > have or self._seen != (pages if had == have else pages[:had]):
            self._seen, had = [], 0
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
    return np.concatenate((places, np.asarray(scored, np.int64))), Wanted(drawing, tuple(known))


def _check(rows: Sequence[Row], counts: Ints, starts: Ints, page_size: int) -> None:
    lacking = np.fromiter((len(row.pages) for row in rows), np.int64, len(rows)) * page_size < starts + counts
    if not rows or not counts.all() or lacking.any():
        bad = next((row.request for row, count, lack in zip(rows, counts, lacking) if lack or not count), None)
        raise ValueError(f"plan cannot be run: request {bad} has a row without ids or with too few pages")
