"""Which of the drawn tokens count."""

from __future__ import annotations

import pytest

from branchwork.runtime.speculative.verify import verified


@pytest.mark.parametrize(
    ("guesses", "drawn", "count"),
    [
        ([], [7], 1),
        ([7], [7, 8], 2),
        ([7], [9, 8], 1),
        ([7, 8, 9], [7, 8, 9, 1], 4),
        ([7, 8, 9], [7, 5, 9, 1], 2),
    ],
)
def test_tokens_count_up_to_and_with_the_first_that_was_not_guessed(
    guesses: list[int], drawn: list[int], count: int
) -> None:
    assert verified(guesses, drawn) == count
