"""Inputs of paged attention for tests: ragged rows over shuffled pages, with common prefixes, odd strides and poison.

Knows: the page layout. Must not know: kernels, plans.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from branchwork.kernels.reference.kv import as_rows

NOWHERE = 2**30  # a page number that must not be followed


@dataclass(frozen=True)
class Case:
    """The arguments of kernels.paged_attention but window. Slots that no row owns hold NaN."""

    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    page_table: Tensor
    cu_rows: Tensor
    kv_len: Tensor
    scale: float

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]:
        return self.q, self.k_pool, self.v_pool, self.page_table, self.cu_rows, self.kv_len, self.scale

    def wide(self) -> Case:
        """In float64, but for what is no float."""
        pools = [p.double() if p.is_floating_point() else p for p in (self.k_pool, self.v_pool)]
        return replace(self, q=self.q.double(), k_pool=pools[0], v_pool=pools[1])

    def row(self, r: int) -> Case:
        """Row r alone."""
        begin, end = self.cu_rows[r : r + 2].tolist()
        return replace(
            self,
            q=self.q[begin:end],
            page_table=self.page_table[r : r + 1].clone(),
            cu_rows=torch.tensor([0, end - begin], dtype=torch.int32),
            kv_len=self.kv_len[r : r + 1].clone(),
        )

    def held_as(self, dtype: torch.dtype) -> Case:
        """With its pools as int8 rows, or as e4m3 numbers."""
        if dtype == torch.int8:
            pools = [as_rows(pool.nan_to_num(), dtype) for pool in (self.k_pool, self.v_pool)]
        else:
            pools = [pool.to(dtype) for pool in (self.k_pool, self.v_pool)]
        return replace(self, k_pool=pools[0], v_pool=pools[1])


def case(
    rows: list[tuple[int, int]],
    *,
    dtype: torch.dtype = torch.float32,
    group: int = 4,
    kv_heads: int = 2,
    dim: int = 64,
    size: int = 4,
    common: dict[int, tuple[int, int]] | None = None,
    seed: int = 0,
) -> Case:
    """rows: (tokens of the step, positions after it). common[r] = (other, pages): row r begins with the first pages of
    an earlier row. q is cut from a fused product, the pools from one tensor of two layers."""
    torch.manual_seed(seed)
    counts = [-(-length // size) for _, length in rows]
    stock = iter(torch.randperm(sum(counts) + 3).tolist())
    both = torch.full((2, sum(counts) + 3, 2, kv_heads, size, dim), torch.nan, dtype=dtype)
    k_pool, v_pool = both[1, :, 0], both[1, :, 1]
    table = torch.full((len(rows), max(counts) + 1), NOWHERE, dtype=torch.int32)
    for r, (_, length) in enumerate(rows):
        other, pages = (common or {}).get(r, (0, 0))
        table[r, :pages] = table[other, :pages]
        for i in range(pages, counts[r]):
            table[r, i] = next(stock)
            here = min(size, length - i * size)
            for pool in (k_pool, v_pool):
                pool[table[r, i], :, :here] = uniform(kv_heads, here, dim, dtype=dtype)
    tokens = sum(n for n, _ in rows)
    q = uniform(tokens, group * kv_heads + 2, dim, dtype=dtype)[:, 1:-1] * 3
    cu_rows = torch.tensor([0, *(n for n, _ in rows)]).cumsum(0).int()
    return Case(q, k_pool, v_pool, table, cu_rows, torch.tensor([x for _, x in rows], dtype=torch.int32), dim**-0.5)


def trees(rows: list[tuple[int, int]], branching: bool = True, seed: int = 0) -> Tensor:
    """A random tree over each row's last 64 tokens, or a chain: the ancestors of kernels' tree_attention. [T, 2]."""
    chance = random.Random(seed)
    words: list[int] = []
    for n, _ in rows:
        tree: list[int] = []
        for i in range(min(n, 64)):
            parent = (chance.randrange(-1, i) if branching else i - 1) if i else -1
            tree.append((tree[parent] if parent >= 0 else 0) | 1 << i)
        words += [0] * (n - len(tree)) + tree
    halves = [[word & 0xFFFFFFFF, word >> 32] for word in words]
    return torch.from_numpy(np.array(halves, np.uint32).reshape(-1, 2).view(np.int32))


def uniform(*shape: int, dtype: torch.dtype) -> Tensor:
    return (torch.rand(shape) * 2 - 1).to(dtype)
