"""Plans a model's attention on the host, step after step, for kernels.triton.attention to launch without a look back.

Knows: shapes of a model's heads, the plans of attention_plan. Must not know: requests, how arrays reach a device.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from branchwork.kernels.reference.planning import PagedRows, Words
from branchwork.kernels.triton.attention import Placed, placed, shape_for
from branchwork.kernels.triton.attention_kin import Kinship
from branchwork.kernels.triton.attention_plan import Plan, Policy, Shape, fitted, plans
from branchwork.kernels.triton.language import available, why

__all__ = ["Planned", "Planner", "attention_planner", "available", "why"]


@dataclass(frozen=True, slots=True)
class Planned:
    """A HostPlan: one plan a window, in one order and with one list of pages."""

    shapes: tuple[Shape, ...]
    policy: Policy
    plans: tuple[Plan, ...]

    @property
    def key(self) -> Hashable:
        return tuple(plan.key for plan in self.plans)

    @property
    def arrays(self) -> list[Words | tuple[Words, ...]]:
        """Those of each plan but their pages, which come last."""
        return [*(array for plan in self.plans for array in plan.arrays[:-1]), self.plans[0].pages]

    def fitted(self) -> Planned | None:
        """See HostPlan."""
        padded = [fitted(plan, shape, self.policy) for plan, shape in zip(self.plans, self.shapes, strict=True)]
        whole = [plan for plan in padded if plan is not None]
        return Planned(self.shapes, self.policy, tuple(whole)) if len(whole) == len(padded) else None

    def placed(self, tensors: Sequence[Tensor]) -> Mapping[int, Placed]:
        """See HostPlan."""
        found: dict[int, Placed] = {}
        at = 0
        for shape, plan in zip(self.shapes, self.plans, strict=True):
            end = at + len(plan.arrays) - 1
            found[shape.window] = placed(plan, [*tensors[at:end], tensors[-1]])
            at = end
        return found


class Planner:
    """An AttentionPlanner. Remembers from step to step which rows begin alike."""

    def __init__(self, shapes: Sequence[Shape], policy: Policy = Policy()) -> None:  # noqa: B008 (frozen)
        """shapes: of one model, alike but for their windows."""
        self._shapes = tuple(shapes)
        self._policy = policy
        self._kinship = Kinship()

    def plan(self, rows: PagedRows, ancestors: Words | None = None) -> Planned:
        """See AttentionPlanner."""
        made = plans(
            rows.pages, rows.cu_rows, rows.kv_len, self._shapes, self._policy, ancestors, rows.keys, self._kinship
        )
        return Planned(self._shapes, self._policy, tuple(made))


def attention_planner(
    heads: int,
    kv_heads: int,
    dim: int,
    page_size: int,
    dtype: torch.dtype,
    windows: Sequence[int],
    device: torch.device,
) -> Planner:
    """As `kernels.attention_planner`."""
    distinct = dict.fromkeys(windows)
    return Planner([shape_for(heads, kv_heads, dim, page_size, dtype, window, device) for window in distinct])
