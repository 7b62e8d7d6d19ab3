"""Every implementation in the table computes what the reference computes, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from branchwork import kernels
from branchwork.kernels import table

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# draws are not tensors that are close: test_sample.py compares their law and their tokens; test_stack.py: a stack's
# definition is the model that runs op by op; test_experts.py: experts are packed for their products
ELSEWHERE = {"attention_planner", "pack_experts", "quantize", "sample", "stack"}
GRID = [
    pytest.param(op, device, entry, dtype, id=f"{op}-{device}-{entry.name}-{str(dtype)[6:]}")
    for op, kinds in table.TABLE.items()
    if op not in ELSEWHERE
    for device in DEVICES
    for entry in kinds[table.kind(device)]
    if entry.name != "reference"
    for dtype in TOLERANCE
]


def uniform(*shape: int, dtype: torch.dtype) -> Tensor:
    return (torch.rand(shape) * 2 - 1).to(dtype)


def norm(dtype: torch.dtype) -> list[list[Any]]:
    return [
        [uniform(5, 64, dtype=dtype), uniform(64, dtype=dtype), 1e-5],
        [uniform(3, 10, 16, dtype=dtype)[:, 2:6], uniform(16, dtype=dtype), 1e-6],  # heads cut from a fused product
    ]


def add_norm(dtype: torch.dtype) -> list[list[Any]]:
    return [[uniform(t, 48, dtype=dtype), uniform(t, 48, dtype=dtype), uniform(48, dtype=dtype), 1e-5] for t in (1, 6)]


def rotary(dtype: torch.dtype) -> list[list[Any]]:
    cases = []
    for heads, kv_heads, dim in ((4, 2, 16), (6, 6, 20), (3, 1, 64)):
        fused, angles = uniform(7, heads + 2 * kv_heads, dim, dtype=dtype), torch.rand(7, dim // 2) * 6
        cases.append([fused[:, :heads], fused[:, heads : heads + kv_heads], angles.cos(), angles.sin()])
    return cases


def gated(dtype: torch.dtype) -> list[list[Any]]:
    return [[uniform(t, 2 * f, dtype=dtype) * 4] for t, f in ((1, 8), (5, 40), (2, 33))]


def storing(dtype: torch.dtype) -> list[list[Any]]:
    cases = []
    for size in (1, 4, 16):
        fused, slots = uniform(9, 8, 16, dtype=dtype), torch.randperm(12 * size)[:9]
        pools = [uniform(12, 2, size, 16, dtype=dtype) for _ in "kv"]
        cases.append([fused[:, 4:6], fused[:, 6:], *pools, slots])
    return cases


def rotary_storing(dtype: torch.dtype) -> list[list[Any]]:
    cases = []
    for k, v, *rest in storing(dtype):
        angles = torch.rand(9, 8) * 6
        cases.append([uniform(9, 4, 16, dtype=dtype), k, v, angles.cos(), angles.sin(), *rest])
    return cases


def attention(dtype: torch.dtype) -> list[list[Any]]:
    """Decode rows, whole and resumed prefill rows side by side; pages shuffled; what no row owns is NaN."""
    rows = [(1, 1), (1, 40), (17, 17), (5, 33), (1, 7), (12, 64)]  # (tokens of the step, positions after it)
    cu_rows = torch.tensor([0, *(n for n, _ in rows)]).cumsum(0).int()
    kv_len = torch.tensor([length for _, length in rows]).int()
    cases = []
    for size, window in ((1, 0), (1, 6), (4, 0), (4, 6), (16, 0), (16, 6)):
        stock = iter(torch.randperm(200).tolist())
        page_table = torch.full((len(rows), -(-64 // size)), 2**30, dtype=torch.int32)
        pools = [torch.full((200, 2, size, 16), torch.nan, dtype=dtype) for _ in "kv"]
        for r, (_, length) in enumerate(rows):
            for position in range(length):
                if position % size == 0:
                    page_table[r, position // size] = next(stock)
                for pool in pools:
                    pool[page_table[r, position // size], :, position % size] = uniform(2, 16, dtype=dtype)
        q = uniform(int(cu_rows[-1]), 6, 16, dtype=dtype)
        cases.append([q, *pools, page_table, cu_rows, kv_len, 0.25, window])
    return cases


def verification(dtype: torch.dtype) -> list[list[Any]]:
    """The rows of `attention`, each a tree of two chains: a token sees every other one before it."""
    cases = []
    for *tensors, scale, window in attention(dtype):
        words = [sum(1 << j for j in range(i % 2, i + 1, 2)) for n in tensors[4].diff().tolist() for i in range(n)]
        cases.append([*tensors, torch.tensor([[word, 0] for word in words], dtype=torch.int32), scale, window])
    return cases


def product(dtype: torch.dtype) -> list[list[Any]]:
    sizes = ((1, 8, 16), (3, 40, 33), (6, 5, 64))
    return [
        [uniform(t, k, dtype=dtype), uniform(n, k, dtype=dtype), b]
        for t, n, k in sizes
        for b in (None, uniform(n, dtype=dtype))
    ]


def packing(dtype: torch.dtype) -> list[list[Any]]:
    return [[uniform(n, k, dtype=dtype)] for n, k in ((8, 16), (33, 40))]


def looking_up(dtype: torch.dtype) -> list[list[Any]]:
    return [[torch.tensor([4, 0, 4]), uniform(5, 70, dtype=dtype)]]


def masking(dtype: torch.dtype) -> list[list[Any]]:
    masks = torch.randint(-(2**31), 2**31, (2, 3), dtype=torch.int32)
    return [[uniform(4, 70, dtype=dtype), masks, torch.tensor([1, -1, 0, 1])]]


def penalising(dtype: torch.dtype) -> list[list[Any]]:
    return [[uniform(40, dtype=dtype), [3, 3, 5, 900], [5, 8, 901, 8], 0.3, 0.7, 1.2]]


def routing(dtype: torch.dtype) -> list[list[Any]]:
    return [[uniform(9, 60, dtype=dtype), 4, renormalize] for renormalize in (False, True)]


def expert_products(dtype: torch.dtype) -> list[list[Any]]:
    gains, experts = torch.rand(7, 2), torch.rand(7, 5).argsort(-1)[:, :2].int()
    weights = uniform(5, 48, 32, dtype=dtype) / 4, uniform(5, 32, 24, dtype=dtype) / 4
    return [[uniform(7, 32, dtype=dtype), *weights, gains, experts]]


CASES: dict[str, Callable[[torch.dtype], list[list[Any]]]] = {
    "rms_norm": norm,
    "add_rms_norm": add_norm,
    "rope": rotary,
    "silu_mul": gated,
    "gelu": gated,
    "gelu_mul": gated,
    "embedding": looking_up,
    "apply_mask": masking,
    "penalise": penalising,
    "route": routing,
    "expert_mlp": expert_products,
    "linear": product,
    "pack_linear": packing,
    "store_kv": storing,
    "rope_store_kv": rotary_storing,
    "paged_attention": attention,
    "tree_attention": verification,
}


@pytest.mark.parametrize("op, device, entry, dtype", GRID)
def test_implementation_equals_reference(op: str, device: str, entry: table.Entry, dtype: torch.dtype) -> None:
    if why := table.why_missing(entry):
        pytest.skip(why)
    reference = table.load(table.TABLE[op]["cpu"][-1])
    torch.manual_seed(0)
    for arguments in CASES[op](dtype):
        ours = [x.clone().to(device) if torch.is_tensor(x) else x for x in arguments]
        theirs = [x.clone() if torch.is_tensor(x) else x for x in arguments]
        found, expected = table.load(entry)(*ours), reference(*theirs)
        # pools are written in place, so arguments are compared as well as results
        close = TOLERANCE[dtype]
        torch.testing.assert_close(
            _tensors(found, ours), _tensors(expected, theirs), rtol=close, atol=close, equal_nan=True
        )
        assert not any(x.isnan().any() for x in _tensors(found, []))


def test_every_op_with_more_than_one_implementation_is_compared() -> None:
    several = {op for op, kinds in table.TABLE.items() if any(len(entries) > 1 for entries in kinds.values())}
    assert several == set(CASES) | ELSEWHERE


def _tensors(result: Any, arguments: list[Any]) -> list[Tensor]:
    results = result if isinstance(result, tuple) else (result,)
    return [x.to_dense().cpu() for x in (*results, *arguments) if isinstance(x, Tensor | kernels.Packed)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_a_product_does_not_depend_on_the_others(dtype: torch.dtype, threads: int) -> None:
    """To the bit, for packed weights and for plain ones."""
    torch.manual_seed(0)
    x, plain, bias = torch.randn(70, 96).to(dtype), torch.randn(200, 96).to(dtype), torch.randn(200).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for weight in (plain, kernels.pack_linear(plain)):
            alone = torch.cat([kernels.linear(row[None], weight, bias) for row in x])
            for count in range(71):
                first = 70 - count
                assert torch.equal(kernels.linear(x[first:], weight, bias), alone[first:]), f"{count} rows"
    finally:
        torch.set_num_threads(before)
