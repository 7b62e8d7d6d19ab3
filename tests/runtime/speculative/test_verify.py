"""Which of the drawn tokens count, and which way they go through a tree of guesses."""

from __future__ import annotations

import pytest

from branchwork.runtime.plan import Drawn
from branchwork.runtime.speculative.draft import Draft, Limb
from branchwork.runtime.speculative.verify import followed, verified
from branchwork.runtime.wire import TokenScore

#   5 ── 6 ── 7         0 1 2
#   │    └─ 8 ── 9        3 4
#   │       └─ 4            5
#   └─ 3                6 (behind nothing: another first guess)
TREE = Draft((5, 6, 7, 8, 9, 4, 3), (-1, 0, 1, 0, 3, 3, -1), ("x",) * 7, (0,) * 7)


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


def test_a_tree_falls_into_a_trunk_and_limbs() -> None:
    assert TREE.trunk == 3
    assert TREE.limbs() == [Limb(0, 3, 5, (5,)), Limb(3, 5, 6, (5, 8)), Limb(-1, 6, 7, ())]
    assert TREE.cut(3).limbs() == [] and TREE.cut(3).trunk == 3
    assert TREE.along([0, 3, 5]) == Draft((5, 8, 4), (-1, 0, 1), ("x",) * 3, (0,) * 3)


@pytest.mark.parametrize(
    ("rows", "tokens", "path"),
    [
        ([[2], [9], [0], [0]], [2], []),
        ([[5, 6, 7, 1], [9], [0], [0]], [5, 6, 7, 1], [0, 1, 2]),
        ([[5, 8], [9, 1], [0], [0]], [5, 8, 9, 1], [0, 3, 4]),
        ([[5, 8], [4], [0], [0]], [5, 8, 4, 0], [0, 3, 5]),
        ([[5, 8], [1], [0], [0]], [5, 8, 1], [0, 3]),
        ([[3], [9], [0], [7]], [3, 7], [6]),
        ([[5, 6, 8], [9], [0], [0]], [5, 6, 8], [0, 1]),
    ],
)
def test_a_token_that_the_row_did_not_guess_is_followed_to_the_limb_that_did(
    rows: list[list[int]], tokens: list[int], path: list[int]
) -> None:
    scored = [Drawn(tuple(row), tuple(TokenScore(t, -float(t)) for t in row)) for row in rows]
    drawn, found = followed(TREE, TREE.limbs(), scored)
    assert list(drawn.tokens) == tokens and found == path
    assert [score.id for score in drawn.scores] == tokens and not drawn.fault


def test_a_row_that_cannot_draw_ends_the_way_with_its_fault_unless_it_is_not_reached() -> None:
    limbs = TREE.limbs()
    rows = [Drawn((5,), fault="no token"), Drawn((9, 1)), Drawn((0,)), Drawn((0,))]
    assert followed(TREE, limbs, rows) == (Drawn((5,), fault="no token"), [0])
    rows = [Drawn((5, 8)), Drawn((9,), fault="no token"), Drawn((0,)), Drawn((0,))]
    assert followed(TREE, limbs, rows) == (Drawn((5, 8, 9), fault="no token"), [0, 3, 4])
    rows = [Drawn((5, 8)), Drawn((), fault="no token"), Drawn((0,)), Drawn((0,))]
    assert followed(TREE, limbs, rows) == (Drawn((5, 8), fault="no token"), [0, 3])
    rows = [Drawn((5, 6, 1)), Drawn((), fault="no token"), Drawn((0,)), Drawn((0,))]
    assert followed(TREE, limbs, rows) == (Drawn((5, 6, 1)), [0, 1])
