"""One step's inputs as tensors: what a model's forward reads besides its weights and the KV pool.

Knows: tensors. Must not know: requests, plans, who made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """T tokens in R rows; L places whose logits are wanted. All on the model's device.

    ids, positions int64 [T]; cu_rows int32 [R + 1]: row r owns tokens cu_rows[r] .. cu_rows[r + 1] - 1.
    kv_len int32 [R]: positions of the row once this step's KV is written.
    page_table int32 [R, maxpages]: page of positions p // page size; not read past a row's own pages.
    slots int64 [T]: where each token's KV goes, page * page size + offset.
    logits_index int64 [L]: tokens whose logits are wanted, in any order, repeats allowed.
    plans: window -> what attention of these rows was planned to be, where it is planned; page_table is [R, 0] then.
    """

    ids: Tensor
    positions: Tensor
    cu_rows: Tensor
    kv_len: Tensor
    page_table: Tensor
    slots: Tensor
    logits_index: Tensor
    plans: Mapping[int, Any] = field(default_factory=dict)
