"""Runs plans: launch computes a step's forward, collect draws tokens and brings the Result.

Knows: a model, its KV pool, a sampler. Must not know: requests beyond their rows, the tree, text.
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

from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.execution.inputs import Inputs, Known, Wanted
from branchwork.runtime.execution.memory import allocate, bytes_per_page, kv_dtype
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.plan import Drawn, Plan, Result, Row
from branchwork.runtime.sampling.logprobs import known_scores
from branchwork.runtime.sampling.sampler import Draw, Sampler
from branchwork.runtime.speculative.verify import verified
from branchwork.runtime.wire import TokenScore

__all__ = ["Draws", "Pending", "Runner", "bytes_per_page", "kv_dtype", "pick_device", "set_threads"]

SCORES_AT_ONCE = 256  # places whose logits exist at the same time: a whole prompt's would not fit (places x vocabulary)

Masks = Tensor | NDArray[np.int32]


class Draws(Protocol):
    """What the runner needs of sampling. logits float32 [N, V], one Row each, whose drafts do not matter."""

    def draw(
        self, logits: Tensor, rows: Sequence[Row], masks: Masks | None = None, masked: Sequence[int] | None = None
    ) -> list[Draw]: ...


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

        masked: which draws the masks belong to, counted over the plan's rows that have a shape, a drafted row as one
        draw per guess and one more; None for each of them.
        """
        plan, count = self._plan, len(self._wanted.drawing)
        draws: list[Draw] = []
        if count:
            logits = self._model.logits(self._hidden[:count])
            draws = self._sampler.draw(logits, _places(plan.rows), masks, masked)
        scores = self._scores() if self._wanted.known else {}
        results, at = [], 0
        for r, row in enumerate(plan.rows):
            end = at + (row.draft + 1 if row.shape is not None else 0)
            results.append(_outcome(row, draws[at:end], scores.get(r, ())))
            at = end
        return Result(plan.step, tuple(results))

    def _scores(self) -> dict[int, list[TokenScore]]:
        """Scores of known tokens by plan row, in the order of Wanted."""
        known, first = self._wanted.known, len(self._wanted.drawing)
        scores: dict[int, list[TokenScore]] = {}
        for chunk, run in groupby(known, key=_chunk):
            begin = first + chunk * SCORES_AT_ONCE
            logits = self._model.logits(self._hidden[begin : begin + SCORES_AT_ONCE])
            for top, same in groupby(run, key=_top):
                items = list(same)
                low, high = items[0].place % SCORES_AT_ONCE, items[-1].place % SCORES_AT_ONCE + 1
                rows = [item.place % SCORES_AT_ONCE - low for item in items]
                found = known_scores(logits[low:high], [item.token for item in items], top, rows)
                for item, score in zip(items, found, strict=True):
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
    def build(cls, model: Decoder, *, pages: int, page_size: int, kv: str = "auto") -> Runner:
        """kv: the pool's type, as Config.kv_dtype. Raises LoadError: memory, when the pages do not fit; kv_dtype."""
        pool = allocate(model.spec, pages, page_size, kv_dtype(kv, model.dtype, model.device), model.device)
        return cls(model, pool, Sampler(model.spec.vocab))

    def launch(self, plan: Plan) -> Pending:
        """Start the forward of a plan. Raises ValueError for a plan that contradicts itself."""
        step, wanted = self._inputs.build(plan)
        return Pending(plan, wanted, self._model, self._model.hidden(step, self._pool), self._sampler)


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


def _outcome(row: Row, draws: Sequence[Draw], known: Sequence[TokenScore]) -> Drawn:
    tokens = [draw.token for draw in draws]
    if row.draft:
        tokens = tokens[: verified(row.ids[len(row.ids) - row.draft :], tokens)]
    fault = draws[len(tokens) - 1].fault if tokens else ""
    if fault:
        tokens.pop()
    scores = tuple(draw.score for draw in draws[: len(tokens)] if draw.score is not None)
    return Drawn(tuple(tokens), scores, tuple(known), fault)


def _top(known: Known) -> int:
    return known.top


def _chunk(known: Known) -> int:
    return known.place // SCORES_AT_ONCE
