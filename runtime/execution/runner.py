"""Runs plans: launch computes a step's forward, collect draws tokens and brings the Result.

Knows: a model, its KV pool, a sampler. Must not know: requests beyond their rows, the tree, text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from branchwork import kernels
from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.execution.inputs import Inputs, Known, Wanted
from branchwork.runtime.execution.memory import allocate, bytes_per_page
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.plan import Drawn, Plan, Result, Row
from branchwork.runtime.sampling.logprobs import known_scores
from branchwork.runtime.sampling.sampler import Sampler
from branchwork.runtime.wire import TokenScore

__all__ = ["Draws", "Pending", "Runner", "bytes_per_page", "pick_device", "set_threads"]

SCORES_AT_ONCE = 256  # places whose logits exist at the same time: a whole prompt's would not fit (places x vocabulary)

Masks = Tensor | NDArray[np.int32]


class Draws(Protocol):
    """What the runner needs of sampling. logits float32 [N, V], one row of the plan each."""

    def draw(
        self, logits: Tensor, rows: Sequence[Row], masks: Masks | None = None, masked: Sequence[int] | None = None
    ) -> list[Drawn]: ...


class Pending:
    """A step under way. collect may be called once."""

    def __init__(self, plan: Plan, wanted: Wanted, model: Decoder, hidden: Tensor, sampler: Draws) -> None:
        self._plan = plan
        self._wanted = wanted
        self._model = model
        self._hidden = hidden  # [drawing rows + known tokens, C]
        self._sampler = sampler

    def collect(self, masks: Masks | None = None, masked: Sequence[int] | None = None) -> Result:
        """Draw and score. masks: bit = allowed, int32 [n, ceil(V / 32)], or None for all allowed.

        masked: which of the rows that have a shape the masks belong to, counted among those; None for each of them.
        Raises what the sampler raises for rows that have no token to draw.
        """
        plan, drawing = self._plan, self._wanted.drawing
        drawn: list[Drawn] = []
        if drawing:
            logits = self._model.logits(self._hidden[: len(drawing)])
            drawn = self._sampler.draw(logits, [plan.rows[r] for r in drawing], masks, masked)
        if len(drawing) == len(plan.rows) and not self._wanted.known:
            return Result(plan.step, tuple(drawn))
        by_row = dict(zip(drawing, drawn))
        scores = self._scores()
        results = []
        for r in range(len(plan.rows)):
            own = by_row.get(r, _NOTHING)
            known = scores.get(r)
            results.append(own if known is None else Drawn(own.token, own.score, tuple(known)))
        return Result(plan.step, tuple(results))

    def _scores(self) -> dict[int, list[TokenScore]]:
        """Scores of known tokens by plan row, in the order of Wanted."""
        known, first = self._wanted.known, len(self._wanted.drawing)
        scores: dict[int, list[TokenScore]] = {}
        for begin in range(0, len(known), SCORES_AT_ONCE):
            part = known[begin : begin + SCORES_AT_ONCE]
            logits = self._model.logits(self._hidden[first + begin : first + begin + len(part)])
            at = 0
            for top, run in groupby(part, key=_top):
                same = list(run)
                found = known_scores(logits[at : at + len(same)], [item.token for item in same], top)
                at += len(same)
                for item, score in zip(same, found):
                    scores.setdefault(item.row, []).append(score)
        return scores


class Runner:
    """The hands: one model, its KV pool, one sampler."""

    def __init__(self, model: Decoder, pool: KVPool, sampler: Draws) -> None:
        self._model = model
        self._pool = pool
        self._sampler = sampler
        self._inputs = Inputs(pool.page_size, model.device)

    @classmethod
    def build(cls, model: Decoder, *, pages: int, page_size: int) -> Runner:
        """Raises LoadError (memory) when the pages do not fit."""
        pool = allocate(model.spec, pages, page_size, model.dtype, model.device)
        return cls(model, pool, Sampler(model.spec.vocab))

    def launch(self, plan: Plan) -> Pending:
        """Start the forward of a plan. Raises ValueError for a plan that contradicts itself."""
        step, wanted = self._inputs.build(plan)
        return Pending(plan, wanted, self._model, self._model.hidden(step, self._pool), self._sampler)


def pick_device(wanted: str) -> str:
    """cpu or cuda from auto | cpu | cuda. auto leaves the CPU only for a device that the kernels serve at speed.

    Raises LoadError (device) when cuda is asked for and not there.
    """
    here = torch.cuda.is_available()
    if wanted == "cuda" and not here:
        raise LoadError("device", "device=cuda was asked for and torch finds no such device; use device=cpu")
    if wanted != "auto":
        return wanted
    attention = next(choice for choice in kernels.report("cuda") if choice.op == "paged_attention")
    return "cuda" if here and attention.chosen != "reference" else "cpu"


def set_threads(threads: int) -> None:
    """CPU threads of torch's operations in this process."""
    torch.set_num_threads(threads)


def _top(known: Known) -> int:
    return known.top


_NOTHING = Drawn()
