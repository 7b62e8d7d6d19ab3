"""The scorers of `select`: from log-probabilities of each option's tokens to the index of the chosen option.

Knows: numbers. Must not know: text, tokens, who computed the numbers. Equal within TOLERANCE: the lowest index wins.
The rules follow SGLang's choices_method; unconditional scores are taken after a neutral context, not left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

token_length_normalized = "token_length_normalized"
greedy_token_selection = "greedy_token_selection"
unconditional_likelihood_normalized = "unconditional_likelihood_normalized"
exact = "exact"
METHODS = (token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized, exact)
TOLERANCE = 1e-6  # batch order moves a log-probability by about this much in float32


def decide(
    method: str,
    scores: Sequence[Sequence[float]],
    unconditional: Sequence[Sequence[float]] | None = None,
    ends: Sequence[float] | None = None,
) -> tuple[int, list[float]]:
    """The chosen option's index, and one normalised score per option (the mean log-probability for the greedy method).

    exact: the log-probability that the model writes this option and none that goes on from it, out of all options.

    scores: [options][tokens] log-probabilities, at least one token each, all scored from the same start.
    unconditional: the same shape without the prompt; needed by unconditional_likelihood_normalized alone.
    ends: per option the log-probability that it ends where it does; exact takes it as 0 when it is not given.
    Raises ValueError for an unknown method, no options, an option without tokens, or shapes that differ.
    """
    if not scores or not all(scores):
        raise ValueError("select needs at least one option and at least one token per option")
    means = [_mean(option) for option in scores]
    if method == token_length_normalized:
        return _first_best(means), means
    if method == greedy_token_selection:
        return _greedy(scores, means), means
    if method == exact:
        whole = [sum(option) + (ends[index] if ends else 0.0) for index, option in enumerate(scores)]
        best = max(whole)
        total = best + math.log(sum(math.exp(value - best) for value in whole))
        return _first_best(whole), [value - total for value in whole]
    if method != unconditional_likelihood_normalized:
        raise ValueError(f"unknown choices_method {method!r}; known: {', '.join(METHODS)}")
    if unconditional is None or [len(o) for o in unconditional] != [len(o) for o in scores]:
        raise ValueError(f"{method} needs one unconditional log-probability per token of every option")
    gains = [_mean([c - u for c, u in zip(cond, without)]) for cond, without in zip(scores, unconditional)]
    return _first_best(gains), gains


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _first_best(values: Sequence[float]) -> int:
    best = max(values)
    return next(index for index, value in enumerate(values) if value >= best - TOLERANCE)


def _greedy(scores: Sequence[Sequence[float]], means: Sequence[float]) -> int:
    """Token by token keep the options with the best log-probability; a shorter option goes on with its own mean."""
    left = list(range(len(scores)))
    for place in range(max(len(option) for option in scores)):
        column = {i: scores[i][place] if place < len(scores[i]) else means[i] for i in left}
        best = max(column.values())
        left = [i for i in left if column[i] >= best - TOLERANCE]
        if len(left) == 1:
            break
    return left[0]
