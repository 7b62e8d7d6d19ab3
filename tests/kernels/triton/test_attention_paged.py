"""The GPU's attention against its definition in float64, in the interpreter; what no row owns is NaN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from branchwork.kernels.reference import attention as plain
from branchwork.kernels.triton import attention, attention_plan
from branchwork.kernels.triton.attention_plan import NEVER, Policy
from tests.kernels.triton.attention_cases import Case, case, trees

pytestmark = pytest.mark.interpreted

CLOSE = {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
soak = pytest.mark.soak
CUT = Policy(share_from=0, chunk=32)  # shares all that can be, and merges parts of one row
# decode, one token in all, page boundaries from both sides, whole and resumed prefill, no tokens, a long resumed chunk
ROWS = [(1, 1), (1, 40), (17, 17), (5, 33), (1, 16), (0, 5), (1, 17), (12, 50), (36, 70)]


def assert_equals(found: Tensor, exact: Tensor, dtype: torch.dtype, slack: float = 1.0) -> None:
    torch.testing.assert_close(found.double(), exact, rtol=CLOSE[dtype] * slack, atol=CLOSE[dtype] * slack)


def check(inputs: Case, window: int = 0, softcap: float = 0.0, policy: Policy = CUT, slack: float = 1.0) -> None:
    found = attention.paged_attention(*inputs.arguments(), window, softcap, policy)
    exact = plain.paged_attention(*inputs.wide().arguments(), window, softcap)
    assert found.is_contiguous() and found.dtype == inputs.q.dtype
    assert_equals(found, exact, inputs.q.dtype, slack)


@pytest.mark.parametrize(
    "dtype, group, dim, size, window",
    [
        (torch.float32, 1, 64, 1, 0),
        (torch.bfloat16, 4, 80, 4, 0),
        (torch.bfloat16, 8, 128, 16, 6),
        (torch.float16, 3, 64, 64, 20),
    ],
)
def test_ragged_rows_equal_the_definition(dtype: torch.dtype, group: int, dim: int, size: int, window: int) -> None:
    check(case(ROWS, dtype=dtype, group=group, dim=dim, size=size), window)


@pytest.mark.soak
@pytest.mark.parametrize("window", [0, 1, 20])
@pytest.mark.parametrize("size", [1, 4, 16, 64])
@pytest.mark.parametrize("dim", [64, 80, 128])
@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("dtype", CLOSE)
def test_the_grid_equals_the_definition(dtype: torch.dtype, group: int, dim: int, size: int, window: int) -> None:
    common = {3: (1, 20 // size), 7: (1, 32 // size), 8: (7, 48 // size)}
    check(case(ROWS, dtype=dtype, group=group, dim=dim, size=size, common=common), window)


@pytest.mark.parametrize("group, dim", [(32, 32), (1, 256), (6, 24)])
def test_any_number_of_heads_and_any_width_fits(group: int, dim: int) -> None:
    check(case([(1, 5), (3, 20)], group=group, kv_heads=1, dim=dim))


def test_a_single_row_of_a_single_token_is_its_value() -> None:
    inputs = case([(1, 1)], dtype=torch.bfloat16, group=2, size=16)
    found = attention.paged_attention(*inputs.arguments())
    value = inputs.v_pool[inputs.page_table[0, 0].long(), :, 0]
    assert torch.equal(found[0], value.repeat_interleave(2, 0))


def test_no_tokens_give_no_result() -> None:
    inputs = case([(0, 5), (0, 0)])
    assert attention.paged_attention(*inputs.arguments()).shape == (0, 8, 64)


# rows 0, 1, 2 begin alike, 1 and 2 go on alike, 4 and 5 are a group of their own; 6 is all of row 0's prefix
FORKS = [(1, 70), (2, 66), (1, 49), (1, 9), (1, 37), (3, 40), (1, 33)]
COMMON = {1: (0, 8), 2: (1, 12), 5: (4, 9), 6: (0, 8)}


@pytest.mark.parametrize(
    "dtype, window, softcap", [(torch.float32, 0, 0.0), (torch.bfloat16, 0, 5.0), (torch.float32, 30, 0.0)]
)
def test_shared_prefixes_merge_to_the_definition(dtype: torch.dtype, window: int, softcap: float) -> None:
    inputs = case(FORKS, dtype=dtype, common=COMMON)
    check(inputs, window, softcap)
    check(inputs, window, softcap, Policy(share_from=0))


def test_more_sharers_than_a_tile_holds_equal_the_definition() -> None:
    forks = [(1, 34 + i % 5) for i in range(20)]
    check(case(forks, group=8, kv_heads=1, dim=16, common=dict.fromkeys(range(1, 20), (0, 8))))


@pytest.mark.parametrize("softcap", [pytest.param(0.5, marks=soak), 30.0])
def test_a_softcap_bounds_the_scores(softcap: float) -> None:
    inputs = case(ROWS[:5])
    check(replace(inputs, q=inputs.q * 40), 0, softcap, slack=10)


@pytest.mark.parametrize(
    "dtype, window", [(torch.float32, 0), (torch.float32, 9), pytest.param(torch.bfloat16, 0, marks=soak)]
)
def test_trees_see_their_ancestors_only(dtype: torch.dtype, window: int) -> None:
    rows = [(1, 1), (7, 33), (17, 17), (0, 4), (36, 50), (3, 49)]
    inputs, ancestors = case(rows, dtype=dtype, group=2, common={5: (1, 6)}), trees(rows)
    found = attention.tree_attention(*inputs.arguments()[:6], ancestors, inputs.scale, window, policy=CUT)
    exact = plain.tree_attention(*inputs.wide().arguments()[:6], ancestors, inputs.scale, window)
    assert_equals(found, exact, dtype)


def test_a_tree_that_is_a_chain_is_causal() -> None:
    rows = [(5, 33), (64, 64), (66, 70)]
    inputs, ancestors = case(rows, group=2), trees(rows, branching=False)
    found = attention.tree_attention(*inputs.arguments()[:6], ancestors, inputs.scale, policy=CUT)
    assert_equals(found, plain.paged_attention(*inputs.wide().arguments(), 0), torch.float32)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=soak), torch.bfloat16, torch.float16])
@pytest.mark.parametrize("held", [torch.int8, torch.float8_e4m3fn])
def test_rows_of_bytes_are_decoded(held: torch.dtype, dtype: torch.dtype) -> None:
    inputs = case(FORKS, dtype=dtype, common=COMMON).held_as(held)
    check(inputs, slack=1.5)
    if held != torch.int8:  # the same bytes without their type
        as_bytes = replace(inputs, k_pool=inputs.k_pool.view(torch.uint8), v_pool=inputs.v_pool.view(torch.uint8))
        assert torch.equal(*(attention.paged_attention(*x.arguments()) for x in (inputs, as_bytes)))


def test_a_row_does_not_depend_on_its_batch_when_cut_at_fixed_places() -> None:
    inputs, fixed = case(FORKS, dtype=torch.bfloat16, common=COMMON), Policy(share_from=NEVER, chunk=32)
    together = attention.paged_attention(*inputs.arguments(), policy=fixed)
    alone = [attention.paged_attention(*inputs.row(r).arguments(), policy=fixed) for r in range(len(FORKS))]
    assert torch.equal(together, torch.cat(alone))


def test_tiles_without_tokens_and_tokens_without_parts_pad_a_launch() -> None:
    inputs = case(FORKS, common=COMMON)
    exact = attention.paged_attention(*inputs.arguments(), policy=CUT)
    tables = [x.numpy() for x in (inputs.cu_rows, inputs.kv_len)]
    plan = attention_plan.plan(
        list(inputs.page_table.numpy()), *tables, attention.shape_of(inputs.q, inputs.k_pool, 0), CUT
    )
    launches = tuple(part._replace(tiles=np.pad(part.tiles, ((0, 3), (0, 0)))) for part in plan.launches)
    padded = replace(
        plan, launches=launches, merged=np.pad(plan.merged, (0, 2)), cuts=np.pad(plan.cuts, (0, 2), "edge")
    )
    placed = attention.place(padded, inputs.q.device)
    assert torch.equal(attention.attend(*inputs.arguments()[:3], placed, inputs.scale), exact)
