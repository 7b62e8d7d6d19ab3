"""The branches of one fork as a group: laying on all of them, joining them, asking who won a race.

Knows: states of branches, joins. Must not know: how a state lays or reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from branchwork.lang.errors import ProgramError
from branchwork.lang.expr import Expr, check_name
from branchwork.lang.ir import Join, Node
from branchwork.lang.joins import MODES as JOIN_MODES

if TYPE_CHECKING:
    from branchwork.lang.state import ProgramState


class ForkGroup:
    """The children of one fork, in order."""

    def __init__(self, parent: ProgramState, states: Sequence[ProgramState]) -> None:
        self._parent = parent
        self._states = list(states)
        self._join: int | None = None  # the node that joins them

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self._states)

    def __getitem__(self, index: int) -> ProgramState:
        return self._states[index]

    def __setitem__(self, index: int, state: ProgramState) -> None:
        """`forks[i] += expr` ends here, with the state it began with; nothing else may be put in its place."""
        if self._states[index] is not state:
            raise TypeError("a fork's branches cannot be replaced; lay on them with forks[i] += ...")

    def __iadd__(self, expr: Expr | Sequence[Expr] | Callable[[int], Expr]) -> ForkGroup:
        """Lay on every child: the same expression, one of a list each, or what a function of the index gives."""
        exprs: Sequence[Expr]
        if isinstance(expr, (str, Node)):
            exprs = [expr] * len(self)
        elif callable(expr):
            exprs = [expr(index) for index in range(len(self))]
        else:
            exprs = list(expr)
            if len(exprs) != len(self):
                raise ValueError(f"{len(exprs)} expressions for {len(self)} branches; give one for each")
        for state, item in zip(self._states, exprs):
            state += item
        return self

    def join(self, mode: str = "gather_variable", k: int = 1, name: str | None = None) -> None:
        """Wait (in the program, not here) for children, then go on with the parent.

        gather_variable: for all; variables new in them become lists on the parent, in branch order.
        concate_and_append: for all; their new text is appended to the parent.
        first: for the first `k` to be done; the others are cancelled mid-word, the lists are of those k.
        majority: until no other text of variable `name` can overtake the commonest one; the others are cancelled,
        `name` is that text on the parent, every other list is of the children that agree with it.
        Reading from a branch that was cancelled raises ProgramError (outrun). Raises ValueError for what cannot be.
        """
        if mode not in JOIN_MODES:
            raise ValueError(f"unknown join mode {mode!r}; known: {', '.join(JOIN_MODES)}")
        if not isinstance(k, int):
            raise TypeError(f"k counts branches, so it is a whole number, got {k!r}")
        check_name(name)
        if mode == "first" and not 1 <= k <= len(self):
            raise ValueError(f"the first {k} of {len(self)} branches cannot be waited for; k is 1 to {len(self)}")
        if (name is None) == (mode == "majority"):
            raise ValueError("name= says what a majority is of; give it with mode='majority', and with no other")
        count = k if mode == "first" else 0
        self._parent._lay((Join(tuple(state._branch for state in self._states), mode, count, name),))
        self._join = self._parent._last

    def winners(self) -> list[int]:
        """Wait for the join of a race (first, majority): the indexes of the branches it went on with."""
        if self._join is None:
            raise ProgramError("no_join", "these branches have not been joined; winners are known after a join")
        live, join = self._parent.live, self._join
        live.wait(lambda: join in live.machine.winners or live.machine.caught_up(self._parent._branch, join))
        if join not in live.machine.winners:
            self._parent._raise_if_failed()
            return list(range(len(self)))
        return live.machine.winners[join]
