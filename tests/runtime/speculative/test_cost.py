"""Guesses are taken while they raise the tokens per second of a step, by what steps really took."""

from __future__ import annotations

import pytest

from branchwork.runtime.speculative.cost import PLAIN_EVERY, StepCost, measured

MEMORY_BOUND = [(1, 10.0), (64, 10.63)]
COMPUTE_BOUND = [(1, 1.0), (64, 64.0)]


def taken(cost: StepCost, draws: int, chance: float) -> int:
    worth = cost.begin(draws)
    count = 0
    while count < 64 and worth.takes(chance ** (count + 1)):
        count += 1
    return count


def test_guesses_are_free_where_nothing_was_measured() -> None:
    assert taken(StepCost(), 4, 0.5) == 64


def test_a_memory_bound_step_takes_doubtful_guesses_and_a_full_one_hardly_any() -> None:
    assert taken(StepCost(MEMORY_BOUND), 1, 0.6) >= 8
    assert taken(StepCost(COMPUTE_BOUND), 32, 0.9) == 0
    assert taken(StepCost(COMPUTE_BOUND), 1, 0.5) == 0


def test_the_surer_a_guess_the_more_of_them_ride() -> None:
    cost = StepCost([(1, 1.0), (64, 20.0)])
    lengths = [taken(cost, 1, chance) for chance in (0.3, 0.6, 0.9, 0.99)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_what_steps_really_take_is_learned_for_each_load() -> None:
    cost = StepCost(MEMORY_BOUND)
    for _ in range(200):
        cost.observe(8, 0, 10.0)
        cost.observe(8, 8, 20.0)  # each guess takes as long as a token
    assert cost.load(8).per_guess == pytest.approx(1.25, rel=0.1)
    assert taken(cost, 8, 0.9) == 0
    assert taken(cost, 1, 0.9) > 8, "another load was not touched"


def test_one_slow_step_does_not_change_what_is_believed() -> None:
    cost = StepCost(MEMORY_BOUND)
    before = cost.load(1).plain
    cost.observe(1, 0, 1e6)
    assert cost.load(1).plain < 1.3 * before


def test_now_and_then_a_step_goes_without_guesses() -> None:
    cost = StepCost(MEMORY_BOUND)
    for _ in range(PLAIN_EVERY):
        assert not cost.begin(1).plain
        cost.observe(1, 3, 10.0)
    assert cost.begin(1).plain
    cost.observe(1, 0, 10.0)
    assert not cost.begin(1).plain


def test_measuring_takes_the_fastest_of_each_and_ends_in_time() -> None:
    now = 0.0
    sizes: list[int] = []

    def forward(tokens: int) -> None:
        nonlocal now
        now += 0.001 * tokens * (10.0 if len(sizes) < 3 else 1.0)  # slow at first
        sizes.append(tokens)

    cost = measured(forward, lambda: now, 16)
    assert max(sizes) == 16 and now < 0.5
    assert cost.points[0] == (1, pytest.approx(0.001)) and cost.points[-1] == (16, pytest.approx(0.016))


def test_a_model_too_slow_to_measure_costs_nothing_but_one_forward() -> None:
    now = 0.0

    def forward(tokens: int) -> None:
        nonlocal now
        now += 5.0

    assert measured(forward, lambda: now, 64).points == []
    assert now == 5.0
