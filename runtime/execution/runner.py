"""Runs plans: launch computes a step's forward, sample draws after it, collect brings the Result.

Knows: a forward, a sampler. Must not know: requests beyond their rows, the tree, text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from branchwork.runtime.execution.forward import Computed, Forward
from branchwork.runtime.execution.inputs import Known
from branchwork.runtime.execution.memory import allocate_most, bytes_per_page, kv_dtype
from branchwork.runtime.execution.states import States
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.plan import Drawn, Plan, Result, Row
from branchwork.runtime.sampling.logprobs import Scores, scores_of
from branchwork.runtime.sampling.sampler import Draw, Drawing, Sampler
from branchwork.runtime.speculative.verify import verified
from branchwork.runtime.wire import TokenScore

__all__ = ["Draws", "Pending", "Runner", "bytes_per_page", "kv_dtype", "pick_device", "set_threads"]

SCORES_AT_ONCE = 256  # places whose logits exist at the same time: a whole prompt's would not fit (places x vocabulary)

Masks = Tensor | NDArray[np.int32]


class Draws(Protocol):
    """What the runner needs of sampling. logits float32 [N, V], one Row each, whose drafts do not matter."""

    def begin(
        self, logits: Tensor, rows: Sequence[Row], masks: Masks | None = None, masked: Sequence[int] | None = None
    ) -> Drawing: ...


class Pending:
    """A step under way: sample once, then collect once. The next step may be launched in between."""

    def __init__(self, plan: Plan, computed: Computed, sampler: Draws | None) -> None:
        """sampler: None where no row draws."""
        self._plan = plan
        self._computed = computed
        self._sampler = sampler
        self._drawing: Drawing | None = None
        self._scoring: list[tuple[list[int], Scores]] = []  # plan rows of a run of known tokens, and their scores
        self._pooling: States | None = None

    @property
    def drawn(self) -> Tensor | None:
        """What was sampled, int64 on the device, draw by draw; below 0 where there is no token. None: nothing was."""
        return None if self._drawing is None else self._drawing.tokens

    def sample(self, masks: Masks | None = None, masked: Sequence[int] | None = None) -> Pending:
        """Draw and score, without waiting for the device. masks: bit = allowed, int32 [n, ceil(V / 32)], or None.

        masked: which draws the masks belong to, counted over the plan's rows that have a shape, a drafted row as one
        draw per guess and one more; None for each of them. Returns self.
        """
        count = len(self._computed.wanted.drawing)
        if count:
            assert self._sampler is not None
            logits = self._computed.logits(0, count)
            self._drawing = self._sampler.begin(logits, _places(self._plan.rows), masks, masked)
        self._score(count)
        if self._computed.wanted.states:
            assert self._computed.hidden is not None
            self._pooling = States(self._plan, self._computed.wanted.states, self._computed.hidden)
        return self

    def collect(self) -> Result:
        """Wait for what was sampled; the step's Result."""
        draws = self._drawing.read() if self._drawing is not None else []
        scores: dict[int, list[TokenScore]] = {}
        for owners, found in self._scoring:
            for owner, score in zip(owners, found.read(), strict=True):
                scores.setdefault(owner, []).append(score)
        states = {} if self._pooling is None else self._pooling.read()
        results, at = [], 0
        for r, row in enumerate(self._plan.rows):
            end = at + (row.draft + 1 if row.shape is not None else 0)
            results.append(_outcome(row, draws[at:end], scores.get(r, ()), states.get(r, b"")))
            at = end
        return Result(self._plan.step, tuple(results))

    def _score(self, first: int) -> None:
        """Scores of known tokens, whose places begin at `first`, in the order of Wanted."""
        for chunk, run in groupby(self._computed.wanted.known, key=_chunk):
            items = list(run)
            begin = first + chunk * SCORES_AT_ONCE
            logits = self._computed.logits(begin, begin + items[-1].place % SCORES_AT_ONCE + 1)
            for top, same in groupby(items, key=_top):
                wanted = list(same)
                low, high = wanted[0].place % SCORES_AT_ONCE, wanted[-1].place % SCORES_AT_ONCE + 1
                places = [item.place % SCORES_AT_ONCE - low for item in wanted]
                found = scores_of(logits[low:high], [item.token for item in wanted], top, places)
                self._scoring.append(([item.row for item in wanted], found))


class Runner:
    """The hands: one model's forward, one sampler. pool: of its KV. notes: what had to be decided on the way."""

    def __init__(self, forward: Forward, sampler: Draws, notes: Sequence[str] = ()) -> None:
        self.pool = forward.pool
        self.notes = list(notes)
        self._forward = forward
        self._sampler = sampler

    @classmethod
    def build(
        cls,
        model: Decoder,
        *,
        pages: int,
        page_size: int,
        kv: str = "auto",
        least: int = 0,
        graphs: bool = False,
        rows: int = 256,
    ) -> Runner:
        """kv: the pool's type, as Config.kv_dtype.

        least: pages to be content with on a GPU, where others may have taken memory meanwhile; 0 for all of them.
        graphs, rows: see Forward. Raises LoadError: memory, when the pages do not fit; kv_dtype.
        """
        spec, dtype, device = model.spec, kv_dtype(kv, model.dtype, model.device), model.device
        pool, note = allocate_most(spec, pages, least or pages, page_size, dtype, device, device.type != "cpu")
        return cls(Forward(model, pool, graphs=graphs, rows=rows), Sampler(spec.vocab), [note] if note else [])

    @torch.inference_mode()
    def launch(self, plan: Plan, before: Pending | None = None) -> Pending:
        """Start the forward of a plan. before: the step before, sampled, where rows come after its draws.

        Raises ValueError for a plan that contradicts itself.
        """
        return Pending(plan, self._forward.run(plan, None if before is None else before.drawn), self._sampler)


def pick_device(wanted: str) -> str:
    """cpu or cuda from auto | cpu | cuda. auto is the CPU: no GPU has run these kernels yet; who asks for one gets it.

    Raises LoadError (device) when cuda is asked for and not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise LoadError("device", "device=cuda was asked for and torch finds no such device; use device=cpu")
    return "cpu" if wanted == "auto" else wanted


def set_threads(threads: int) -> None:
    """CPU threads of torch's operations in this process."""
    torch.set_num_threads(threads)


def _places(rows: Sequence[Row]) -> list[Row]:
    """A row for every draw: after a guess, the row as it will be if the guess comes true."""
    places = []
    for row in rows:
        if row.shape is None:
            continue
        places.append(row)
        guesses = row.ids[len(row.ids) - row.draft :]
        for n in range(1, row.draft + 1):
            history = [*row.answer_history, *guesses[:n]] if row.prompt_history else ()
            places.append(msgspec.structs.replace(row, position=row.position + n, answer_history=history))
    return places


def _outcome(row: Row, draws: Sequence[Draw], known: Sequence[TokenScore], state: bytes = b"") -> Drawn:
    tokens = [draw.token for draw in draws]
    if row.draft:
        tokens = tokens[: verified(row.ids[len(row.ids) - row.draft :], tokens)]
    fault = draws[len(tokens) - 1].fault if tokens else ""
    if fault:
        tokens.pop()
    scores = tuple(draw.score for draw in draws[: len(tokens)] if draw.score is not None)
    return Drawn(tuple(tokens), scores, tuple(known), fault, state)


def _top(known: Known) -> int:
    return known.top


def _chunk(known: Known) -> int:
    return known.place // SCORES_AT_ONCE
