"""The sampler: each parameter's law, order of operations, and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from branchwork import kernels
from branchwork.kernels.cpu import native
from branchwork.kernels.cpu import sample as cpu_sample
from branchwork.kernels.reference import sample as reference
from branchwork.runtime.plan import Row
from branchwork.runtime.sampling.sampler import Draw, Sampler
from branchwork.runtime.wire import Shape

LOGITS = [1.0, 3.0, 2.5, -1.0, 0.0, 2.0, 1.5, -3.0]
VOCAB = len(LOGITS)
CHI_SQUARE = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32]  # p = 0.001 for 1, 2, ... degrees of freedom


@pytest.fixture(params=["native", "reference"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native" and not native.available:
        pytest.skip(native.why)
    chosen = cpu_sample if request.param == "native" else reference
    monkeypatch.setattr(kernels, "sample", chosen.sample)
    return str(request.param)


def row(
    position: int = 0, request: int = 0, logprobs: int = -1, answer: object = (), prompt: object = (), **shape: object
) -> Row:
    return Row(
        request,
        0,
        (1,),
        (0,),
        Shape(**shape),
        position,
        prompt_history=prompt,
        answer_history=answer,
        logprobs=logprobs,
    )


def frequencies(count: int = 4000, logits: list[float] = LOGITS, **shape: object) -> np.ndarray:
    rows = [row(position, seed=11, **shape) for position in range(count)]
    drawn = Sampler(len(logits)).draw(torch.tensor([logits] * count), rows)
    return np.bincount([d.token for d in drawn], minlength=len(logits))


def follows(counts: np.ndarray, probabilities: np.ndarray) -> None:
    live = probabilities > 0
    assert not counts[~live].any()
    expected = probabilities[live] * counts.sum()
    assert ((counts[live] - expected) ** 2 / expected).sum() < CHI_SQUARE[max(int(live.sum()) - 2, 0)]


def softmax(x: list[float], temperature: float = 1.0) -> np.ndarray:
    return np.asarray((torch.tensor(x, dtype=torch.float64) / temperature).softmax(-1))


def only(p: np.ndarray, tokens: list[int]) -> np.ndarray:
    kept = np.zeros_like(p)
    kept[tokens] = p[tokens]
    return kept / kept.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    follows(frequencies(temperature=temperature), softmax(LOGITS, temperature))


def test_top_k_keeps_the_k_most_likely() -> None:
    follows(frequencies(top_k=3), only(softmax(LOGITS), [1, 2, 5]))


def test_top_p_keeps_the_smallest_set_of_that_mass() -> None:
    p = softmax(LOGITS)
    assert p[[1, 2]].sum() < 0.75 < p[[1, 2, 5]].sum()
    follows(frequencies(top_p=0.75), only(p, [1, 2, 5]))


def test_top_p_is_taken_of_what_top_k_leaves() -> None:
    p = only(softmax(LOGITS), [1, 2, 5])
    assert p[1] < 0.6 < p[[1, 2]].sum()
    follows(frequencies(top_p=0.6, top_k=3), only(p, [1, 2]))


def test_min_p_is_relative_to_the_best_after_temperature() -> None:
    p = softmax(LOGITS, 2.0)
    kept = np.flatnonzero(p >= 0.5 * p.max()).tolist()
    assert kept != np.flatnonzero(softmax(LOGITS) >= 0.5 * softmax(LOGITS).max()).tolist()
    follows(frequencies(temperature=2.0, min_p=0.5), only(p, kept))


def test_filters_that_leave_nothing_keep_the_best_token() -> None:
    assert frequencies(100, top_p=0.0)[1] == 100
    assert frequencies(100, min_p=1.0)[1] == 100


def test_temperature_zero_takes_the_best_and_the_lowest_id_of_equals() -> None:
    assert frequencies(10, temperature=0.0)[1] == 10
    assert frequencies(10, [0.0, 2.0, 2.0, 1.0], temperature=0.0)[1] == 10


def test_penalties_shape_the_distribution() -> None:
    answer, prompt = [1, 1, 2], [5, 3, 3, 900]
    x = np.array(LOGITS)
    for seen in (1, 2, 5, 3):
        x[seen] = x[seen] / 1.3 if x[seen] > 0 else x[seen] * 1.3
    x[1] -= 0.4 * 2 + 0.2
    x[2] -= 0.4 + 0.2
    counts = frequencies(
        answer=answer, prompt=prompt, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2
    )
    follows(counts, softmax(x.tolist()))


def test_a_mask_comes_before_every_filter_and_binds_only_its_rows() -> None:
    rows = [row(i, seed=5, top_k=2) for i in range(3000)]
    masks = np.full((1500, 1), 0b10101001, dtype=np.int32)
    drawn = Sampler(VOCAB).draw(torch.tensor([LOGITS] * 3000), rows, masks, list(range(0, 3000, 2)))
    tokens = np.array([d.token for d in drawn])
    follows(np.bincount(tokens[::2], minlength=VOCAB), only(softmax(LOGITS), [5, 0]))
    follows(np.bincount(tokens[1::2], minlength=VOCAB), only(softmax(LOGITS), [1, 2]))


def test_a_mask_for_every_row_may_be_a_tensor() -> None:
    masks = torch.tensor([[1 << 3], [1 << 7]], dtype=torch.int32)
    drawn = Sampler(VOCAB).draw(torch.tensor([LOGITS] * 2), [row(), row(temperature=0.0)], masks)
    assert [d.token for d in drawn] == [3, 7]


def mixed_batch(count: int, vocab: int) -> tuple[torch.Tensor, list[Row], np.ndarray, list[int]]:
    random = np.random.default_rng(3)
    rows = []
    for i in range(count):
        shape = {
            "temperature": float(random.choice([0.0, 0.7, 1.0, 1.5])),
            "top_k": int(random.choice([-1, 1, 5, 50])),
            "top_p": float(random.choice([1.0, 0.9, 0.5])),
            "min_p": float(random.choice([0.0, 0.05])),
            "frequency_penalty": float(random.choice([0.0, 0.0, 0.5])),
            "repetition_penalty": float(random.choice([1.0, 1.0, 1.2])),
            "seed": int(random.integers(0, 2**63 - 1)),
        }
        history = random.integers(0, vocab, 20).tolist()
        rows.append(
            row(int(random.integers(0, 5000)), i, int(random.choice([-1, 0, 3])), history[:9], history, **shape)
        )
    masked = random.permutation(count)[: count // 3].tolist()
    masks = random.integers(-(2**31), 2**31, (len(masked), -(-vocab // 32))).astype(np.int32)
    return torch.from_numpy(random.normal(size=(count, vocab)).astype(np.float32)) * 3, rows, masks, masked


def test_a_row_alone_draws_the_same_token_as_in_any_batch() -> None:
    logits, rows, masks, masked = mixed_batch(48, 1000)
    sampler = Sampler(1000)
    together = sampler.draw(logits, rows, masks, masked)
    for i, one in enumerate(rows):
        own = masks[[masked.index(i)]] if i in masked else None
        alone = sampler.draw(logits[i : i + 1], [one], own)[0]
        assert alone.token == together[i].token
        assert (alone.score is None) == (together[i].score is None)
    order = np.random.default_rng(0).permutation(48).tolist()
    moved = sampler.draw(logits[order], [rows[i] for i in order], masks, [order.index(i) for i in masked])
    assert [d.token for d in moved] == [together[i].token for i in order]


def test_drawing_twice_gives_the_same_and_another_seed_or_position_another() -> None:
    logits = torch.zeros(1, 5000)
    sampler = Sampler(5000)

    def token(**changes: int) -> int:
        return sampler.draw(logits, [row(changes.get("position", 9), seed=changes.get("seed", 4))])[0].token

    assert token() == token()
    assert len({token(), token(seed=5), token(position=10), token(seed=2**63 - 1)}) == 4


def test_the_callers_logits_are_not_changed() -> None:
    logits, rows, masks, masked = mixed_batch(32, 333)
    before = logits.clone()
    Sampler(333).draw(logits, rows, masks, masked)
    assert torch.equal(logits, before)


def test_padding_of_the_output_layer_is_never_drawn() -> None:
    logits = torch.zeros(200, 64)
    logits[:, 40:] = 100.0
    drawn = Sampler(40).draw(
        logits, [row(i, seed=1, logprobs=1, temperature=t) for i, t in enumerate([0.0, 1.0] * 100)]
    )
    assert all(0 <= d.token < 40 for d in drawn)
    assert all(d.score is not None and d.score.top[0].id < 40 for d in drawn)


def test_scores_belong_to_the_unshaped_distribution() -> None:
    rows = [
        row(0, logprobs=2, temperature=0.1, seed=1),
        row(1),
        row(2, logprobs=0, top_k=1, answer=[1], presence_penalty=2.0),
    ]
    masks = np.array([[1 << 4]], dtype=np.int32)
    first, second, third = Sampler(VOCAB).draw(torch.tensor([LOGITS] * 3), rows, masks, [0])
    p = np.log(softmax(LOGITS))
    assert first.token == 4
    assert first.score is not None
    assert first.score.logprob == pytest.approx(p[4], abs=1e-6)
    assert [t.id for t in first.score.top] == [1, 2]
    assert second.score is None
    assert third.token == 2
    assert third.score is not None
    assert third.score.top == ()


def test_a_row_without_a_token_says_why_and_the_others_keep_theirs() -> None:
    logits = torch.tensor([LOGITS] * 3)
    logits[1, 2] = torch.nan
    rows = [row(request=70, temperature=0.0), row(request=71, logprobs=1), row(request=72)]
    good, infinite, masked = Sampler(VOCAB).draw(logits, rows, np.zeros((1, 1), dtype=np.int32), [2])
    assert good == Draw(1)
    assert (infinite.token, masked.token) == (-1, -1)
    assert "NaN" in infinite.fault and "mask" in masked.fault


def test_no_rows_draw_nothing() -> None:
    assert Sampler(VOCAB).draw(torch.empty(0, VOCAB), []) == []


def test_logits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Sampler(VOCAB + 1).draw(torch.tensor([LOGITS]), [row()])
    with pytest.raises(ValueError, match="no shape"):
        Sampler(VOCAB).draw(torch.tensor([LOGITS]), [Row(3, 0, (1,), (0,))])
