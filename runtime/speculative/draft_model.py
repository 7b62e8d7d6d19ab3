"""Guesses from a smaller model with the same vocabulary, worked out for all requests of a step together.

Knows: token ids, pages of leases, what guesses cost. Must not know: requests, how the model is run, tensors.
The small model keeps keys and values of its own under the same page numbers as the main one, so leases, prefix sharing
and eviction hold for both. It computes a token later than the main model, or never; a slot is stamped with a hash of
all ids up to the one it was computed for, and whoever leases the page next sees by that what is there already.

    known ids   [ stamped: computed by the small model | caught up now ][ guesses ]
    pages       [ of the lease, those that it covers .................. ][ scratch: nobody's, void after the step ]

A draw is a pure function of (logits, seed, position): the small model draws with the seed and the position of the main
one, so for sampled answers too the two agree wherever their distributions do.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from branchwork.runtime.cache.prefix_cache import Lease
from branchwork.runtime.plan import Row
from branchwork.runtime.speculative.cost import DEEP_MARGIN, StepCost, Worth, measured
from branchwork.runtime.speculative.draft import GRADES, Context, Proposal
from branchwork.runtime.wire import Shape

MOST = 8  # guesses in a row
LEAST = 0.2  # of what the small model itself must find likely of a chain
ROWS = 32  # requests guessed for together
AHEAD = 64  # ids before the guesses, and guesses, that a scratch row holds
CHUNK = 512  # tokens caught up with in one go: a long prompt may not hold up a step
TRY_AGAIN = 1024  # proposals left out until guesses are tried again: texts change
TRIED = 4  # guesses then
LEVELS = (0.5, 0.75, 0.9)  # the small model's own probability of its first guess: one grade each
_PRIOR = 0.85  # chance of a guess before anything was seen
_PRIOR_TRIES = 2.0
_KEEP = 0.9  # what a request that has ended leaves of the older ones' record
_MIX = 1_000_003
_HASH = (1 << 63) - 1
_NOTHING = Proposal(())


class Guess(NamedTuple):
    """What a small model says for one row: ids, and its own probability of each."""

    ids: list[int]
    chances: list[float]


class SmallModel(Protocol):
    """Runs the forwards. Pages of a row that draws hold its ids and `count` - 1 more."""

    def guess(self, rows: Sequence[Row], count: int, least: float) -> list[Guess]:
        """At most `count` tokens after each of `rows` that has a shape, drawn as that says; none for the others.

        A greedy chain that the model itself finds less likely than `least` is not drawn out further. With a
        temperature that would say nothing: what is drawn is often unlikely, and the same for both models.
        """


def scratch_pages(page_size: int) -> int:
    """Pages behind the main model's that guesses are worked out in."""
    return ROWS * _scratch_row(page_size)


