"""What a guess is: a tree of token ids behind the last known one, and who may propose guesses.

Knows: token ids, sources by name, that a request has a lease. Must not know: requests, costs, tensors.

    known ids | a ─ b ─ c          ids (a, b, c, d), parents (-1, 0, 1, 0): d is another guess at what follows a;
                └─ d               a chain is the tree in which every parent is the guess before

A guess whose parent is not the one before it begins a side branch; (a, b, c) is the trunk, (d) a side branch.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from branchwork.runtime.cache.prefix_cache import Lease
from branchwork.runtime.wire import Shape

GRADES = 4  # classes of sureness that a drafter may tell apart; what came true is counted for each


class Draft(msgspec.Struct, frozen=True):
    """Guesses at the tokens behind the last known one; parents come before what grows from them.

    parents: the index of the guess before each, -1 for the last known token. sources: who guessed each. grades: how
    sure that drafter was, 0 .. GRADES - 1.
    """

    ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    grades: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, count: int) -> Draft:
        """The first `count` guesses; what they grow from is among them."""
        if count >= len(self.ids):
            return self
        if count == 0:
            return NOTHING
        return Draft(self.ids[:count], self.parents[:count], self.sources[:count], self.grades[:count])

    @property
    def trunk(self) -> int:
        """Guesses of the first chain, which begins at the last known token."""
        return next((n for n, parent in enumerate(self.parents) if parent != n - 1), len(self.parents))

    def along(self, path: Sequence[int]) -> Draft:
        """The guesses of a path from the root, as a chain."""
        return Draft(
            tuple([self.ids[n] for n in path]),
            tuple(range(-1, len(path) - 1)),
            tuple([self.sources[n] for n in path]),
            tuple([self.grades[n] for n in path]),
        )

    def limbs(self) -> list[Limb]:
        """The side branches, parents before what grows from them."""
        begins = [n for n, parent in enumerate(self.parents) if parent != n - 1]
        found = []
        for first, end in zip(begins, [*begins[1:], len(self.ids)]):
            before, node = [], self.parents[first]
            while node >= 0:
                before.append(self.ids[node])
                node = self.parents[node]
            found.append(Limb(self.parents[first], first, end, tuple(reversed(before))))
        return found


class Limb(NamedTuple):
    """A side branch: the guesses first .. end-1, a chain that grows from guess `parent`. before: the ids that lead to
    it from the last known token."""

    parent: int
    first: int
    end: int
    before: tuple[int, ...]


NOTHING = Draft()


def chain(ids: Sequence[int], source: str, grade: int = GRADES - 1) -> Draft:
    """A draft by one source in which every guess follows the one before."""
    count = len(ids)
    return Draft(tuple(ids), tuple(range(-1, count - 1)), (source,) * count, (grade,) * count)


class Side(msgspec.Struct, frozen=True):
    """Another continuation than a proposal's, after the first `at` of its ids. share: the part of what the drafter
    knows that says this one."""

    at: int
    ids: Sequence[int]
    share: float


class Proposal(msgspec.Struct, frozen=True):
    """One drafter's chain. shares: per guess, the part of what the drafter knows that agrees with it and all before
    it (a model: their probability); empty when everything agrees. sides: tells where it is split, asked only when side
    branches may pay."""

    ids: Sequence[int]
    grade: int = GRADES - 1
    shares: Sequence[float] = ()
    sides: Callable[[], Sequence[Side]] | None = None


@dataclass(slots=True)
class Record:
    """How the guesses of one source fared with one request, newer ones weighing more, and how long it is not asked.

    hits, tries: per grade. pause: tokens for which it is not asked after a guess that was not worth its cost.
    """

    hits: list[float] = field(default_factory=lambda: [0.0] * GRADES)
    tries: list[float] = field(default_factory=lambda: [0.0] * GRADES)
    pause: int = 0
    asked_at: int = 0  # known ids at which it is asked again


@dataclass(slots=True, eq=False)
class Context:
    """One request as drafters see it.

    key: its name among all requests of this engine. known: its ids, growing in place. fresh: index of the first known
    id that was not in the tree when it began: others may not have seen what follows. constrained: by a grammar.
    asked_at: number of known ids from which somebody may be asked again.
    shape, prompt: how its tokens are drawn, and how many of its ids were given. lease: the latest one of the request;
    one that was released has no pages.
    """

    key: int
    known: array[int]
    constrained: bool = False
    fresh: int = 0
    asked_at: int = 0
    records: dict[str, Record] = field(default_factory=dict)
    shape: Shape | None = None
    prompt: int = 0
    lease: Lease | None = None


class Drafter(Protocol):
    """Somebody who guesses. `source` names it in figures and displays.

    A drafter with a model of its own runs that model for all requests of a step at once, when the first of them asks.
    """

    source: str

    def propose(self, context: Context, ahead: Sequence[int], room: int) -> Proposal | None:
        """At most `room` guesses at what follows the known ids and `ahead`, None when there is nothing to go by."""

    def grew(self, context: Context) -> None:
        """The known ids have grown. Called now and then, not for every token."""

    def ended(self, context: Context) -> None:
        """The request has ended, perhaps by cancellation; whatever is kept of it is bounded."""
