"""The forward of a plan: its inputs, the model, and the places whose logits are wanted.

Knows: a model, its KV pool, Inputs. Must not know: sampling, requests beyond their rows, the tree.
"""

from __future__ import annotations

from torch import Tensor

from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.execution.inputs import Inputs, Wanted
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.plan import Plan


class Computed:
    """What a forward leaves. Logits must be asked for before the next forward is launched."""

    def __init__(self, model: Decoder, hidden: Tensor, wanted: Wanted) -> None:
        self.wanted = wanted
        self._model = model
        self._hidden = hidden  # [drawing rows + known tokens, C]

    def logits(self, first: int, last: int) -> Tensor:
        """Of the places first .. last - 1 of `wanted`, float32 [last - first, V]."""
        return self._model.logits(self._hidden[first:last])


class Forward:
    """Computes plans, one after the other, with one model and one pool."""

    def __init__(self, model: Decoder, pool: KVPool) -> None:
        self._model = model
        self._pool = pool
        self._inputs = Inputs(pool.page_size, model.device)

    def run(self, plan: Plan, drawn: Tensor | None = None) -> Computed:
        """Start the forward of a plan. drawn: what the step before drew, for rows that come after one of its draws.

        Raises ValueError for a plan that contradicts itself.
        """
        step, wanted = self._inputs.build(plan, drawn)
        return Computed(self._model, self._model.hidden(step, self._pool), wanted)
