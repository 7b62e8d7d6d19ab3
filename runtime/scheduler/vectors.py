"""The vector of a text while its hidden states come in: which of them are wanted, their sum, what is made of them.

Knows: poolings, packed numbers. Must not know: steps, budgets, pages, tensors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from branchwork.runtime.wire import Embed, Embedded, Failed, Usage


class Vector:
    """What an Embed has so far. needs_all: every token's state counts, so none may come from the tree."""

    __slots__ = ("_embed", "_sum", "needs_all")

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._sum: NDArray[np.float64] | None = None
        self.needs_all = embed.pooling != "last"

    def wanted(self, last: bool) -> str:
        """Row.state of a row of the text; last: it ends with the text."""
        if self._embed.pooling == "mean":
            return "sum"
        return "last" if last else ""

    def restart(self) -> None:
        """What came is void: the text is computed again from its first token."""
        self._sum = None

    def add(self, state: bytes) -> None:
        """Take what came of a row."""
        if state:
            one = np.frombuffer(state, np.float64)
            self._sum = one if self._sum is None else self._sum + one

    def event(self, usage: Usage) -> Embedded | Failed:
        """The whole text has been computed: its vector, Failed where that has no finite numbers."""
        embed = self._embed
        assert self._sum is not None
        vector = self._sum / (len(embed.ids) // 4) if embed.pooling == "mean" else self._sum
        if not np.isfinite(vector).all():
            return Failed(embed.id, "no_vector", "the model's states for this text are not finite numbers")
        if embed.normalize and (length := float(np.sqrt(vector @ vector))) > 0:
            vector = vector / length
        return Embedded(embed.id, vector.astype("<f4").tobytes(), usage)
