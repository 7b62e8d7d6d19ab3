"""A launched plan brings one Drawn a row, and known tokens get the log-probabilities that transformers gives them."""

from __future__ import annotations

import pytest
import torch

from branchwork.runtime.execution import runner as runner_module
from branchwork.runtime.execution.runner import Runner, pick_device
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.registry import load_model
from branchwork.runtime.plan import Drawn, Plan, Row
from branchwork.runtime.wire import Shape
from tests.checkpoints import checkpoint, reference

GREEDY = Shape(temperature=0.0)
IDS = [5, 77, 301, 12, 64, 64, 200, 9]


def make_runner(page_size: int = 1) -> Runner:
    return Runner.build(load_model(checkpoint("llama"), dtype="float32"), pages=64, page_size=page_size)


def log_probabilities(ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = reference("llama")(torch.tensor([ids])).logits[0]
    return logits.log_softmax(-1)


def test_known_tokens_are_scored_beside_a_draw() -> None:
    row = Row(0, 0, IDS, list(range(8)), shape=GREEDY, position=8, score_from=3, score_next=17, score_top=2)
    (drawn,) = make_runner().launch(Plan(4, (row,))).collect().rows
    expected = log_probabilities(IDS)
    assert drawn.token == expected[-1].argmax().item()
    tokens = [*IDS[3:], 17]
    assert [score.id for score in drawn.known] == tokens
    assert [score.logprob for score in drawn.known] == pytest.approx(
        [expected[2 + i, token].item() for i, token in enumerate(tokens)], abs=1e-4
    )
    assert [top.id for top in drawn.known[0].top] == expected[2].topk(2).indices.tolist()


def test_scores_wanted_in_different_depths_come_back_to_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed in small parts that cut through rows."""
    monkeypatch.setattr(runner_module, "SCORES_AT_ONCE", 3)
    rows = tuple(
        Row(r, 0, IDS[: 2 + r], list(range(8 * r, 8 * r + 2 + r)), score_from=1, score_next=40 + r, score_top=r % 2)
        for r in range(5)
    )
    result = make_runner().launch(Plan(0, rows)).collect()
    expected = log_probabilities(IDS)
    for r, drawn in enumerate(result.rows):
        assert drawn.token == -1
        assert [score.id for score in drawn.known] == [*IDS[1 : 2 + r], 40 + r]
        assert all(len(score.top) == r % 2 for score in drawn.known)
        assert drawn.known[0].logprob == pytest.approx(expected[0, IDS[1]].item(), abs=1e-4)


def test_rows_that_only_fill_the_cache_bring_nothing() -> None:
    runner = make_runner(page_size=4)
    assert runner.launch(Plan(0, (Row(0, 0, IDS, [3, 9]),))).collect().rows == (Drawn(),)
    row = Row(0, 8, [31], [3, 9, 2], shape=GREEDY, position=9)
    expected = log_probabilities([*IDS, 31])[-1].argmax().item()
    assert runner.launch(Plan(1, (row,))).collect().rows[0].token == expected


def test_masks_reach_the_rows_that_draw() -> None:
    """Only token 40 is allowed for the second drawing row; the row between them draws nothing."""
    rows = (
        Row(0, 0, [5], [0], shape=GREEDY, position=1),
        Row(1, 0, [5], [1]),
        Row(2, 0, [5], [2], shape=GREEDY, position=1),
    )
    only_40 = torch.zeros(1, 10, dtype=torch.int32)
    only_40[0, 40 // 32] = 1 << (40 % 32)
    everything = torch.full((1, 10), -1, dtype=torch.int32)
    expected = [log_probabilities([5])[-1].argmax().item(), -1, 40]
    for masks, masked in ((torch.cat((everything, only_40)), None), (only_40, [1])):
        result = make_runner().launch(Plan(0, rows)).collect(masks, masked)
        assert [drawn.token for drawn in result.rows] == expected


def test_more_pages_than_memory_is_refused_with_both_figures() -> None:
    model = load_model(checkpoint("llama"), dtype="float32")
    with pytest.raises(LoadError, match=r"need \d+\.\d+ GiB, and \d+\.\d+ GiB are free") as caught:
        Runner.build(model, pages=10**9, page_size=16)
    assert caught.value.code == "memory"


def test_devices_are_what_the_machine_has() -> None:
    assert pick_device("cpu") == "cpu"
    if not torch.cuda.is_available():
        assert pick_device("auto") == "cpu"
        with pytest.raises(LoadError, match="use device=cpu"):
            pick_device("cuda")
