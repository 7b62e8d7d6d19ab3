"""Draws of the GPU against the definition, in the interpreter: the same token but for sums that differ by roundings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from branchwork.kernels.reference import sample as plain
from branchwork.kernels.reference.sample import Draws
from branchwork.kernels.triton import mask, sample

pytestmark = pytest.mark.interpreted

single = np.float32


def draws(temperature: object, top_k: object, top_p: object, min_p: object, uniform: object) -> Draws:
    columns = (temperature, top_k, top_p, min_p, uniform)
    types = (np.float32, np.int32, np.float32, np.float32, np.float64)
    count = len(np.atleast_1d(uniform))
    return Draws(*[np.broadcast_to(np.asarray(c, dtype=t), count).copy() for c, t in zip(columns, types, strict=True)])


def assert_drawn(logits: torch.Tensor, given: Draws, masks: torch.Tensor | None = None, which: object = None) -> None:
    """The definition's token, or one that it draws with a uniform 3e-6 away."""
    rows = np.arange(logits.shape[0])
    found = sample.sample(logits, given, rows, masks, which).numpy()
    ways = [plain.sample(logits, given, rows, masks, which).numpy()]
    for step in (-3e-6, 3e-6):
        near = given._replace(uniform=np.clip(given.uniform + step, 0, 1 - 2**-53))
        ways.append(plain.sample(logits, near, rows, masks, which).numpy())
    assert all(token in column for token, column in zip(found, np.stack(ways).T, strict=True)), (found, ways[0])
    assert (found == ways[0]).mean() >= 0.6


def mixed(random: np.random.Generator, count: int) -> Draws:
    return draws(
        random.choice([0, 0.3, 1, 2], count),
        random.choice([-1, 0, 1, 5, 400], count),
        random.choice([1, 0.99, 0.9, 0.5, 0.01, 0], count),
        random.choice([0, 0, 0.01, 0.5, 1], count),
        random.random(count),
    )


def soak(value: float) -> object:
    """A case of the longer runs."""
    return pytest.param(value, marks=pytest.mark.soak)


