"""Who descends from whom in a program, and which node gives a variable its value for which reader.

Knows: node numbers, branch numbers, names. Must not know: execution, text, values.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from branchwork.lang import ir
from branchwork.lang.constraint import capture_names
from branchwork.lang.ir import Laid
from branchwork.lang.reasoning import thoughts_of
from branchwork.lang.transcript import Branch


@dataclass(slots=True)
class Track:
    """A branch's way through its nodes. broken_at: smallest failed node; origin: (parent, its Fork node)."""

    branch: Branch
    queue: deque[Laid] = field(default_factory=deque)  # head: the node being executed
    definers: dict[str, list[int]] = field(default_factory=dict)  # ascending node numbers, filled when fed
    scopes: list[tuple[str, int]] = field(default_factory=list)  # (name, segments before it)
    origin: tuple[int, int] | None = None
    born: bool = False
    call: int | None = None
    last: int = -1
    broken_at: int | None = None

    def own(self, name: str, before: int) -> int | None:
        """The last node before node `before` that gives variable `name` a value on this very branch."""
        nodes = self.definers.get(name, [])
        index = bisect_left(nodes, before)
        return nodes[index - 1] if index else None

    def last_before(self, at: int) -> int | None:
        """The node that a join at `at` has to wait for: the last one of this branch, or its birth. None: it is done."""
        last = next((laid.id for laid in reversed(self.queue) if laid.id < at), None)
        return self.origin[1] if last is None and not self.born and self.origin is not None else last

    def break_at(self, node: int) -> None:
        self.broken_at = node if self.broken_at is None else min(node, self.broken_at)


class Lineage:
    """All branches that anybody has named, whether or not they exist yet."""

    def __init__(self) -> None:
        self.tracks: dict[int, Track] = {0: Track(Branch(0), born=True)}
        self.gathered: dict[int, dict[str, list[int]]] = {}  # by Join node: names and their defining nodes

    def track(self, branch: int) -> Track:
        if branch not in self.tracks:
            self.tracks[branch] = Track(Branch(branch))
        return self.tracks[branch]

    def note(self, branch: int, laid: Laid) -> None:
        """Take down what a newly fed node defines: a variable, or new branches."""
        match laid.node:
            case ir.Gen(name=name, constraint=constraint):
                names = [] if name is None else [name]
                if name is not None and laid.node.reasoning is not None:
                    names.append(thoughts_of(name))
                for defined in dict.fromkeys((*names, *capture_names(constraint))):
                    self._define(branch, defined, laid.id)
            case ir.Select(name=str(name)) | ir.ScopeEnd(name=name) | ir.SetVar(name=name):
                self._define(branch, name, laid.id)
            case ir.Join(children, mode, name=name) if mode != "concate_and_append":
                self.gathered[laid.id] = self.gather(branch, laid.id, children, name)
                for name in self.gathered[laid.id]:
                    self._define(branch, name, laid.id)
            case ir.Fork(children):
                for child in children:
                    self._adopt(child, branch, laid.id)

    def descends(self, branch: int, ancestor: int) -> bool:
        """Whether `branch` is `ancestor` or was forked from it, directly or not."""
        while branch != ancestor:
            origin = self.tracks[branch].origin
            if origin is None:
                return False
            branch = origin[0]
        return True

    def gather(
        self, branch: int, join: int, children: Sequence[int], always: str | None = None
    ) -> dict[str, list[int]]:
        """Per variable that is new in the children, and for `always`: its defining node in each child that has it."""
        gathered: dict[str, list[int]] = {}
        for child in children:
            track = self.track(child)
            for name in track.definers:
                new = name == always or self.definer(branch, name, join) is None
                if new and (node := track.own(name, join)) is not None:
                    gathered.setdefault(name, []).append(node)
        return gathered

    def definer(self, branch: int, name: str, before: int | None = None) -> int | None:
        """The node that gives variable `name` its value for a reader at node `before` (None: now) of `branch`."""
        while (track := self.tracks.get(branch)) is not None:
            nodes = track.definers.get(name, [])
            index = len(nodes) if before is None else bisect_left(nodes, before)
            if index:
                return nodes[index - 1]
            if track.origin is None:
                return None
            branch, before = track.origin
        return None

    def names(self, branch: int) -> list[str]:
        """Names of all variables that a reader of `branch` may ask for, laid or inherited."""
        names: dict[str, None] = {}
        before: int | None = None
        while True:
            track = self.tracks[branch]
            names.update((n, None) for n, nodes in track.definers.items() if before is None or nodes[0] < before)
            if track.origin is None:
                return list(names)
            branch, before = track.origin

    def _define(self, branch: int, name: str, node: int) -> None:
        insort(self.tracks[branch].definers.setdefault(name, []), node)

    def _adopt(self, child: int, parent: int, fork: int) -> None:
        track = self.track(child)
        if track.origin is None and not track.born and not self.descends(parent, child):
            track.origin = (parent, fork)
