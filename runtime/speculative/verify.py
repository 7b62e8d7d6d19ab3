"""Which guesses came true: the rule by which drafted tokens become an answer.

Knows: token ids. Must not know: who guessed, requests, tensors.
A draw is a pure function of (logits, mask, seed, position), so the token drawn after a guess that was itself drawn is
the one that would have been drawn without guessing: keeping those is exact, for greedy and sampled answers alike.
"""

from __future__ import annotations

from collections.abc import Sequence


def verified(guesses: Sequence[int], drawn: Sequence[int]) -> int:
    """How many of the `drawn` tokens count: those after guesses that came true, and the first after them.

    drawn has one token more than guesses: drawn[i] was drawn with guesses[:i] before it.
    """
    count = 1
    for guess, token in zip(guesses, drawn):
        if guess != token:
            break
        count += 1
    return count
