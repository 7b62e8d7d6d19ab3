"""Decoding steps recorded once and replayed: a ladder of sizes, one set of buffers, a limit on what it may cost.

Knows: a Driver, a Feed, gathered inputs, a model and its pool. Must not know: requests, who draws, what a plan is for.

    buffers on the device    [ ids | positions | ... | tiles | ... | pages ....... | lengths ... ]   logits [tokens, V]
    a recorded step reads and writes these and its own; what comes before `pages` lies where it lay when it was recorded
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.execution.driver import Driver
from branchwork.runtime.execution.feed import Feed, layout
from branchwork.runtime.execution.inputs import Gathered
from branchwork.runtime.models.decoder import Decoder

_TOKEN = 1024  # bytes of a token's tiles, parts and integers, for each window
_SPARE = 1 << 20  # bytes of tiles cut for idle processors, for each window
_ROOM = 1 << 20  # bytes a token that must be free to record a step: its parts, its product with the head
_UNPAID = 256  # positions that rows may have in common and still list each for itself, as merging costs more


def ladder(most: int) -> list[int]:
    """Numbers of tokens that steps are recorded for, ascending: 1, 2, 4, multiples of 8 up to `most`, and `most`."""
    return sorted({1, 2, 4, most, *range(8, most, 8)} & {*range(most + 1)})


class Graphs:
    """Runs decoding steps, each of whose tokens has a draw, in buffers that stay, recorded from the second time a sort
    of step is met.

    A sort is a number of tokens and what attention launches for them: a row may have drafts to verify.
    """

    def __init__(
        self,
        driver: Driver,
        model: Decoder,
        pool: KVPool,
        *,
        tokens: int,
        allowance: int,
        note: Callable[[str], None],
    ) -> None:
        """tokens: of the largest step. allowance: bytes that recorded steps may take on the device beside the buffers.

        note: told once when steps cannot be recorded any more; they run unrecorded then.
        """
        self.sizes = ladder(tokens)
        self._driver = driver
        self._feed = Feed(driver, model.device)
        self._model = model
        self._pool = pool
        windows = len(set(model.spec.attention.windows))
        listed = pool.pages + tokens * (_UNPAID // pool.page_size + 2)
        size = (tokens * _TOKEN + _SPARE) * windows + listed * 4
        self._buffer = torch.zeros(size, dtype=torch.uint8, device=model.device)
        self._logits = torch.zeros((tokens, model.spec.vocab), dtype=torch.float32, device=model.device)
        self._left = allowance
        self._note = note
        self._recording = True
        self._met: dict[Hashable, Callable[[], None] | None] = {}  # None: met once

    def run(self, inputs: Gathered, drawn: Tensor | None) -> Tensor | None:
        """Logits of all tokens, float32 [T, V], good until the next run; None when the step fits no recording.

        inputs: a draw for each token, their number one of `sizes`. drawn: see Forward.run.
        """
        planned = None if inputs.planned is None else inputs.planned.fitted()
        if planned is None:
            return None
        inputs = replace(inputs, planned=planned)
        parts = inputs.parts()
        places = layout(parts)
        if places[-1].end > len(self._buffer):
            return None
        tokens = len(inputs.ids)
        key = (tokens, planned.key)
        sent = self._feed.send(parts, self._buffer, places)
        inputs.follow(sent, drawn)
        replay = self._met.get(key) or self._begin(key, inputs, sent)
        replay()
        return self._logits[:tokens]

    def _begin(self, key: Hashable, inputs: Gathered, sent: Sequence[Tensor]) -> Callable[[], None]:
        """What computes this step: recorded if its sort was met before, and else the step itself, which compiles all
        that a recording needs to find compiled."""
        logits = self._logits[: len(inputs.ids)]
        step = inputs.step(sent)

        def body() -> None:
            self._model.logits(self._model.hidden(step, self._pool), logits)

        if not self._recording or key not in self._met:
            self._met[key] = None
            return body
        try:
            recorded = self._driver.record(body, min(self._left, (64 + len(logits)) * _ROOM))
        except RuntimeError as error:  # torch's for all that a device refuses
            self._stop(f"{type(error).__name__}: {error}")
            return body
        self._met[key] = recorded.replay
        self._left -= recorded.bytes
        if self._left <= 0:
            self._stop("the memory set aside for them is used up")
        return recorded.replay

    def _stop(self, why: str) -> None:
        self._recording = False
        count = sum(replay is not None for replay in self._met.values())
        self._note(f"graphs: {count} sorts of decoding steps are recorded and no more will be: {why}")
