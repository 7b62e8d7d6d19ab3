"""Keys and values as int8 rows, and rows that share pages: what is stored and read, and that company changes no bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from branchwork.kernels import table
from branchwork.kernels.cpu import native
from branchwork.kernels.reference import attention as reference
from branchwork.kernels.reference import kv

WIDTHS = [16, 8, 4] if native.available else [0]
ENTRIES = {op: table.TABLE[op]["cpu"] for op in ("store_kv", "rope_store_kv", "paged_attention")}
PAGES, HEADS, KV_HEADS = 900, 8, 2


@pytest.fixture(params=WIDTHS, autouse=True)
def width(request: pytest.FixtureRequest) -> Iterator[None]:
    if native.available and native.vector_width(request.param) != request.param:
        pytest.skip(f"this processor has no vectors of {request.param} floats")
    yield
    if native.available:
        native.vector_width(0)


def here(op: str) -> list[Any]:
    return [table.load(entry) for entry in ENTRIES[op] if not table.why_missing(entry)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def int8_pools(size: int, dim: int) -> list[Tensor]:
    return [torch.full((PAGES, KV_HEADS, size, dim + kv.ROW_TAIL), 99, dtype=torch.int8) for _ in "kv"]


class Tree:
    """Rows over pages of which some are common, on int8 pools or pools of the type itself."""

    def __init__(self, paths: list[list[int]], new: list[int], dim: int, dtype: torch.dtype, kv8: bool, size: int = 1):
        """paths: each row's pages; new: how many tokens of a row are of this step."""
        pools = [normal(PAGES, KV_HEADS, size, dim, seed=seed).to(dtype) for seed in (1, 2)]
        self.k, self.v = (kv.as_rows(pool, torch.int8) if kv8 else pool for pool in pools)
        lengths = [len(path) * size for path in paths]
        self.table = torch.full((len(paths), max(map(len, paths))), 2**30, dtype=torch.int32)
        for r, path in enumerate(paths):
            self.table[r, : len(path)] = torch.tensor(path)
        self.new, self.length = new, torch.tensor(lengths, dtype=torch.int32)
        self.cuts = [0, *torch.tensor(new).cumsum(0).tolist()]
        self.q = normal(self.cuts[-1], HEADS, dim, seed=3).to(dtype)

    def run(self, attend: Any, rows: list[int] | None = None) -> Tensor:
        rows = list(range(len(self.new))) if rows is None else rows
        q = torch.cat([self.q[self.cuts[r] : self.cuts[r + 1]] for r in rows])
        cu = torch.tensor([0, *(self.new[r] for r in rows)]).cumsum(0).int()
        out: Tensor = attend(q, self.k, self.v, self.table[rows], cu, self.length[rows], 0.125, 0)
        return out


def branches() -> list[list[int]]:
    """Forks at several depths, on and off the edges of a block of 32, and a row that shares nothing."""
    stock = iter(range(PAGES))

    def grown(path: list[int], count: int) -> list[int]:
        return [*path, *(next(stock) for _ in range(count))]

    root = grown([], 100)
    left, right = grown(root, 32), grown(root, 45)
    leaves = [grown(left, n) for n in (1, 3, 40)] + [grown(right, n) for n in (2, 7)] + [root, left]
    twigs = [grown(leaves[2], n) for n in (1, 1, 5, 64)]
    return [*leaves, *twigs, grown([], 70)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "dim"), [(1, 64), (4, 16), (16, 40)])
def test_every_implementation_stores_the_same_bytes(size: int, dim: int, dtype: torch.dtype) -> None:
    k, v = (normal(9, KV_HEADS, dim, seed=seed).to(dtype) for seed in (4, 5))
    k[3] = 0
    slots = torch.randperm(PAGES * size, generator=torch.Generator().manual_seed(6))[:9]
    expected = int8_pools(size, dim)
    kv.store_kv(k, v, *expected, slots)
    for store in here("store_kv"):
        pools = int8_pools(size, dim)
        store(k, v, *pools, slots)
        for pool, other in zip(pools, expected, strict=True):
            assert torch.equal(pool[..., : dim + 4], other[..., : dim + 4])


