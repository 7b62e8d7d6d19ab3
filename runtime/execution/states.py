"""Hidden states that rows want, as numbers on their way to the host: one token's, or the sum of a row's.

Knows: tensors, plan rows. Must not know: models, what a vector is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from branchwork.runtime.execution.inputs import State
from branchwork.runtime.plan import Plan
from branchwork.runtime.sampling.readback import Readback

_UNIT = 2.0**24  # a state's numbers are rounded to multiples of 1 / _UNIT before they are added, see plan.Drawn
_AT_ONCE = 256  # states that are numbers of 64 bits at the same time


class States:
    """Of one step. hidden [places, C]: the last normed states; nothing here waits for the device but `read`."""

    def __init__(self, plan: Plan, states: Sequence[State], hidden: Tensor) -> None:
        self._rows = [state.row for state in states]
        found = [
            total(hidden[state.first : state.last])
            if plan.rows[state.row].state == "sum"
            else hidden[state.first].double()
            for state in states
        ]
        self._found = Readback(torch.stack(found))

    def read(self) -> Mapping[int, bytes]:
        """By plan row what it wants, float64 packed [C]."""
        found = self._found.read().numpy()
        return {row: numbers.tobytes() for row, numbers in zip(self._rows, found, strict=True)}


def total(states: Tensor) -> Tensor:
    """The sum of states [n, C], float64 [C], exact once each is rounded, so in whatever order it is made."""
    cuts = range(0, len(states), _AT_ONCE)
    parts = [(states[cut : cut + _AT_ONCE].double() * _UNIT).round_().sum(0) for cut in cuts]
    return torch.stack(parts).sum(0) / _UNIT