def _scratch_row(page_size: int) -> int:
    return -(-(AHEAD + MOST) // page_size) + 1


@dataclass(slots=True, eq=False)
class Track:
    """What the small model has computed of one request.

    hashes: one per known id, of it and all before. done: ids computed, by the stamps, while `pages` (those of `lease`
    that hold them) stay as they were.
    """

    context: Context
    lease: Lease | None = None
    hashes: array[int] = field(default_factory=lambda: array("q"))
    done: int = 0
    pages: list[int] = field(default_factory=list)


class ModelDrafter:
    """A drafter that runs `model`. pages: of the main model; scratch_pages follow them in the small model's pool.

    context: positions that the small model can tell apart. cost: what its forwards take, by rows.
    """

    source = "model"

    def __init__(
        self, model: SmallModel, pages: int, page_size: int, context: int, cost: StepCost | None = None
    ) -> None:
        self._model = model
        self._context = context
        self._first_scratch = pages
        self._size = page_size
        self._cost = cost or StepCost()
        self._stamps = np.full((pages + scratch_pages(page_size)) * page_size, -1, np.int64)
        self._tracks: dict[int, Track] = {}
        self._asked: set[int] = set()  # keys, in this step
        self._asked_before: set[int] = set()
        self._ready: dict[int, Proposal] = {}
        self._ended: dict[tuple[bool, int], list[float]] = {}  # hits and tries by kind of request
        self._refused, self._closed = 0, False
        self._worth, self._main = Worth(1, 0.0, 0.0), StepCost()

    @property
    def tracked(self) -> int:
        """Requests of which something is kept."""
        return len(self._tracks)

    # --- a step

    def begin(self, worth: Worth, main: StepCost) -> None:
        """For one step; what is guessed for it is void with the next. main: hears how long the guessing took."""
        self._worth, self._main = worth, main
        self._asked_before, self._asked = self._asked, set()
        self._ready.clear()
        self._closed = False

    def outdoes(self, context: Context, rate: float, count: int, room: int) -> bool:
        """Whether its guesses for this request would make the step faster than `count` others would that cost nothing
        and of which each comes true with probability `rate`."""
        own = self._rate(context)
        depth, speed = self._depth([context], room)
        return depth > 0 and own > rate and speed >= DEEP_MARGIN * self._worth.deepest([rate], 0.0, count)[1]

    def propose(self, context: Context, ahead: Sequence[int], room: int) -> Proposal | None:
        """At most MOST guesses. The first request of a step that asks is answered together with all that asked in the
        step before; one with ids `ahead` is answered alone."""
        track = self._track(context)
        self._asked.add(context.key)
        if len(context.known) + len(ahead) + MOST > self._context or len(ahead) + MOST > AHEAD or self._closed:
            return None
        found = None if ahead else self._ready.pop(context.key, None)
        if found is None:
            found = self._guess(track, ahead, room)
        return Proposal(found.ids[:room], found.grade) if found.ids else None

    def grew(self, context: Context) -> None:
        """Nothing: it catches up when it is asked."""

    def ended(self, context: Context) -> None:
        """Forget it; its keys and values stay in its pages, where the next one with the same prefix finds them."""
        self._tracks.pop(context.key, None)
        self._asked.discard(context.key)
        self._asked_before.discard(context.key)
        record = context.records.get(self.source)
        if record is not None:
            past = self._past(context)
            past[:] = _KEEP * past[0] + sum(record.hits), _KEEP * past[1] + sum(record.tries)

    # --- whether it pays

    def _rate(self, context: Context) -> float:
        """The chance that a guess comes true when the one before it did, whatever its grade."""
        record = context.records.get(self.source)
        hits, tries = (sum(record.hits), sum(record.tries)) if record is not None else (0.0, 0.0)
        past = self._past(context)
        return (hits + _PRIOR_TRIES * past[0] / past[1]) / (tries + _PRIOR_TRIES)

    def _past(self, context: Context) -> list[float]:
        """Hits and tries of ended requests of this kind: free or not, greedy, cool or hot."""
        heat = context.shape.temperature if context.shape is not None else 0.0
        kind = (context.constrained, (heat > 0.0) + (heat > 0.8))
        return self._ended.setdefault(kind, [_PRIOR * _PRIOR_TRIES, _PRIOR_TRIES])

    def _depth(self, contexts: Sequence[Context], room: int) -> tuple[int, float]:
        each = self._cost.load(len(contexts)).plain if self._cost.points else 0.0
        return self._worth.deepest([self._rate(context) for context in contexts], each, min(room, MOST))

    # --- guessing

    def _guess(self, track: Track, ahead: Sequence[int], room: int) -> Proposal:
        """Work out guesses for `track`, and for those that will ask as well."""
        tracks = [track] if ahead else [track, *self._others(track.context.key)]
        count, _ = self._depth([each.context for each in tracks], room)
        if not count:
            self._refused += 1
            if self._refused < TRY_AGAIN:
                self._closed = True
                return _NOTHING
            tracks, count = [track], min(TRIED, room)
        self._refused = 0
        began = time.perf_counter()
        rows, behind = self._rows(tracks, ahead)
        guesses = self._model.guess(rows, count, LEAST)
        for each, row in zip(tracks, rows):
            self._stamp(each, row, count if row.shape is not None else 1)
        spent = time.perf_counter() - began
        self._main.aside += spent
        self._worth.spend(spent)
        if behind <= 4 * MOST * len(rows):  # catching up with a prompt is not what a guess costs
            self._cost.observe(len(rows), 0, spent / count)
        found = [Proposal(guess.ids, _grade(guess)) for guess in guesses]
        self._ready.update((each.context.key, one) for each, one in zip(tracks[1:], found[1:]))
        return found[0]

    def _others(self, key: int) -> list[Track]:
        """Those that asked in the step before, have not asked in this one, and still hold their pages."""
        found = []
        for other in self._asked_before - self._asked:
            track = self._tracks.get(other)
            if track is None or other == key or track.context.lease is None or not track.context.lease.pages:
                continue
            record = track.context.records.get(self.source)
            if record is None or len(track.context.known) >= record.asked_at:
                found.append(track)
        return found[: ROWS - 1]

    def _rows(self, tracks: Sequence[Track], ahead: Sequence[int]) -> tuple[list[Row], int]:
        """What the small model computes for each: the ids it lacks, as many as CHUNK leaves, and how many in all."""
        rows, left, total = [], CHUNK, 0
        for number, track in enumerate(tracks):
            context = track.context
            known, lease = context.known, context.lease
            self._locate(track)
            end = min(len(known), track.done + max(left, 1))
            ids = known[track.done : end].tolist()
            left -= len(ids)
            total += len(ids)
            complete = end == len(known)
            scratch = self._first_scratch + number * _scratch_row(self._size)
            covered = [] if lease is None else lease.pages[: -(-len(known) // self._size)]
            pages = [*covered, *range(scratch, scratch + _scratch_row(self._size))]
            shape = context.shape or Shape(temperature=0.0)
            penalised = shape.frequency_penalty or shape.presence_penalty or shape.repetition_penalty != 1.0
            row = Row(
                context.key,
                track.done,
                [*ids, *ahead] if complete else ids,
                pages,
                shape if complete else None,
                position=len(known) + len(ahead),
                prompt_history=known[: context.prompt] if penalised else (),
                answer_history=[*known[context.prompt :], *ahead] if penalised else (),
            )
            rows.append(row)
        return rows, total

    # --- what is computed

    def _track(self, context: Context) -> Track:
        found = self._tracks.get(context.key)
        if found is None:
            found = self._tracks[context.key] = Track(context)
        return found

    def _locate(self, track: Track) -> None:
        """Bring `hashes` and `done` up to date: at most all known ids but the last, whose logits are wanted."""
        known, lease, hashes = track.context.known, track.context.lease, track.hashes
        last = hashes[-1] if hashes else 0
        for token in known[len(hashes) :]:
            last = (last * _MIX + token + 1) & _HASH
            hashes.append(last)
        pages = [] if lease is None else lease.pages
        if track.lease is lease and pages[: len(track.pages)] == track.pages:
            track.done = min(track.done, len(known) - 1)
            return
        limit = min(len(known) - 1, len(pages) * self._size)
        stamps = self._stamps[self._slots(pages, 0, limit)]
        differ = stamps != np.frombuffer(hashes, np.int64)[:limit]
        track.lease, track.done = lease, int(differ.argmax()) if differ.any() else limit
        track.pages = pages[: -(-track.done // self._size)]

    def _stamp(self, track: Track, row: Row, count: int) -> None:
        """After a forward: known ids in the lease's pages are computed, whatever else was written to is void."""
        lease, size = track.context.lease, self._size
        covered = 0 if lease is None else min(len(lease.pages), -(-len(track.context.known) // size)) * size
        end = min(row.start + len(row.ids), len(track.context.known), covered)
        written = min(row.start + len(row.ids) + count - 1, covered)
        self._stamps[self._slots(row.pages, end, written)] = -1
        if end > row.start:
            hashes = np.frombuffer(track.hashes, np.int64)[row.start : end].copy()
            self._stamps[self._slots(row.pages, row.start, end)] = hashes
            track.done = end
            track.pages = list(row.pages[: -(-end // size)])

    def _slots(self, pages: Sequence[int], first: int, last: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Slots of positions first .. last - 1, int64."""
        if last <= first:
            return np.empty(0, np.int64)
        skip = first // self._size
        numbers = np.array(pages[skip : -(-last // self._size)], np.int64)
        positions = np.arange(first, last)
        slots: np.ndarray[tuple[int], np.dtype[np.int64]] = (
            numbers[positions // self._size - skip] * self._size + positions % self._size
        )
        return slots


def timed(model: SmallModel, pages: int, page_size: int) -> StepCost:
    """What a guess takes for so many rows, among several in a row, measured in scratch pages."""
    each = _scratch_row(page_size)

    def guess(rows: int) -> None:
        first = [range(pages + row * each, pages + (row + 1) * each) for row in range(rows)]
        shape = Shape(temperature=0.0)
        model.guess([Row(-1 - row, 0, [0], first[row], shape, position=1) for row in range(rows)], TRIED, 0.0)

    return StepCost([(rows, seconds / TRIED) for rows, seconds in measured(guess, time.perf_counter, ROWS).points])


def _grade(guess: Guess) -> int:
    if not guess.chances:
        return 0
    return min(sum(guess.chances[0] >= level for level in LEVELS), GRADES - 1)
