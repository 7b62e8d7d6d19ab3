"""The memory behind KV pages: one key and one value tensor a layer, head-major pages.

Knows: torch, sizes. Must not know: who owns a page, requests, models.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from branchwork import kernels


class KVPool:
    """k[layer], v[layer]: [pages, kv_heads, page_size, row]. Slot s of page p holds one position's head vectors; a row
    is head_dim elements, of int8 8 more (see kernels.store_kv).

    scratch: one page more, of this number, behind the others: nobody's, for rows that only fill up a batch; None where
    there is none.
    Zeroed without being touched: the system gives memory to a page when it is first written.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        kv_heads: int,
        page_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        scratch: bool = False,
    ) -> None:
        self.pages = pages
        self.page_size = page_size
        self.scratch = pages if scratch else None
        shape = (pages + scratch, kv_heads, page_size, kernels.kv_row(head_dim, dtype))
        self.k: list[Tensor] = [_zeros(shape, dtype, device) for _ in range(layers)]
        self.v: list[Tensor] = [_zeros(shape, dtype, device) for _ in range(layers)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy leaves the zeroing to the system; torch.zeros writes, which for 4 GiB takes seconds and all of the memory
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def bytes_per_page(layers: int, kv_heads: int, page_size: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes that one page takes over all layers, keys and values together."""
    return 2 * layers * kv_heads * page_size * kernels.kv_row(head_dim, dtype) * dtype.itemsize
