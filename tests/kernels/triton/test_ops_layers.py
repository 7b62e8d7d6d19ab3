"""Norms, rotations, activations, embeddings and KV writes of the GPU against their definitions, in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from branchwork.kernels.reference import activation as plain_activation
from branchwork.kernels.reference import kv as plain_kv
from branchwork.kernels.reference import norm as plain_norm
from branchwork.kernels.triton import activation, embedding, kv, norm, rope

pytestmark = pytest.mark.interpreted

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ULP = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}  # about one unit in the last place


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape) * 2 - 1).to(dtype)


def assert_rounded(found: Tensor, exact: Tensor, slack: float = 1.0) -> None:
    """found is float64 `exact` rounded to found's type, up to `slack` units in the last place."""
    close = ULP[found.dtype] * slack
    torch.testing.assert_close(found.double(), exact, rtol=close, atol=close * 1e-2)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, channels", [(1, 64), (5, 48), (3, 1500)])
def test_add_rms_norm_is_the_definition_rounded_once(dtype: torch.dtype, tokens: int, channels: int) -> None:
    x, residual, weight = (
        uniform(*shape, dtype=dtype) for shape in ((tokens, channels), (tokens, channels), (channels,))
    )
    out, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, residual + x)
    assert_rounded(out, plain_norm.rms_norm(total.double(), weight.double(), 1e-5).double())
    alone = norm.rms_norm(total, weight, 1e-5)
    assert torch.equal(alone, out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_are_normed_where_a_fused_product_left_them(dtype: torch.dtype) -> None:
    x, weight = uniform(7, 10, 80, dtype=dtype)[:, 3:6], uniform(80, dtype=dtype)
    assert_rounded(norm.rms_norm(x, weight, 1e-6), plain_norm.rms_norm(x.double(), weight.double(), 1e-6).double())


def test_a_normed_row_does_not_depend_on_its_batch() -> None:
    x, weight = uniform(37, 128, dtype=torch.bfloat16), uniform(128, dtype=torch.bfloat16)
    together = norm.rms_norm(x, weight, 1e-5)
    assert all(torch.equal(norm.rms_norm(x[i : i + 1], weight, 1e-5)[0], together[i]) for i in range(0, 37, 6))


@pytest.mark.parametrize("op", ["rms_norm", "silu_mul", "embedding", "rope", "store"])
def test_nothing_is_done_for_no_tokens(op: str) -> None:
    none, heads, angles = torch.empty(0, 64), torch.empty(0, 2, 8), torch.empty(0, 4)
    pool = torch.zeros(3, 2, 4, 8)
    ids = torch.empty(0, dtype=torch.int64)
    done = {
        "rms_norm": lambda: norm.rms_norm(none, none.new_ones(64), 1e-5).shape == (0, 64),
        "silu_mul": lambda: activation.silu_mul(none).shape == (0, 32),
        "embedding": lambda: embedding.embedding(ids, torch.rand(4, 64)).shape == (0, 64),
        "rope": lambda: rope.rope(heads, heads, angles, angles)[0].shape == (0, 2, 8),
        "store": lambda: kv.store_kv(heads, heads, pool, pool, ids) is None and not pool.any(),
    }
    assert done[op]()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, size", [(1, 8), (3, 33), (2, 1100)])
def test_gated_activations_round_once(dtype: torch.dtype, tokens: int, size: int) -> None:
    x = uniform(tokens, 2 * size + 5, dtype=dtype)[:, : 2 * size] * 4
    assert_rounded(activation.silu_mul(x), plain_activation.silu_mul(x.double()), 2)
    assert_rounded(activation.gelu_mul(x), plain_activation.gelu_mul(x.double()), 2)


def test_gates_far_from_zero_stay_finite() -> None:
    x = torch.tensor([[-1e4, 1e4, -90.0, 90.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    for ours, theirs in (
        (activation.silu_mul, plain_activation.silu_mul),
        (activation.gelu_mul, plain_activation.gelu_mul),
    ):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_copies_rows(dtype: torch.dtype) -> None:
    table = uniform(50, 70, dtype=dtype)[:, :65]
    ids = torch.tensor([49, 0, 7, 7])
    assert torch.equal(embedding.embedding(ids, table), table[ids])


ROTARY = [(4, 2, 16), (6, 6, 20), (3, 1, 64), (9, 2, 80)]


def rotary(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v as views of one fused product, and angles cut from wider rows."""
    fused, angles = uniform(tokens, heads + 2 * kv_heads, dim, dtype=dtype), torch.rand(tokens, dim) * 6
    q, k, v = fused.split([heads, kv_heads, kv_heads], dim=1)
    return [q, k, v, angles.cos()[:, : dim // 2], angles.sin()[:, : dim // 2]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, kv_heads, dim", ROTARY)
def test_rope_is_the_definition_rounded_once(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    q, k, _, cos, sin = rotary(5, heads, kv_heads, dim, dtype)
    for found, x in zip(rope.rope(q, k, cos, sin), (q, k), strict=True):
        exact = torch.cat(
            (
                x.double().chunk(2, -1)[0] * cos[:, None].double() - x.double().chunk(2, -1)[1] * sin[:, None].double(),
                x.double().chunk(2, -1)[1] * cos[:, None].double() + x.double().chunk(2, -1)[0] * sin[:, None].double(),
            ),
            -1,
        )
        torch.testing.assert_close(found.double(), exact, rtol=ULP[dtype], atol=2e-7)


def pools(dtype: torch.dtype, kv_heads: int, size: int, dim: int, slots_first: bool) -> list[Tensor]:
    """Two pools of 12 pages, NaN all over (int8: -1), with slots before heads in memory if asked."""
    row = plain_kv.kv_row(dim, dtype)
    shape = (12, size, kv_heads, row) if slots_first else (12, kv_heads, size, row)
    made = [torch.full(shape, -1 if dtype == torch.int8 else torch.nan, dtype=dtype) for _ in "kv"]
    return [pool.transpose(1, 2) for pool in made] if slots_first else made


def soak(*values: object) -> object:
    """A case of the longer runs."""
    return pytest.param(*values, marks=pytest.mark.soak)


@pytest.mark.parametrize("slots_first", [False, soak(True)])
@pytest.mark.parametrize("size", [1, soak(4), 16, soak(64)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8])
def test_keys_and_values_land_in_their_slots_and_nowhere_else(dtype: torch.dtype, size: int, slots_first: bool) -> None:
    given = torch.bfloat16 if dtype == torch.int8 else dtype
    q, k, v, cos, sin = rotary(7, 3, 2, 16, given)
    slots = torch.randperm(12 * size)[:7]
    ours, theirs, turned, wanted = (pools(dtype, 2, size, 16, slots_first) for _ in range(4))
    kv.store_kv(k, v, *ours, slots)
    plain_kv.store_kv(k, v, *theirs, slots)
    out = kv.rope_store_kv(q, k, v, cos, sin, *turned, slots)
    expected = plain_kv.rope_store_kv(q, k, v, cos, sin, *wanted, slots)
    assert torch.equal(out, expected)
    for found, right in zip(ours + turned, theirs + wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=0, equal_nan=True)


def test_int8_rows_of_zeros_and_of_wrong_numbers() -> None:
    k = torch.zeros(3, 1, 8)
    k[1, 0, 3], k[2, 0, 2] = torch.inf, torch.nan
    found, other = (torch.full((4, 1, 1, 16), -1, dtype=torch.int8) for _ in range(2))
    kv.store_kv(k, k, found, other, torch.arange(3))
    back = plain_kv.vectors(found[:3, 0, 0], torch.float32)
    assert not back[0].any()
    assert back[1:].isnan().all()
    assert (found[3] == -1).all()


def test_e4m3_pools_round_to_even_and_saturate() -> None:
    value = torch.cat(
        (uniform(2000) * 500, uniform(2000) * 0.05, torch.tensor([447.9, 464.0, 1e9, -1e9, 0.0, -0.0, 2**-10]))
    )
    k = torch.nn.functional.pad(value, (0, -len(value) % 512)).view(-1, 8, 64)
    made = [torch.zeros(len(k), 8, 1, 64, dtype=torch.float8_e4m3fn) for _ in "kv"]
    kv.store_kv(k, k, *made, torch.arange(len(k)))
    expected = k.clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(made[0][:, :, 0].view(torch.uint8), expected.view(torch.uint8))
    plain = [torch.zeros_like(pool) for pool in made]
    plain_kv.store_kv(k, k, *plain, torch.arange(len(k)))
    assert torch.equal(made[1].view(torch.uint8), plain[1].view(torch.uint8))
    k[0, 0, 0] = torch.nan
    kv.store_kv(k, k, *made, torch.arange(len(k)))
    assert made[1][0, 0, 0, 0].isnan()


def test_heads_of_an_odd_dimension_are_refused() -> None:
    k, pool = torch.rand(1, 1, 5), torch.rand(1, 1, 1, 5)
    with pytest.raises(ValueError, match="even"):
        kv.store_kv(k, k, pool, pool, torch.zeros(1, dtype=torch.int64))
