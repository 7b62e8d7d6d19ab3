"""The native library against plain torch formulas, on every vector width this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from branchwork.kernels.cpu import attention, fused, native

if not native.available:
    pytest.skip(native.why, allow_module_level=True)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=[16, 8, 4], autouse=True)
def width(request: pytest.FixtureRequest) -> Iterator[int]:
    chosen = native.vector_width(request.param)
    if chosen != request.param:
        pytest.skip(f"this processor has no vectors of {request.param} floats")
    yield chosen
    native.vector_width(0)


class Case:
    """Ragged rows over shuffled pages; every slot that holds no token, and every unused page-table entry, is poison."""

    def __init__(
        self,
        rows: list[tuple[int, int]],
        heads: int,
        kv_heads: int,
        dim: int,
        size: int,
        dtype: torch.dtype,
        seed: int = 0,
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        counts = [-(-length // size) for _, length in rows]
        pages = torch.randperm(sum(counts) + 2, generator=draw).int()
        self.k = torch.full((len(pages), kv_heads, size, dim), torch.nan)
        self.v = self.k.clone()
        self.table = torch.full((len(rows), max(counts) + 1), 2**30, dtype=torch.int32)
        self.keys, self.values = [], []
        for r, (count, (_, length)) in enumerate(zip(counts, rows, strict=True)):
            self.table[r, :count], pages = pages[:count], pages[count:]
            for pool, kept in ((self.k, self.keys), (self.v, self.values)):
                kept.append(torch.randn(length, kv_heads, dim, generator=draw).to(dtype))
                for p in range(length):
                    pool[self.table[r, p // size], :, p % size] = kept[-1][p].float()
        self.k, self.v = self.k.to(dtype), self.v.to(dtype)
        self.cu = torch.tensor([0] + [n for n, _ in rows]).cumsum(0).int()
        self.length = torch.tensor([length for _, length in rows], dtype=torch.int32)
        self.q = torch.randn(int(self.cu[-1]), heads, dim, generator=draw).to(dtype)
        self.scale = dim**-0.5

    def native(self, window: int = 0) -> torch.Tensor:
        return attention.paged_attention(self.q, self.k, self.v, self.table, self.cu, self.length, self.scale, window)

    def plain(self, window: int = 0) -> torch.Tensor:
        out, heads = [], self.q.shape[1]
        for r, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            q = self.q[self.cu[r] : self.cu[r + 1]].float()
            n, length = len(q), len(key)
            group = heads // key.shape[1]
            scores = torch.einsum("nhd,lhd->hnl", q, key.float().repeat_interleave(group, 1)) * self.scale
            at, other = torch.arange(length - n, length)[:, None], torch.arange(length)[None]
            seen = (other <= at) & ((other > at - window) if window else torch.ones_like(other, dtype=torch.bool))
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            out.append(torch.einsum("hnl,lhd->nhd", weights, value.float().repeat_interleave(group, 1)))
        return torch.cat(out)


RAGGED = [(1, 1), (1, 33), (7, 7), (1, 64), (5, 70), (90, 150), (1, 100), (3, 32)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [0, 5, 40])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "size"),
    [
        (8, 4, 32, 1),
        (4, 4, 64, 3),
        (8, 2, 128, 16),
        (6, 1, 40, 5),
        (24, 1, 8, 7),
        (70, 1, 16, 1),
        (4, 2, 80, 64),
        (2, 1, 256, 4),
    ],
)
def test_paged_attention_equals_softmax_over_the_rows_own_tokens(
    heads: int, kv_heads: int, dim: int, size: int, window: int, dtype: torch.dtype
) -> None:
    case = Case(RAGGED, heads, kv_heads, dim, size, dtype)
    torch.testing.assert_close(
        case.native(window).float(), case.plain(window), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(8, 4, 32), (8, 2, 128), (3, 3, 40)])
@pytest.mark.parametrize("window", [0, 20])
def test_a_row_alone_gives_the_same_bits_as_inside_a_batch(
    heads: int, kv_heads: int, dim: int, window: int, dtype: torch.dtype
) -> None:
    case = Case(RAGGED, heads, kv_heads, dim, 1, dtype)
    together = case.native(window)
    for r in range(len(RAGGED)):
        mine = case.q[case.cu[r] : case.cu[r + 1]]
        alone = attention.paged_attention(
            mine, case.k, case.v, case.table[r : r + 1], torch.tensor([0, len(mine)], dtype=torch.int32),
            case.length[r : r + 1], case.scale, window,
        )  # fmt: skip
        assert torch.equal(alone, together[case.cu[r] : case.cu[r + 1]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 17])
def test_a_prompt_cut_into_chunks_gives_the_same_bits(chunk: int, dtype: torch.dtype) -> None:
    case = Case([(100, 100)], 8, 2, 64, 4, dtype)
    whole = case.native(30)
    for start in range(0, 100, chunk):
        end = min(start + chunk, 100)
        part = attention.paged_attention(
            case.q[start:end], case.k, case.v, case.table, torch.tensor([0, end - start], dtype=torch.int32),
            torch.tensor([end], dtype=torch.int32), case.scale, 30,
        )  # fmt: skip
        assert torch.equal(part, whole[start:end])


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    case = Case(RAGGED * 4, 8, 4, 64, 1, torch.float32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(case.native())
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_pools_may_be_slices_of_one_tensor_of_all_layers_and_q_of_a_fused_projection() -> None:
    case = Case(RAGGED, 8, 4, 32, 2, torch.float32)
    expected = case.native()
    both = torch.stack([case.k, case.v], 1)  # [P, 2, KVH, S, D]
    case.k, case.v = both[:, 0], both[:, 1]
    fused_projection = torch.randn(len(case.q), 16 * 32)
    fused_projection[:, : 8 * 32] = case.q.flatten(1)
    case.q = fused_projection[:, : 8 * 32].view(-1, 8, 32)
    assert torch.equal(case.native(), expected)


def test_nan_in_an_attended_value_reaches_the_output() -> None:
    case = Case([(1, 40), (1, 40)], 4, 2, 32, 1, torch.float32)
    case.k[case.table[0, 7]] = torch.nan
    out = case.native()
    assert out[0].isnan().all()
    assert not out[1].isnan().any()


def test_large_scores_do_not_overflow() -> None:
    case = Case(RAGGED, 4, 2, 32, 1, torch.float32)
    case.q *= 300
    torch.testing.assert_close(case.native(), case.plain(), atol=1e-3, rtol=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    case = Case([(2, 9)], 4, 2, 32, 4, torch.float32)
    case.table[0, 1] = 1000
    with pytest.raises(IndexError, match="outside the KV pool"):
        case.native()
    case = Case([(2, 9)], 4, 2, 32, 4, torch.float32)
    case.length[0] = 50
    with pytest.raises(ValueError, match="page table"):
        case.native()
    case = Case([(2, 9)], 4, 2, 32, 4, torch.float32)
    case.cu[1] = 3
    with pytest.raises(ValueError, match="cu_rows"):
        case.native()
    case = Case([(2, 9)], 4, 2, 32, 4, torch.float32)
    case.q = case.q.double()
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        case.native()


# --- small operations


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (3, 37), (64, 256), (2, 4096), (0, 16), (5, 3, 40), (4, 8, 128)], ids=str)
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    expected = torch.nn.functional.rms_norm(x.float(), shape[-1:], weight.float(), 1e-6)
    got = fused.rms_norm(x, weight, 1e-6)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_rms_norm_takes_the_heads_of_a_fused_projection() -> None:
    projection, weight = torch.randn(6, 12 * 32), torch.randn(32)
    x = projection[:, 4 * 32 : 8 * 32].view(6, 4, 32)
    assert torch.equal(fused.rms_norm(x, weight, 1e-5), fused.rms_norm(x.contiguous(), weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (3, 37), (64, 256), (300, 1024)], ids=str)
def test_add_rms_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
    normed, total = fused.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, residual + x)
    expected = torch.nn.functional.rms_norm(total.float(), shape[1:], weight.float(), 1e-6)
    torch.testing.assert_close(normed.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (3, 37), (64, 704), (300, 1024)])
def test_silu_mul(tokens: int, width: int, dtype: torch.dtype) -> None:
    gate_up = (torch.randn(tokens, 2 * width) * 20).to(dtype)
    gate, up = gate_up.float().chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(fused.silu_mul(gate_up).float(), expected, atol=1e-4, rtol=TOLERANCE[dtype])


def test_silu_of_extreme_gates_stays_finite() -> None:
    gate_up = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e30] * 8 + [1.0] * 40])
    expected = torch.tensor([-0.0, -0.0, 0.0, 200.0, 1e30] * 8)
    torch.testing.assert_close(fused.silu_mul(gate_up)[0], expected)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.float().chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat((a * c - b * s, b * c + a * s), -1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim"), [(1, 8, 4, 32), (5, 3, 1, 8), (7, 4, 2, 80), (9, 2, 2, 128)]
)
@pytest.mark.parametrize("size", [1, 4])
def test_rope_and_store_kv_from_one_projection(
    tokens: int, heads: int, kv_heads: int, dim: int, size: int, dtype: torch.dtype
) -> None:
    projection = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    q, k, v = (
        part.unflatten(1, (-1, dim)) for part in projection.split([heads * dim, kv_heads * dim, kv_heads * dim], 1)
    )
    angle = torch.randn(tokens, dim // 2)
    cos, sin = angle.cos(), angle.sin()
    rotated_q, rotated_k = fused.rope(q, k, cos, sin)
    for got, x in ((rotated_q, q), (rotated_k, k)):
        torch.testing.assert_close(got.float(), _rotated(x, cos, sin), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])

    slots = torch.randperm(12 * size)[:tokens]
    k_pool, v_pool = torch.zeros(2, 12, kv_heads, size, dim, dtype=dtype)
    k_expected, v_expected = torch.zeros(2, 12, kv_heads, size, dim, dtype=dtype)
    k_expected[slots // size, :, slots % size], v_expected[slots // size, :, slots % size] = rotated_k, v
    fused.store_kv(rotated_k, v, k_pool, v_pool, slots)
    assert torch.equal(k_pool, k_expected)
    assert torch.equal(v_pool, v_expected)

    k_pool.zero_(), v_pool.zero_()
    assert torch.equal(fused.rope_store_kv(q, k, v, cos, sin, k_pool, v_pool, slots), rotated_q)
    assert torch.equal(k_pool, k_expected)
    assert torch.equal(v_pool, v_expected)


def test_a_slot_outside_the_pool_is_refused_and_nothing_is_written() -> None:
    k_pool, v_pool = torch.zeros(2, 3, 2, 4, 16)
    k, v = torch.ones(2, 2, 2, 16)
    for slots in ([0, 12], [0, -1]):
        with pytest.raises(IndexError, match="slot"):
            fused.store_kv(k, v, k_pool, v_pool, torch.tensor(slots))
    assert not k_pool.any()
    assert not v_pool.any()


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.importlib.machinery, "EXTENSION_SUFFIXES", [".nowhere"])
    library, why = native._open()
    assert library is None
    assert "C compiler" in why
