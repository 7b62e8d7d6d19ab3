"""Where the rows of side branches begin, which pages they have, what they compute again."""

from __future__ import annotations

from array import array

import pytest

from branchwork.runtime.plan import Row
from branchwork.runtime.scheduler.limbs import bounded, ids_in, placed, rows_of
from branchwork.runtime.speculative.draft import Draft, chain
from branchwork.runtime.wire import Shape

KNOWN = array("i", range(100, 107))
#   behind 106:  1 ── 2 ── 3
#                └─ 4 ── 5        behind 1
#                   └─ 6          behind 4
TREE = Draft((1, 2, 3, 4, 5, 6), (-1, 0, 1, 0, 3, 3), ("x",) * 6, (0,) * 6)


def main_row(pages: int) -> Row:
    return Row(9, 6, [106, 1, 2, 3], list(range(50, 50 + pages)), Shape(), position=7, draft=3)


def test_with_pages_of_one_id_a_row_computes_its_guesses_alone() -> None:
    branches = placed(TREE, 7, 1)
    assert [(b.start, b.source, b.pages) for b in branches] == [(8, 10, 2), (9, 12, 1)]
    side, nested = rows_of(main_row(13), TREE, branches, KNOWN, 1)
    assert (side.start, side.ids, side.draft, side.position) == (8, [4, 5], 1, 9)
    assert side.pages == [*range(50, 58), 60, 61]
    assert (nested.start, nested.ids, nested.draft, nested.position) == (9, [6], 0, 10)
    assert nested.pages == [*range(50, 58), 60, 62], "what it grows from is in the pages of the branch"
    assert ids_in(branches, 7) == 3


@pytest.mark.parametrize(
    ("size", "starts", "first", "second"),
    [(4, [8, 8], [4, 5], [4, 6]), (8, [8, 8], [4, 5], [4, 6]), (16, [0, 0], [*KNOWN, 1, 4, 5], [*KNOWN, 1, 4, 6])],
)
def test_a_row_begins_with_its_page_and_computes_again_what_is_in_it(
    size: int, starts: list[int], first: list[int], second: list[int]
) -> None:
    branches = placed(TREE, 7, size)
    trunk = -(-10 // size)
    assert [(b.start, b.source, b.pages) for b in branches] == [(s, trunk + n, 1) for n, s in enumerate(starts)]
    side, nested = rows_of(main_row(trunk + 2), TREE, branches, KNOWN, size)
    assert (list(side.ids), list(nested.ids)) == (first, second)
    assert side.pages == [*range(50, 50 + starts[0] // size), 50 + trunk]
    assert nested.pages == [*range(50, 50 + starts[0] // size), 51 + trunk]
    assert ids_in(branches, 7) == len(first) + len(second)


def test_a_tree_is_cut_to_its_trunk_where_its_rows_or_pages_do_not_fit() -> None:
    assert bounded(TREE, 7, 1, 6, 6) == (TREE, 13)
    for ids, tokens in ((5, 6), (6, 5)):
        assert bounded(TREE, 7, 1, ids, tokens) == (TREE.cut(3), 10)
    straight = chain([1, 2], "x")
    assert bounded(straight, 7, 16, 2, 2) == (straight, 9)
