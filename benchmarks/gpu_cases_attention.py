"""Attention cases: decode, extend, shared prefixes and draft trees, at the shapes of real models and at odd ones.

Knows: the page layout, torch's own attention. Must not know: how time is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpu_case import Aim, Case, normal
from torch import Tensor

from branchwork.kernels.reference import attention as plain
from branchwork.kernels.reference.kv import as_rows
from branchwork.kernels.triton import attention, attention_plan
from branchwork.kernels.triton.attention_plan import NEVER, Policy

ALONE = Policy(share_from=NEVER)
POOLS = {"": None, "int8": torch.int8, "e4m3": torch.float8_e4m3fn}


class Shape(NamedTuple):
    """rows: (tokens of the step, positions after it). common: positions that all rows begin with. pool: of POOLS.
    spare: pages in front of the pool that no row reads."""

    rows: tuple[tuple[int, int], ...]
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    size: int = 16
    common: int = 0
    window: int = 0
    softcap: float = 0.0
    pool: str = ""
    tree: bool = False
    spare: int = 0

    @property
    def held(self) -> int:
        """Positions whose keys and values are read, common ones once."""
        own = [min(length, n + self.window) if self.window else length for n, length in self.rows]
        return sum(own) - self.common * (len(self.rows) - 1)

    @property
    def pairs(self) -> int:
        """Queries times the keys that they see."""
        total = 0
        for n, length in self.rows:
            seen = range(length - n + 1, length + 1)
            total += sum(min(x, self.window) for x in seen) if self.window else (seen[0] + seen[-1]) * n // 2
        return total

    def moved(self, item: int) -> float:
        row = {"": self.dim * item, "int8": self.dim + 8, "e4m3": self.dim}[self.pool]
        return 2 * self.held * self.kv_heads * row + 2 * sum(n for n, _ in self.rows) * self.heads * self.dim * item


class Paged(NamedTuple):
    """The arguments of kernels.paged_attention, with the plan that an engine makes on the host before a step."""

    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    page_table: Tensor
    cu_rows: Tensor
    kv_len: Tensor
    ancestors: Tensor | None
    plan: attention.Placed | None = None


def made(shape: Shape, device: torch.device, dtype: torch.dtype) -> Paged:
    """Shuffled pages; rows share the pages of their common positions."""
    first = shape.common // shape.size
    counts = [-(-length // shape.size) for _, length in shape.rows]
    total = sum(counts) - first * (len(counts) - 1)
    stock = torch.randperm(total, generator=torch.Generator().manual_seed(1)).int() + shape.spare
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    at = first
    for r, count in enumerate(counts):
        table[r, :first] = stock[:first]
        table[r, first:count] = stock[at : at + count - first]
        at += count - first
    tokens = sum(n for n, _ in shape.rows)
    pools = [normal(device, dtype, shape.spare + total, shape.kv_heads, shape.size, shape.dim, seed=s) for s in (2, 3)]
    held = POOLS[shape.pool]
    if held is not None:
        pools = [as_rows(pool, held) if held == torch.int8 else pool.to(held) for pool in pools]
    cuts = torch.tensor([0, *(n for n, _ in shape.rows)]).cumsum(0).int()
    paged = Paged(
        normal(device, dtype, tokens, shape.heads, shape.dim, seed=4),
        pools[0],
        pools[1],
        table.to(device),
        cuts.to(device),
        torch.tensor([length for _, length in shape.rows], dtype=torch.int32, device=device),
        _binary(shape).to(device) if shape.tree else None,
    )
    return paged._replace(plan=planned(paged, shape))


def planned(x: Paged, shape: Shape, policy: Policy = Policy()) -> attention.Placed:  # noqa: B008 (frozen)
    """Its plan, on its device."""
    table, cuts, length = (tensor.cpu().numpy() for tensor in (x.page_table, x.cu_rows, x.kv_len))
    words = None if x.ancestors is None else x.ancestors.cpu().numpy()
    of = attention.shape_of(x.q, x.k_pool, shape.window)
    return attention.place(attention_plan.plan(list(table), cuts, length, of, policy, words), x.q.device)


def _binary(shape: Shape) -> Tensor:
    """Every row's tokens, 64 at most, as a binary tree: node i under node (i - 1) // 2. int32 [T, 2]."""
    words: list[list[int]] = []
    for n, _ in shape.rows:
        seen: list[int] = []
        for i in range(n):
            seen.append((seen[(i - 1) // 2] if i else 0) | 1 << i)
        words += [[bits & 0xFFFFFFFF, bits >> 32] for bits in seen]
    return torch.tensor(words, dtype=torch.int64).to(torch.uint32).view(torch.int32)


def ours(x: Paged, shape: Shape) -> Tensor:
    rest: dict[str, Any] = {"softcap": shape.softcap, "plan": x.plan}
    if x.ancestors is None:
        return attention.paged_attention(*x[:6], shape.dim**-0.5, shape.window, **rest)
    return attention.tree_attention(*x[:7], shape.dim**-0.5, shape.window, **rest)


def exact(x: Paged, shape: Shape) -> Tensor:
    """The definition in float64, a key head at a time: the scores of all of them would not fit."""
    group, parts = shape.heads // shape.kv_heads, []
    rest = (shape.dim**-0.5, shape.window, shape.softcap)
    for head in range(shape.kv_heads):
        pools = [pool[:, head : head + 1] for pool in (x.k_pool, x.v_pool)]
        pools = [pool if pool.dtype == torch.int8 else pool.double() for pool in pools]
        q = x.q[:, head * group : (head + 1) * group].double()
        tables = (x.page_table, x.cu_rows, x.kv_len)
        if x.ancestors is None:
            parts.append(plain.paged_attention(q, *pools, *tables, *rest))
        else:
            parts.append(plain.tree_attention(q, *pools, *tables, x.ancestors, *rest))
    return torch.cat(parts, 1)


def case(
    name: str, shape: Shape, *rows: str, aims: tuple[Aim, ...] = (), dtypes: str = "bf16", flex: bool = False
) -> Case:
    """rivals: SDPA where rows are alike, FlexAttention if asked for, our own call without sharing if rows share."""
    rivals: dict[str, Callable[[Paged], Callable[[], object]]] = {}
    if len(set(shape.rows)) == 1 and not (shape.common or shape.tree or shape.window or shape.pool or shape.softcap):
        rivals["SDPA"] = partial(_sdpa, shape=shape)
        if flex:
            rivals["FlexAttention"] = partial(_flex, shape=shape)
    if shape.common:
        rivals["plain paged"] = lambda x: partial(ours, x._replace(plan=planned(x, shape, ALONE)), shape)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    operations = 4 * shape.pairs * shape.heads * shape.dim
    return Case(
        name,
        partial(made, shape),
        partial(ours, shape=shape),
        partial(exact, shape=shape),
        shape.moved,
        operations,
        tuple(kinds[kind] for kind in dtypes.split()),
        rows=tuple(f"attend.{row}" for row in rows) + ("merge",),
        rivals=rivals,
        aims=aims,
    )


def _dense(x: Paged, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """q [R, H, n, D], k and v [R, KVH, L, D] as torch wants them; its copy is not timed."""
    rows, (n, length) = len(shape.rows), shape.rows[0]
    q = x.q.view(rows, n, shape.heads, shape.dim).transpose(1, 2).contiguous()
    pages = x.page_table[:, : -(-length // shape.size)].long()
    kv = [
        pool[pages].transpose(2, 3).reshape(rows, -1, shape.kv_heads, shape.dim)[:, :length].transpose(1, 2)
        for pool in (x.k_pool, x.v_pool)
    ]
    return q, kv[0].contiguous(), kv[1].contiguous()


def _sdpa(x: Paged, shape: Shape) -> Callable[[], object]:
    q, k, v = _dense(x, shape)
    n, length = shape.rows[0]
    mask = None
    if 1 < n < length:
        mask = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n)
    return lambda: F.scaled_dot_product_attention(q, k, v, mask, is_causal=n == length > 1, enable_gqa=True)


def _flex(x: Paged, shape: Shape) -> Callable[[], object]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = _dense(x, shape)
    n, length = shape.rows[0]

    def causal(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return row + (length - n) >= column

    mask = create_block_mask(causal, None, None, n, length, device=q.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def timed() -> list[Case]:
    """Shapes of 8B Llamas (32/8 heads of 128) and 1B ones (32/8 heads of 64)."""
    one = ((1, 8192),)
    return [
        case("decode 64 x 8k", Shape(one * 64), "16x128", aims=(Aim("roofline", 0.85),)),
        case("decode 1 x 8k", Shape(one), "16x128"),
        case("decode 256 x 1k", Shape(((1, 1024),) * 256), "16x128"),
        case("decode 64 x 4k, heads of 64", Shape(((1, 4096),) * 64, dim=64), "16x128"),
        case("decode 64 x 8k, int8 KV", Shape(one * 64, pool="int8"), "16x128"),
        case("decode 64 x 8k, e4m3 KV", Shape(one * 64, pool="e4m3"), "16x128"),
        case("decode 32 x 4k, heads of 256", Shape(((1, 4096),) * 32, 16, 8, 256), "16x256"),
        case(
            "extend 8k",
            Shape(((8192, 8192),)),
            "128x128",
            aims=(Aim("roofline", 0.6), Aim("FlexAttention", 0.9)),
            flex=True,
        ),
        case("extend 2k after 6k", Shape(((2048, 8192),)), "128x128", flex=True),
        case("extend 4 x 2k, int8 KV", Shape(((2048, 2048),) * 4, pool="int8"), "128x128"),
        case(
            "shared prefix, 128 x (16k + 256)",
            Shape(((1, 16640),) * 128, common=16384),
            "16x128",
            "64x128",
            "128x128",
            aims=(Aim("plain paged", 8.0),),
        ),
        case("verify 32 trees of 16 over 4k", Shape(((16, 4096),) * 32, tree=True), "64x128"),
        case("decode 64 x 8k, window 1k", Shape(one * 64, window=1024), "16x128"),
    ]


def edges() -> list[Case]:
    """Odd shapes: one token, page borders, groups of 1 and 7, windows, caps, trees, every kind of pool."""
    ragged = ((1, 1), (1, 16), (1, 17), (5, 5), (3, 700), (130, 333), (1, 2049))
    some = "bf16 fp16 fp32"
    return [
        case("ragged", Shape(ragged), "16x128", "64x128", "128x128", dtypes=some),
        case("ragged, pages of 1", Shape(ragged, size=1), "16x128", "64x128", "128x128"),
        case("ragged, pages of 64", Shape(ragged, size=64), "16x128", "64x128", "128x128"),
        case("ragged, group 1, heads of 80", Shape(ragged, 8, 8, 80), "16x128", "64x128", "128x128", dtypes=some),
        case("ragged, group 7, heads of 64", Shape(ragged, 14, 2, 64), "16x128", "64x128", "128x128"),
        case("ragged, heads of 256", Shape(ragged, 8, 4, 256), "16x256", "64x256", dtypes=some),
        case("ragged, window 33, cap 20", Shape(ragged, window=33, softcap=20.0), "16x128", "64x128", "128x128"),
        case("ragged, int8 KV", Shape(ragged, pool="int8"), "16x128", "64x128", "128x128", dtypes="bf16 fp16"),
        case("ragged, e4m3 KV", Shape(ragged, pool="e4m3"), "16x128", "64x128", "128x128", dtypes="bf16 fp16"),
        case("trees", Shape(((7, 7), (33, 100), (64, 900)), tree=True), "16x128", "64x128", "128x128", dtypes=some),
        case("shared, 40 rows", Shape(((1, 1100),) * 40, common=1024), "16x128", "64x128", "128x128", dtypes=some),
        case("numbers past 2**31", Shape(((1, 40), (3, 70)), spare=2**31 // (8 * 16 * 128)), "16x128"),
        case("shared trees", Shape(((8, 600),) * 9, common=512, tree=True), "64x128", "128x128"),
    ]


def tiny() -> list[Case]:
    """Both kinds, for Triton's interpreter."""
    few = {"heads": 4, "kv_heads": 2, "dim": 16, "size": 4}
    return [
        case("decode 2 x 9", Shape(((1, 9),) * 2, **few), "16x128f", dtypes="fp32"),
        case("extend 6", Shape(((6, 6),), **few), "16x128f", dtypes="fp32"),
        case("extend 3 after 5, window 4", Shape(((3, 8),), window=4, **few), "16x128f", dtypes="fp32"),
        case("shared, 6 x (64 + 3)", Shape(((1, 67),) * 6, common=64, **few), "16x128f", dtypes="fp32"),
        case("trees", Shape(((5, 9),) * 2, tree=True, **few), "16x128f", dtypes="fp32"),
        case("ragged, int8 KV", Shape(((1, 5), (3, 3)), 4, 2, 16, 4, pool="int8"), "16x128f", dtypes="fp32"),
    ]
