"""The hands of an encoder: a plan's rows are whole texts, and what comes of a row is its states.

Knows: an encoder, inputs. Must not know: requests beyond their rows, caches, sampling.
"""

from __future__ import annotations

import torch

from branchwork.runtime.execution.forward import Computed
from branchwork.runtime.execution.inputs import Wanted, whole
from branchwork.runtime.execution.runner import Pending
from branchwork.runtime.models.bert import Encoder
from branchwork.runtime.plan import Plan


class EncodingRunner:
    """Computes one plan after the other; rows draw nothing and have no pages."""

    def __init__(self, model: Encoder) -> None:
        self._model = model

    @torch.inference_mode()
    def launch(self, plan: Plan, before: Pending | None = None) -> Pending:
        """Start the forward of a plan. Raises ValueError for rows that are no whole texts."""
        texts = whole(plan, self._model.device)
        hidden = self._model.hidden(texts.ids, texts.positions, texts.lengths)
        return Pending(plan, Computed(Wanted((), (), texts.states), None, hidden), None)
