"""The scorers pick what their rule says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwork.lang.choices import (
    decide,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)

scores = st.lists(st.lists(st.floats(-20, 0), min_size=1, max_size=5), min_size=1, max_size=6)


def test_token_length_normalized_takes_the_best_mean() -> None:
    assert decide(token_length_normalized, [[-1.0], [-3.0, -0.1, -0.1]]) == (0, [-1.0, pytest.approx(-3.2 / 3)])
    assert decide(token_length_normalized, [[-2.0], [-3.0, -0.1, -0.1]])[0] == 1


def test_greedy_follows_the_best_token_though_its_mean_is_worse() -> None:
    assert decide(greedy_token_selection, [[-1.0, -9.0], [-1.5, -0.1]])[0] == 0


def test_greedy_pads_a_shorter_option_with_its_own_mean() -> None:
    assert decide(greedy_token_selection, [[-1.0], [-1.0, -0.5]])[0] == 1
    assert decide(greedy_token_selection, [[-1.0], [-1.0, -1.5]])[0] == 0


def test_unconditional_rewards_what_the_prompt_made_likelier() -> None:
    chosen, gains = decide(unconditional_likelihood_normalized, [[-1.0], [-2.0]], [[-1.0], [-9.0]])
    assert (chosen, gains) == (1, [0.0, 7.0])


def test_noise_below_the_tolerance_leaves_the_lowest_index() -> None:
    for method in (token_length_normalized, greedy_token_selection):
        assert decide(method, [[-1.0000001, -2.0], [-1.0, -2.0]])[0] == 0
    assert decide(unconditional_likelihood_normalized, [[-1.0], [-1.0]], [[-2.0], [-2.0000001]])[0] == 0


@given(scores)
def test_the_chosen_mean_is_within_tolerance_of_the_best(options: list[list[float]]) -> None:
    chosen, means = decide(token_length_normalized, options)
    assert means[chosen] >= max(means) - 1e-6


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=6))
def test_all_methods_agree_on_single_tokens_with_flat_unconditionals(values: list[float]) -> None:
    options = [[value] for value in values]
    flat = [[-1.0]] * len(options)
    assert decide(token_length_normalized, options)[0] == decide(greedy_token_selection, options)[0]
    chosen = decide(unconditional_likelihood_normalized, options, flat)[0]
    assert options[chosen][0] >= max(values) - 2e-6


@pytest.mark.parametrize(
    ("method", "options", "unconditional"),
    [
        ("nonsense", [[-1.0]], None),
        (token_length_normalized, [], None),
        (token_length_normalized, [[-1.0], []], None),
        (unconditional_likelihood_normalized, [[-1.0]], None),
        (unconditional_likelihood_normalized, [[-1.0]], [[-1.0, -1.0]]),
    ],
)
def test_unusable_scores_are_refused(
    method: str, options: list[list[float]], unconditional: list[list[float]] | None
) -> None:
    with pytest.raises(ValueError):
        decide(method, options, unconditional)


def test_exact_gives_the_probability_of_each_option_out_of_all() -> None:
    index, scores = decide("exact", [[-1.0, -2.0], [-0.5]], ends=[-0.1, -4.0])
    weights = [math.exp(-3.1), math.exp(-4.5)]
    assert index == 0
    assert [math.exp(score) for score in scores] == pytest.approx([weight / sum(weights) for weight in weights])


def test_exact_does_not_prefer_an_option_that_only_begins_another() -> None:
    """After "cat" the model nearly always goes on to "category"."""
    cat, category = [-0.1], [-0.1, -0.05]
    assert decide("token_length_normalized", [cat, category])[0] == 1
    assert decide("exact", [cat, category])[0] == 0, "without knowing where it ends, the shorter one is likelier"
    assert decide("exact", [cat, category], ends=[math.log(0.05), 0.0])[0] == 1
