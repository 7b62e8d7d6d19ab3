"""Joins: what a parent waits for, and what becomes of its children's variables and text once it can go on.

Knows: how far every branch is, values by node, races. Must not know: calls, who executes or cancels anything.
It only looks; whoever asks applies what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from branchwork.lang import ir, race
from branchwork.lang.ir import Laid
from branchwork.lang.lineage import Lineage, Track
from branchwork.lang.transcript import NodeFailed, Refusal, Value, because

MODES = ("gather_variable", "concate_and_append", *race.MODES)


class Wait(NamedTuple):
    """Until one of these nodes is executed or has failed; none: for a branch that nobody has forked yet."""

    nodes: tuple[int, ...] = ()


class Joined(NamedTuple):
    """variables: of the parent from now on. text: children whose own text it gets. won: indexes, None for no race.

    losers: branches to be cancelled.
    """

    variables: Mapping[str, Value] = MappingProxyType({})
    text: tuple[int, ...] = ()
    won: tuple[int, ...] | None = None
    losers: tuple[int, ...] = ()


class Joins:
    """value: the value that a node gave to a variable. winners: by Join node of a race, the indexes that won."""

    def __init__(self, lineage: Lineage, value: Callable[[int, str], Value | NodeFailed]) -> None:
        self.winners: dict[int, list[int]] = {}
        self._lineage = lineage
        self._value = value

    def look(self, branch: int, join: Laid) -> Wait | Joined:
        """Whether the join at the head of `branch` can go on, and with what. Raises Refusal when it never can."""
        node = _node(join)
        children = [self._lineage.tracks[child] for child in node.children]
        if node.mode in race.MODES:
            return self._race(branch, join, children)
        for child in children:
            if (failure := _failed(child, join.id)) is not None:
                raise because(failure)
            last = child.last_before(join.id)
            if last is not None or not child.born:
                return Wait(() if last is None else (last,))
        if node.mode == "gather_variable":
            gathered = self._lineage.gathered[join.id].items()
            return Joined({name: [self._value(n, name) for n in nodes] for name, nodes in gathered})
        if node.mode == "concate_and_append":
            return Joined(text=node.children)
        raise Refusal("bad_join", f"unknown join mode {node.mode!r}; known: {', '.join(MODES)}")

    def won(self, branch: int, join: Laid, indexes: Sequence[int]) -> Joined:
        """What comes of a race that these children have won. Raises Refusal when one of them failed before it."""
        if (failure := self.broken(join, indexes)) is not None:
            raise because(failure)
        node, lineage = _node(join), self._lineage
        self.winners[join.id] = list(indexes)
        names = lineage.gathered[join.id]  # of all children: what only losers have is empty
        gathered = lineage.gather(branch, join.id, [node.children[index] for index in indexes], node.name)
        lineage.gathered[join.id] = {name: gathered.get(name, []) for name in names}
        variables: dict[str, Value] = {}
        for name, nodes in lineage.gathered[join.id].items():
            values = [self._value(n, name) for n in nodes]
            variables[name] = values[0] if name == node.name else values
        return Joined(variables, won=tuple(indexes))

    def broken(self, join: Laid, indexes: Sequence[int] | None = None) -> NodeFailed | None:
        """Why a child, of those with these indexes, failed before the join; None when none did."""
        children = _node(join).children
        chosen = children if indexes is None else [children[index] for index in indexes]
        failures = [_failed(self._lineage.tracks[child], join.id) for child in chosen]
        return next((failure for failure in failures if failure is not None), None)

    def _race(self, branch: int, join: Laid, children: Sequence[Track]) -> Wait | Joined:
        node = _node(join)
        if any(not child.born and child.origin is None for child in children):
            return Wait()
        standings = [self._standing(child, join.id, node.name) for child in children]
        won = race.decide(node.mode, node.count, standings, node.given)
        running = [child for child in children if child.branch.failure is None]
        if won is None:
            last = [child.last_before(join.id) for child in running]
            return Wait(tuple(number for number in last if number is not None))
        losers = tuple(child.branch.id for child in running if child.last_before(join.id) is not None)
        return self.won(branch, join, won)._replace(losers=losers)

    def _standing(self, child: Track, at: int, name: str | None) -> race.Standing:
        if (failure := _failed(child, at)) is not None:
            return race.Standing(failed=failure.cause)
        if child.last_before(at) is not None or not child.born:
            return race.Standing()
        definer = None if name is None else child.own(name, at)
        vote = None if name is None or definer is None else self._value(definer, name)
        return race.Standing(done=True, vote=None if vote is None or isinstance(vote, NodeFailed) else str(vote))


def _failed(child: Track, at: int) -> NodeFailed | None:
    """Why a branch failed before node `at`."""
    return child.branch.failure if child.broken_at is not None and child.broken_at < at else None


def _node(join: Laid) -> ir.Join:
    assert isinstance(join.node, ir.Join)
    return join.node
