"""Rows of an embedding table, for GPUs.

Knows: Triton. Must not know: vocabularies, which chip this is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.table import chip
from branchwork.kernels.triton.language import available, blocks, jit, tl, why
from branchwork.kernels.triton.tuning import Specimen, launch

__all__ = ["SPECIMENS", "available", "embedding", "why"]


@jit
def embedding_kernel(ids, table, out, table_t, size, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = col < size
    row = tl.load(ids + token).to(tl.int64)
    tl.store(out + token * size + col, tl.load(table + row * table_t + col, mask=live, other=0.0), mask=live)


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """As `kernels.embedding`. An id outside the table is not noticed: whoever takes ids from users checks them."""
    size = table.shape[1]
    out = torch.empty((ids.shape[0], size), dtype=table.dtype, device=table.device)
    if out.numel():
        row = launch("embedding", chip(table.device))
        embedding_kernel[(ids.shape[0], blocks(size, row["BLOCK"]))](ids, table, out, table.stride(0), size, **row)
    return out


SPECIMENS = [
    Specimen(
        "embedding",
        embedding_kernel,
        {"ids": "*i64", "table": "*bf16", "out": "*bf16", "table_t": "i32:16", "size": "i32:16"},
        {},
        ("embedding", ""),
    )
]
