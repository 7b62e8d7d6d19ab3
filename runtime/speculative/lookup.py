"""Guesses from what was already written: the request's own text, its siblings, past prompts and answers.

Knows: token ids. Must not know: requests beyond their ids, costs, grammars, tensors.
The idea is that of SuffixDecoding (Oliaro et al., 2024): the longest suffix of the text so far that occurred before
tells what follows. The index is the one of LZ77 compressors (Deutsch, RFC 1951, section 4): a hash of the last ORDER
ids gives the latest place where they stood, and each place links to the one before it with the same hash.

    heads[hash(x y z)] ── run 7, place 40 ── run 7, place 12 ── run 3, place 99 ── ...     newest first
    a run: [ overlap, not indexed | ids that this request added .......... ]   links: one per indexed place

Whole runs are forgotten, the one that ended first goes first; links into them then lead nowhere and are dropped.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from branchwork.runtime.speculative.draft import Context, Proposal, Side

ORDER = 3  # ids that must agree at least
LEVELS = (ORDER, 6, 12, 24)  # ids that agree: one grade each
LENGTHS = (6, 12, 24, 48)  # guesses at most, per grade
LOOKS = 8  # places looked at per proposal
VOTES = 4  # places of the best grade that are compared
SIDE = 8  # guesses at most where they are split
CHUNK = 4096  # ids indexed in one go: a long prompt may not hold up a step (about 1 ms)
HEADS = 1 << 20
CAPACITY = 1 << 21  # ids of runs that have ended, 12 bytes each
_MIX = 1_000_003
_PLACE = (1 << 32) - 1


@dataclass(slots=True, eq=False)
class Run:
    """The ids that one request added. number: from the first run on. begin: index of ids[0] in its known ids.

    skip: first place that is indexed; links[n] leads on from place skip + n, -1 for nowhere.
    """

    number: int
    begin: int
    skip: int
    ids: array[int]
    links: array[int] = field(default_factory=lambda: array("q"))


class Lookup:
    """A drafter over all runs, live and ended. capacity: ids of ended runs that are kept."""

    source = "lookup"

    def __init__(self, capacity: int = CAPACITY, heads: int = HEADS) -> None:
        if heads & (heads - 1):
            raise ValueError(f"heads={heads} must be a power of two")
        self._capacity = capacity
        self._heads = array("q", [-1]) * heads
        self._mask = heads - 1
        self._runs: dict[int, Run] = {}
        self._live: dict[int, Run] = {}  # by context.key
        self._ended: deque[Run] = deque()
        self._held = 0  # ids of ended runs
        self._numbers = 0

    @property
    def runs(self) -> int:
        """Runs that are held, live and ended."""
        return len(self._runs)

    @property
    def held(self) -> int:
        """Ids of ended runs that are held; at most the capacity."""
        return self._held

    # --- what was written

    def grew(self, context: Context) -> None:
        """Index what is new, at most CHUNK ids."""
        run = self._live.get(context.key) or self._open(context)
        known = context.known
        done = run.begin + len(run.ids)
        if done < len(known):
            run.ids.extend(known[done : done + CHUNK])
            self._index(run)

    def ended(self, context: Context) -> None:
        """Keep the run for others, and forget the oldest ones beyond the capacity."""
        if context.key not in self._live:
            return
        self.grew(context)
        run = self._live.pop(context.key)
        self._ended.append(run)
        self._held += len(run.ids)
        while self._held > self._capacity:
            oldest = self._ended.popleft()
            self._held -= len(oldest.ids)
            del self._runs[oldest.number]

    def _open(self, context: Context) -> Run:
        fresh = context.fresh
        if not self._seen(context.known, fresh):  # what the tree had was computed for somebody who was not looked at
            fresh = max(fresh - CHUNK, 0)
        begin = max(fresh - LEVELS[-1], 0)
        run = Run(self._numbers, begin, max(fresh - begin, ORDER - 1), array("i"))
        self._numbers += 1
        self._runs[run.number] = self._live[context.key] = run
        return run

    def _seen(self, known: array[int], upto: int) -> bool:
        """Whether the ids before `upto` end like a text that is indexed."""
        tail = known[max(upto - 1 - LEVELS[-1], 0) : max(upto - 1, 0)]
        return len(tail) == LEVELS[-1] and self._places(tail)[0] == len(LEVELS) - 1

    def _index(self, run: Run) -> None:
        ids, links, heads, mask = run.ids, run.links, self._heads, self._mask
        first = run.skip + len(links)
        if first >= len(ids):
            return
        a, b = ids[first - 2], ids[first - 1]
        base = run.number << 32
        for place in range(first, len(ids)):
            c = ids[place]
            slot = ((a * _MIX + b) * _MIX + c) & mask
            links.append(heads[slot])
            heads[slot] = base | place
            a, b = b, c

    # --- what may follow

    def propose(self, context: Context, ahead: Sequence[int], room: int) -> Proposal | None:
        """The continuation of the place that agrees with the longest suffix; of several, what most of them say."""
        tail = context.known[-LEVELS[-1] :]
        if ahead:
            tail.extend(ahead)
            tail = tail[-LEVELS[-1] :]
        if len(tail) < ORDER or room <= 0:
            return None
        grade, found = self._places(tail)
        if not found:
            return None
        room = min(room, LENGTHS[grade])
        own = self._live.get(context.key)
        if own is not None and found[0][0] is own.ids and not ahead:
            text = _going_on(own.ids, found[0][1], room)
            return Proposal(text, grade, (), partial(_others, found, text) if len(found) > 1 else None)
        return _vote(found, grade, room)

    def _places(self, tail: array[int]) -> tuple[int, list[tuple[array[int], int]]]:
        """The best grade and the places of it, newest first: (ids, index of what follows)."""
        x, y, z = tail[-3:]
        entry = self._heads[((x * _MIX + y) * _MIX + z) & self._mask]
        runs, suffixes = self._runs, [tail[-level:] for level in LEVELS[1:]]
        best, found = 0, []
        for _ in range(LOOKS):
            run = runs.get(entry >> 32)  # -1 is no run
            if run is None:
                break
            ids, last = run.ids, entry & _PLACE
            end = last + 1
            entry = run.links[last - run.skip]
            if end == len(ids) or ids[last] != z or ids[last - 1] != y or ids[last - 2] != x:
                continue
            grade = 0
            for level, suffix in zip(LEVELS[1:], suffixes):
                if end < level or ids[end - level : end] != suffix:
                    break
                grade += 1
            if grade > best:
                best, found = grade, [(ids, end)]
            elif grade == best:
                found.append((ids, end))
                if len(found) == VOTES and best == len(LEVELS) - 1:
                    break
        return best, found[:VOTES]


def _going_on(ids: array[int], end: int, room: int) -> array[int]:
    """What followed place `end` of the text itself; text that ran into its own end goes round, as in LZ77."""
    text = ids[end : end + room]
    return text if len(text) == room else (text * (room // len(text) + 1))[:room]


def _vote(found: list[tuple[array[int], int]], grade: int, room: int) -> Proposal:
    """The continuation whose first id most places agree on, the longest and newest of those, and who agrees how far."""
    texts = [ids[end : end + room] for ids, end in found]
    chosen = texts[0]
    if len(texts) == 1 or all(text == chosen for text in texts):
        return Proposal(chosen, grade)
    firsts = [text[0] for text in texts]
    chosen = texts[max(range(len(texts)), key=lambda n: (firsts.count(firsts[n]), len(texts[n]), -n))]
    reach = [_agreement(text, chosen) for text in texts]
    ends = [len(chosen) if length == len(text) else length for text, length in zip(texts, reach)]
    shares = []
    for n in range(len(chosen)):  # a text that ends while it agrees has no say about what follows
        agree = sum(length > n for length in reach)
        shares.append(agree / (agree + sum(end <= n for end in ends)))
    return Proposal(chosen, grade, shares, partial(_sides, texts, chosen))


def _others(found: list[tuple[array[int], int]], chosen: array[int]) -> list[Side]:
    """What the text says at its other places, where it follows the newest."""
    return _sides([chosen, *(ids[end : end + SIDE] for ids, end in found[1:])], chosen)


def _sides(texts: Sequence[array[int]], chosen: array[int]) -> list[Side]:
    """Where texts leave the chosen one: those that go on alike there are one branch."""
    reach = [_agreement(text, chosen) for text in texts]
    leaving: dict[tuple[int, int], list[array[int]]] = {}
    for text, at in zip(texts, reach):
        if at < min(len(text), len(chosen)):
            leaving.setdefault((at, text[at]), []).append(text)
    found = []
    for (at, _), same in leaving.items():
        silent = sum(n == len(text) <= at and n < len(chosen) for n, text in zip(reach, texts))  # ended before that
        found.append(Side(at, max(same, key=len)[at : at + SIDE], len(same) / (len(texts) - silent)))
    return found


def _agreement(text: array[int], other: array[int]) -> int:
    """Ids that two texts have in common at their beginnings."""
    for n, (a, b) in enumerate(zip(text, other)):
        if a != b:
            return n
    return min(len(text), len(other))