def test_rotated_keys_are_stored_as_rope_and_store_would() -> None:
    q, k, v = (normal(9, heads, 64, seed=heads).bfloat16() for heads in (HEADS, KV_HEADS, KV_HEADS))
    angles, slots = normal(9, 32, seed=8), torch.randperm(PAGES)[:9]
    expected = int8_pools(1, 64)
    kv.rope_store_kv(q, k, v, angles.cos(), angles.sin(), *expected, slots)
    for store in here("rope_store_kv"):
        pools = int8_pools(1, 64)
        store(q, k, v, angles.cos(), angles.sin(), *pools, slots)
        for pool, other in zip(pools, expected, strict=True):  # one bit of a bfloat16 may have moved in the rotation
            a, b = (kv.vectors(rows[slots], torch.float32) for rows in (pool, other))
            torch.testing.assert_close(a, b, rtol=0, atol=0.05)


def test_an_element_comes_back_within_half_a_step() -> None:
    x = normal(50, KV_HEADS, 64) * torch.logspace(-6, 6, 50)[:, None, None]
    rows = kv.as_rows(x, torch.int8)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((kv.vectors(rows, torch.float32) - x).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("kv8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "dim"), [(1, 64), (1, 128), (4, 40), (16, 16)])
def test_rows_that_fork_at_several_depths_equal_the_reference(
    size: int, dim: int, dtype: torch.dtype, kv8: bool
) -> None:
    paths = branches()
    tree = Tree(paths, [1, 1, 1, 1, 1, 1, 1, 1, 1, 5, 20, 1], dim, dtype, kv8, size)
    expected = tree.run(reference.paged_attention)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for attend in here("paged_attention"):
        torch.testing.assert_close(tree.run(attend), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not native.available, reason=native.why)
@pytest.mark.parametrize("kv8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("copies", [1, 3])
def test_rows_of_a_group_give_the_bits_that_each_gives_alone(copies: int, dtype: torch.dtype, kv8: bool) -> None:
    attend = here("paged_attention")[0]
    paths = branches() * copies  # a row several times: more queries at one block than fit the registers
    tree = Tree(paths, [1] * len(paths), 64, dtype, kv8)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            together = tree.run(attend)
            for r in range(len(paths)):
                assert torch.equal(together[r], tree.run(attend, [r])[0]), r
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not native.available, reason=native.why)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_a_prompt_over_int8_pools_may_be_cut_anywhere(chunk: int, dtype: torch.dtype) -> None:
    attend = here("paged_attention")[0]
    whole = Tree([list(range(150))], [150], 64, dtype, True)
    together = whole.run(attend)
    for begin in range(0, 150, chunk):
        end = min(begin + chunk, 150)
        part = Tree([list(range(end))], [end - begin], 64, dtype, True)
        part.q = whole.q[begin:end]
        assert torch.equal(part.run(attend), together[begin:end])


@pytest.mark.parametrize("which", ["k", "v"])
def test_nan_in_a_stored_vector_reaches_the_answer(which: str) -> None:
    for attend in here("paged_attention"):
        tree = Tree([list(range(40))], [1], 64, torch.bfloat16, True)
        pool, x = getattr(tree, which), normal(1, KV_HEADS, 64)
        x[0, 0, 5] = torch.nan
        here("store_kv")[0](x.bfloat16(), x.bfloat16(), pool, pool.clone(), torch.tensor([17]))
        out = tree.run(attend)
        assert out[0, :4].isnan().any()
        assert out[0, 4:].isfinite().all()


@pytest.mark.skipif(not native.available, reason=native.why)
def test_int8_pools_of_another_width_are_refused() -> None:
    attend = here("paged_attention")[0]
    tree = Tree([list(range(40))], [1], 64, torch.bfloat16, True)
    tree.k = tree.v = torch.zeros(PAGES, KV_HEADS, 1, 64, dtype=torch.int8)
    with pytest.raises(ValueError, match="does not fit pools"):
        tree.run(attend)
