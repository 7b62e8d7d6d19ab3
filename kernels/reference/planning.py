"""What attention plans on the host before a step, where it plans: the seam between who has page lists and who reads KV.

Knows: numpy arrays of page numbers and lengths, tensors that hold them. Must not know: requests, how work is divided.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.int32]


class PagedRows(NamedTuple):
    """R rows of a step on the host. pages[r]: int32, page of positions p // page size; cu_rows int32 [R + 1], kv_len
    int32 [R] as `kernels.paged_attention` takes them.

    keys: of each row, no two alike. While a row keeps its key from step to step, its pages only grow at their end.
    """

    keys: Sequence[int]
    pages: Sequence[Words]
    cu_rows: Words
    kv_len: Words


class HostPlan(Protocol):
    """A step's attention as arrays of the host. key: what its launches depend on beside the arrays' contents."""

    @property
    def key(self) -> Hashable: ...

    @property
    def arrays(self) -> Sequence[Words | Sequence[Words]]:
        """All int32; a sequence of them is to be joined. The last one's length alone varies among fitted plans."""

    def fitted(self) -> HostPlan | None:
        """Of rows that decode: padded, so that its arrays are as long as those of any other with its key and number of
        tokens. None where it holds too much."""

    def placed(self, tensors: Sequence[Tensor]) -> Mapping[int, Any]:
        """window -> plan= of paged_attention. tensors: the arrays on the device, each beginning at 16 bytes."""


class AttentionPlanner(Protocol):
    """Plans steps, one after the other, for all of a model's layers."""

    def plan(self, rows: PagedRows, ancestors: Words | None = None) -> HostPlan:
        """ancestors int32 [T, 2]: as tree_attention takes them. Raises ValueError for rows that cannot be."""


def attention_planner(
    heads: int,
    kv_heads: int,
    dim: int,
    page_size: int,
    dtype: torch.dtype,
    windows: Sequence[int],
    device: torch.device,
) -> AttentionPlanner | None:
    """None: attention reads its tables where they are."""
    return None
