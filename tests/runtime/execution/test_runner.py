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
    row = Row(0, 0, IDS, list(range(8)), shape=GREEDY, position=8, score_from=3, score_next=(17,), score_top=2)
    (drawn,) = make_runner().launch(Plan(4, (row,))).sample().collect().rows
    expected = log_probabilities(IDS)
    assert drawn.tokens[0] == expected[-1].argmax().item()
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
        Row(r, 0, IDS[: 2 + r], list(range(8 * r, 8 * r + 2 + r)), score_from=1, score_next=(40 + r,), score_top=r % 2)
        for r in range(5)
    )
    result = make_runner().launch(Plan(0, rows)).sample().collect()
    expected = log_probabilities(IDS)
    for r, drawn in enumerate(result.rows):
        assert drawn.tokens == ()
        assert [score.id for score in drawn.known] == [*IDS[1 : 2 + r], 40 + r]
        assert all(len(score.top) == r % 2 for score in drawn.known)
        assert drawn.known[0].logprob == pytest.approx(expected[0, IDS[1]].item(), abs=1e-4)


def test_rows_that_only_fill_the_cache_bring_nothing() -> None:
    runner = make_runner(page_size=4)
    assert runner.launch(Plan(0, (Row(0, 0, IDS, [3, 9]),))).collect().rows == (Drawn(),)
    row = Row(0, 8, [31], [3, 9, 2], shape=GREEDY, position=9)
    expected = log_probabilities([*IDS, 31])[-1].argmax().item()
    assert runner.launch(Plan(1, (row,))).sample().collect().rows[0].tokens[0] == expected


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
    expected = [(log_probabilities([5])[-1].argmax().item(),), (), (40,)]
    for masks, masked in ((torch.cat((everything, only_40)), None), (only_40, [1])):
        result = make_runner().launch(Plan(0, rows)).sample(masks, masked).collect()
        assert [drawn.tokens for drawn in result.rows] == expected


def test_guesses_that_come_true_are_kept_and_nothing_after_the_first_that_does_not() -> None:
    """A drafted row gives the tokens, and the scores, of drawing one by one."""

    def step(ids: list[int], draft: int, number: int) -> Drawn:
        known = len(ids) - draft
        row = Row(0, 0, ids, list(range(12)), GREEDY, position=known, logprobs=0, draft=draft)
        return make_runner().launch(Plan(number, (row,))).sample().collect().rows[0]

    alone: list[Drawn] = []
    for n in range(4):
        alone.append(step([*IDS[:4], *(token for one in alone for token in one.tokens)], 0, n))
    tokens = [one.tokens[0] for one in alone]
    wrong = (tokens[2] + 1) % 300
    for guesses, right in (([], 1), (tokens[:1], 2), (tokens[:3], 4), ([*tokens[:2], wrong], 3), ([wrong], 1)):
        drawn = step([*IDS[:4], *guesses], len(guesses), 9)
        assert list(drawn.tokens) == tokens[:right]
        scores = [one.scores[0].logprob for one in alone[:right]]
        assert [score.logprob for score in drawn.scores] == pytest.approx(scores, abs=1e-4)


def test_a_draft_that_the_mask_allows_alone_always_comes_true() -> None:
    guesses = [17, 40, 3]
    masks = torch.zeros(4, 10, dtype=torch.int32)
    for n, token in enumerate([*guesses, 8]):
        masks[n, token // 32] = 1 << (token % 32)
    rows = (
        Row(0, 0, [5, *guesses], [0, 1, 2, 3], GREEDY, position=1, draft=3),
        Row(1, 0, [5], [4], GREEDY, position=1),
    )
    drafted, free = make_runner().launch(Plan(0, rows)).sample(masks, [0, 1, 2, 3]).collect().rows
    assert drafted.tokens == (*guesses, 8)
    assert free.tokens == (log_probabilities([5])[-1].argmax().item(),)


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
