"""The forward of a plan: its inputs, the model, and the places whose logits are wanted.

Knows: a model, its KV pool, Inputs, Graphs. Must not know: sampling, requests beyond their rows, the tree.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence

from torch import Tensor

from branchwork import kernels
from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.execution.cuda import CudaDriver
from branchwork.runtime.execution.driver import Driver, PlainDriver
from branchwork.runtime.execution.feed import Feed, Local
from branchwork.runtime.execution.graphs import Graphs
from branchwork.runtime.execution.inputs import Gathered, Inputs, Wanted
from branchwork.runtime.execution.memory import graph_memory
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.plan import Plan, Row
from branchwork.runtime.wire import Shape

_FILLING = -(1 << 40)  # request numbers of rows that fill up a batch go down from here


class Computed:
    """What a forward leaves. Logits must be asked for before the next forward is launched.

    hidden: the last normed states at all places of `wanted`, [places, C], where it wants any. logits: None of a model
    that has none.
    """

    def __init__(
        self, wanted: Wanted, logits: Callable[[int, int], Tensor] | None, hidden: Tensor | None = None
    ) -> None:
        self.wanted = wanted
        self.hidden = hidden
        self._logits = logits

    def logits(self, first: int, last: int) -> Tensor:
        """Of the places first .. last - 1 of `wanted`, float32 [last - first, V]; may be written to."""
        assert self._logits is not None
        return self._logits(first, last)


class Forward:
    """Computes plans, one after the other, with one model and one pool. Never waits for the device but while it records
    a sort of step for the first time."""

    def __init__(
        self,
        model: Decoder,
        pool: KVPool,
        *,
        graphs: bool = False,
        rows: int = 256,
        driver: Driver | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """graphs: whether decoding steps of up to `rows` tokens, drafts included, are recorded, where attention is
        planned on the host; the pool must have a scratch page then. driver: of the model's device; note: hears of what
        could not be had.
        """
        a = model.spec.attention
        self._model = model
        self.pool = pool
        planner = kernels.attention_planner(
            a.heads, a.kv_heads, a.head_dim, pool.page_size, model.dtype, a.windows, model.device
        )
        on_host = model.device.type == "cpu"
        driver = driver or (PlainDriver() if on_host else CudaDriver(model.device))
        feed = Local() if on_host and planner is None else Feed(driver, model.device)
        self._inputs = Inputs(pool.page_size, model.device, planner, feed)
        self._graphs: Graphs | None = None
        self._filling: tuple[Row, ...] = ()
        if graphs and planner is not None:
            self._graphs = _graphs(driver, model, pool, rows, note or _print)
            self._filling = _filling(pool, rows)

    def run(self, plan: Plan, drawn: Tensor | None = None) -> Computed:
        """Start the forward of a plan. drawn: what the step before drew, for rows that come after one of its draws.

        Raises ValueError for a plan that contradicts itself.
        """
        graphs, tokens = self._graphs, _decoding(plan.rows)
        if graphs is None or not 0 < tokens <= graphs.sizes[-1]:
            return self._eager(self._inputs.gather(plan), drawn)
        size = graphs.sizes[bisect_left(graphs.sizes, tokens)]
        inputs = self._inputs.gather(Plan(plan.step, plan.rows + self._filling[: size - tokens]))
        logits = graphs.run(inputs, drawn)
        if logits is None:
            return self._eager(inputs, drawn, tokens)
        return Computed(_first(inputs.wanted, tokens), lambda first, last: logits[first:last])

    def _eager(self, inputs: Gathered, drawn: Tensor | None, draws: int | None = None) -> Computed:
        """draws: how many of them are anybody's, if not all."""
        model, step = self._model, self._inputs.send(inputs, drawn)
        hidden = model.hidden(step, self.pool)  # [drawing rows + known tokens, C]
        wanted = inputs.wanted if draws is None else _first(inputs.wanted, draws)
        return Computed(wanted, lambda first, last: model.logits(hidden[first:last]), hidden)


def _graphs(driver: Driver, model: Decoder, pool: KVPool, rows: int, note: Callable[[str], None]) -> Graphs:
    if pool.scratch is None:
        raise ValueError("recorded steps write what fills up a batch into a scratch page, and the pool has none")
    spec = model.spec
    allowance = graph_memory(spec, rows) - rows * spec.vocab * 4  # the logits are no part of a recording
    return Graphs(driver, model, pool, tokens=rows, allowance=allowance, note=note)


def _filling(pool: KVPool, rows: int) -> tuple[Row, ...]:
    """Rows that compute one token into the scratch page: they read it again, so that their numbers are finite."""
    assert pool.scratch is not None
    page, shape = [pool.scratch], Shape(temperature=0.0)
    return tuple(Row(_FILLING - i, 0, (0,), page, shape) for i in range(rows))


def _decoding(rows: Sequence[Row]) -> int:
    """Tokens of rows in which every token has a draw, those of guesses included; 0 where one has none."""
    tokens = 0
    for row in rows:
        if row.shape is None or len(row.ids) != row.draft + 1 or row.score_next:
            return 0
        tokens += row.draft + 1
    return tokens


def _first(wanted: Wanted, draws: int) -> Wanted:
    return Wanted(wanted.drawing[:draws], ())


def _print(line: str) -> None:
    print(f"engine: {line}", file=sys.stderr, flush=True)