@pytest.mark.parametrize("spread", [soak(0.0), 1.0, soak(5.0), 20.0])
@pytest.mark.parametrize("vocab", [1, 33, soak(1000), soak(40000)])
def test_every_filter_and_their_mixtures_draw_what_the_definition_draws(vocab: int, spread: float) -> None:
    random = np.random.default_rng(vocab)
    count = 8
    x = random.normal(size=(count, vocab)).astype(single) * single(spread)
    x[::3] = np.round(x[::3])  # ties
    masks = torch.from_numpy(random.integers(-(2**31), 2**31, (count, -(-vocab // 32))).astype(np.int32)) | 1
    which = np.where(random.random(count) < 0.5, np.arange(count), -1)
    assert_drawn(torch.from_numpy(x), mixed(random, count), masks, which)


@pytest.fixture
def short_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of at most 64 tokens, so that small rows overflow them."""
    monkeypatch.setattr(sample, "CAPACITY", 64)


@pytest.mark.parametrize("spread", [soak(0.0), soak(0.01), 0.5, soak(3.0), soak(12.0)])
def test_rows_whose_likely_tokens_overflow_the_list_are_searched_whole(spread: float, short_list: None) -> None:
    random = np.random.default_rng(5)
    x = torch.from_numpy(random.normal(size=(5, 400)).astype(single) * single(spread))
    assert_drawn(x, draws(1.0, [-1, 200, -1, 3, -1], [1, 1, 0.7, 1, 0.9999], 0.0, [0.9123, 0.999, 0.5017, 0.3, 0.9999]))


def test_draws_below_the_list_are_found_in_the_row(short_list: None) -> None:
    """One token with half of the weight, far above many others that the list cannot hold."""
    x = torch.zeros(6, 300)
    x[:, 77] = float(np.log(x.shape[1] - 1))
    top_k, top_p, min_p = [-1, -1, -1, 150, -1, 1], [1, 1, 0.7531, 1, 1, 1], [0, 0, 0, 0, 1e-6, 0]
    assert_drawn(x, draws(1.0, top_k, top_p, min_p, [0.3, 0.6011, 0.9003, 0.9003, 0.9003, 0.9003]))


def test_a_top_k_beyond_all_tokens_that_weigh_anything_keeps_them_all() -> None:
    x = torch.full((3, 500), -200.0)
    x[:, 100:104] = torch.tensor([1.0, 0.0, 2.0, 0.5])
    assert_drawn(x, draws([1.0, 1.0, 0.1], 50, 1.0, 0.0, [0.1, 0.95, 0.3]))


def test_the_draw_covers_each_token_by_its_weight() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 1.0]]).expand(40, 5)
    uniform = (np.arange(40) + 0.5) / 40
    found = sample.sample(logits, draws(1.0, -1, 1.0, 0.0, uniform), np.arange(40))
    assert found.tolist() == plain.sample(logits, draws(1.0, -1, 1.0, 0.0, uniform), np.arange(40)).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bad_row_is_marked_and_the_others_are_drawn(temperature: float) -> None:
    x = torch.randn(5, 70)
    x[1, 69], x[2, 3], x[3] = torch.nan, torch.inf, -torch.inf
    x[4, 1:] = -torch.inf
    given = draws(temperature, -1, 1.0, 0.0, [0.5] * 5)
    got = sample.sample(x, given, np.arange(5))
    assert got[0] >= 0
    assert got[1:].tolist() == [plain.NOT_FINITE, plain.NOT_FINITE, plain.ALL_MASKED, 0]
    nothing = torch.zeros(1, 3, dtype=torch.int32)
    assert sample.sample(x, given, np.arange(5), nothing, np.array([0, -1, -1, -1, -1]))[0] == plain.ALL_MASKED


def test_equal_logits_go_by_id() -> None:
    x = torch.zeros(4, 1000)
    x[1, 7], x[1, 5] = 0.0, -0.0
    u = np.array([0.0, 0.0051, 0.9991, 1 - 2**-53])
    assert sample.sample(x, draws(1.0, -1, 1.0, 0.0, u), np.arange(4)).tolist() == [0, 5, 999, 999]
    assert sample.sample(x, draws(0.0, -1, 1.0, 0.0, u), np.arange(4)).tolist() == [0, 0, 0, 0]


def test_a_draw_does_not_depend_on_its_batch_or_on_the_order_of_rows() -> None:
    random = np.random.default_rng(2)
    x, given = torch.from_numpy(random.normal(size=(9, 300)).astype(single)), mixed(random, 9)
    together = sample.sample(x, given, np.arange(9))
    for i in (0, 4, 8):
        alone = Draws(*[column[i : i + 1] for column in given])
        assert sample.sample(x, alone, np.array([i]))[0] == together[i]


def test_padded_logits_are_never_read_and_never_drawn() -> None:
    x = torch.full((3, 100), torch.nan)
    x[:, :70] = torch.randn(3, 70)
    found = sample.sample(x[:, :70], draws(1.0, -1, 1.0, 0.0, [0.1, 0.5, 0.999]), np.arange(3))
    assert ((found >= 0) & (found < 70)).all()


def test_no_draws_give_no_tokens() -> None:
    assert sample.sample(torch.randn(2, 5), draws(1.0, -1, 1.0, 0.0, []), np.arange(0)).shape == (0,)


@pytest.mark.parametrize("vocab", [1, 31, 33, 5000])
def test_a_mask_forbids_its_tokens_in_its_row_only(vocab: int) -> None:
    random = np.random.default_rng(vocab)
    x = torch.from_numpy(random.normal(size=(4, vocab + 3)).astype(single))
    masks = torch.from_numpy(random.integers(-(2**31), 2**31, (2, -(-vocab // 32))).astype(np.int32))
    which = torch.tensor([1, -1, 0, 1])
    expected = x.clone()
    for row, index in enumerate(which.tolist()):
        if index >= 0:
            allowed = plain.allowed(masks[index : index + 1], vocab)[0]
            expected[row, :vocab] = expected[row, :vocab].masked_fill(~allowed, -torch.inf)
    mask.apply_mask(x[:, :vocab], masks, which)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("answer, prompt", [([3, 3, 5, 900], [5, 8, 901, 8]), ([], [1, 2]), ([4], []), ([], [])])
def test_penalties_are_the_definition(answer: list[int], prompt: list[int]) -> None:
    x = torch.randn(40)
    expected = x.clone()
    plain.penalise(expected, answer, prompt, 0.3, 0.7, 1.2)
    sample.penalise(x, answer, prompt, 0.3, 0.7, 1.2)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)
