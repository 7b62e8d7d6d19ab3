"""Known tokens' scores against torch.log_softmax."""

from __future__ import annotations

import pytest
import torch

from branchwork.runtime.sampling.logprobs import known_scores


@pytest.mark.parametrize("top", [0, 1, 5, 100])
def test_scores_equal_log_softmax(top: int) -> None:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(30, 64, generator=draw) * 5
    ids = torch.randint(64, (30,), generator=draw).tolist()
    expected = logits.double().log_softmax(-1)
    for i, score in enumerate(known_scores(logits, ids, top)):
        assert score.id == ids[i]
        assert score.logprob == pytest.approx(expected[i, ids[i]].item(), abs=1e-5)
        values, order = expected[i].sort(descending=True)
        assert [t.id for t in score.top] == order[:top].tolist()
        assert [t.logprob for t in score.top] == pytest.approx(values[:top].tolist(), abs=1e-5)


def test_equal_alternatives_come_by_id() -> None:
    (score,) = known_scores(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), [0], 4)
    assert [t.id for t in score.top] == [1, 2, 0, 3]


def test_no_rows_give_no_scores() -> None:
    assert known_scores(torch.empty(0, 9), [], 3) == []


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="below 9"):
        known_scores(torch.zeros(1, 9), [9], 0)
    with pytest.raises(ValueError, match="2 rows"):
        known_scores(torch.zeros(2, 9), [1], 0)
