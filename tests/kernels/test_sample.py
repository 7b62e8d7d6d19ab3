"""The draw's definition against a naive single row, and the native selection against the definition."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.kernels.cpu import native
from branchwork.kernels.cpu import sample as cpu
from branchwork.kernels.reference import sample as reference
from branchwork.kernels.reference.sample import Draws

SAMPLES = [reference.sample] + ([cpu.sample] if native.available else [])


@pytest.fixture(params=[16, 8, 4])
def width(request: pytest.FixtureRequest) -> Iterator[int]:
    if not native.available:
        pytest.skip(native.why)
    if native.vector_width(request.param) != request.param:
        pytest.skip(f"this processor has no vectors of {request.param} floats")
    yield request.param
    native.vector_width(0)


def draws(
    temperature: float = 1.0, top_k: int = -1, top_p: float = 1.0, min_p: float = 0.0, uniform: object = 0.5
) -> Draws:
    u = np.atleast_1d(np.asarray(uniform, dtype=np.float64))

    def fill(value: float, dtype: type) -> np.ndarray:
        return np.full(u.shape, value, dtype=dtype)

    return Draws(
        fill(temperature, np.float32), fill(top_k, np.int32), fill(top_p, np.float32), fill(min_p, np.float32), u
    )


def naive(x: list[float], temperature: float, top_k: int, top_p: float, min_p: float, u: float) -> int:
    """The rule of kernels/reference/sample.py on a Python list."""
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    if temperature == 0:
        return order[0]
    if top_k > 0:
        order = order[:top_k]
    weight = {i: math.exp((x[i] - x[order[0]]) / temperature) for i in order}
    total, kept, sum_ = sum(weight.values()), [], 0.0
    for i in order:
        if kept and ((top_p < 1 and sum_ >= top_p * total) or weight[i] < min_p):
            break
        kept.append(i)
        sum_ += weight[i]
    running = 0.0
    for i in kept:
        running += weight[i]
        if running > u * sum_:
            return i
    return kept[-1]


single = np.float32
SHAPES = st.tuples(
    st.sampled_from([0.0, 0.25, 0.7, 1.0, 3.0]),
    st.sampled_from([-1, 0, 1, 2, 3, 10, 1000]),
    st.sampled_from([1.0, 0.93, 0.61, 0.17, 0.0]),
    st.sampled_from([0.0, 0.013, 0.31, 1.0]),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(-40, 40), min_size=1, max_size=70), SHAPES, st.integers(1, 9999))
@pytest.mark.parametrize("sample", SAMPLES)
def test_the_draw_follows_the_naive_rule(
    sample: object, x: list[int], shape: tuple[float, int, float, float], u: int
) -> None:
    logits = [float(single(value * 0.37)) for value in x]
    temperature, top_k, top_p, min_p = shape
    uniform = u / 10007  # off the boundaries that simple weights make
    got = sample(torch.tensor([logits]), draws(temperature, top_k, top_p, min_p, uniform), np.arange(1))  # type: ignore[operator]
    assert got[0] == naive(
        logits, float(single(temperature)), top_k, float(single(top_p)), float(single(min_p)), uniform
    )


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 100, 5000, 40000])
def test_the_native_selection_equals_the_definition(vocab: int, spread: float, width: int) -> None:
    random = np.random.default_rng(vocab)
    n = 24
    x = random.normal(size=(n, vocab)).astype(np.float32) * np.float32(spread)
    x[::3] = np.round(x[::3])  # ties
    logits = torch.from_numpy(x)
    d = Draws(
        random.choice([0, 0.3, 1, 2], n).astype(np.float32),
        random.choice([-1, 0, 1, 5, 400], n).astype(np.int32),
        random.choice([1, 0.99, 0.9, 0.5, 0.01, 0], n).astype(np.float32),
        random.choice([0, 0, 0.01, 0.5], n).astype(np.float32),
        random.random(n),
    )
    masks = torch.from_numpy(random.integers(-(2**31), 2**31, (n, -(-vocab // 32))).astype(np.int32))
    mask_of = np.where(random.random(n) < 0.5, np.arange(n), -1)
    if vocab < 33:
        masks |= 1
    expected = reference.sample(logits, d, np.arange(n), masks, mask_of)
    assert cpu.sample(logits, d, np.arange(n), masks, mask_of).tolist() == expected.tolist()


@pytest.mark.parametrize("sample", SAMPLES)
def test_equal_logits_go_by_id(sample: object) -> None:
    x = torch.zeros(4, 1000)
    x[1, 7], x[1, 5] = 0.0, -0.0
    u = np.array([0.0, 0.0051, 0.9991, 0.0])
    assert sample(x, draws(uniform=u), np.arange(4)).tolist() == [0, 5, 999, 0]  # type: ignore[operator]
    assert sample(x, draws(temperature=0, uniform=u), np.arange(4)).tolist() == [0, 0, 0, 0]  # type: ignore[operator]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bad_row_is_marked_and_the_others_are_drawn(sample: object, temperature: float) -> None:
    x = torch.randn(5, 70)
    x[1, 69], x[2, 3], x[3] = torch.nan, torch.inf, -torch.inf
    x[4, 1:] = -torch.inf
    d = draws(temperature, uniform=[0.5] * 5)
    got = sample(x, d, np.arange(5))  # type: ignore[operator]
    assert got[0] >= 0
    assert got[1:].tolist() == [reference.NOT_FINITE, reference.NOT_FINITE, reference.ALL_MASKED, 0]
    nothing = torch.zeros(1, 3, dtype=torch.int32)
    got = sample(x, d, np.arange(5), nothing, np.array([0, -1, -1, -1, -1]))  # type: ignore[operator]
    assert got[0] == reference.ALL_MASKED


def test_uniforms_are_a_pure_function_and_uniform() -> None:
    u = reference.uniforms([7] * 40000, range(40000))
    assert (u >= 0).all()
    assert (u < 1).all()
    counts = np.histogram(u, 100, (0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 149  # chi-square, 99 degrees of freedom, p = 0.001
    other_seeds = reference.uniforms(range(40000), [3] * 40000)
    assert ((np.histogram(other_seeds, 100, (0, 1))[0] - 400) ** 2 / 400).sum() < 149
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02
    assert reference.uniforms([2**63 - 1, -1, 7], [0, 5, 123])[2] == u[123]


def test_uniforms_never_change_between_versions() -> None:
    assert reference.uniforms([0, 1, 123456789], [0, 0, 42]).tolist() == UNIFORMS_OF_VERSION_ONE


UNIFORMS_OF_VERSION_ONE = [0.6524484863740322, 0.36818951565166946, 0.7717808439487395]


@pytest.mark.parametrize("allowed", [0, 1, 7, 300, 4096, 4097, 6000])
def test_masks_of_few_and_of_many_tokens_draw_what_the_definition_draws(allowed: int, width: int) -> None:
    """Few allowed tokens are gathered, many are masked in place: at both sides of the border the same token."""
    rng = np.random.default_rng(allowed)
    vocab, rows = 6001, 24
    logits = torch.from_numpy(rng.normal(0, 4, (rows, vocab)).astype(np.float32))
    bits = np.zeros((rows, -(-vocab // 32) * 32), np.uint8)
    for row in bits:
        row[rng.choice(vocab, allowed, replace=False)] = 1
    masks = torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32))
    which = np.arange(rows)
    for shape in ((0.0, -1, 1.0, 0.0), (1.3, -1, 1.0, 0.0), (0.9, 5, 0.9, 0.01)):
        given = draws(*shape, rng.random(rows))
        found = cpu.sample(logits, given, which, masks, which)
        assert found.tolist() == reference.sample(logits, given, which, masks, which).tolist()
        assert (found == reference.ALL_MASKED).all() == (allowed == 0)
