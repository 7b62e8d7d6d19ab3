"""A Plan becomes exactly the tensors that its rows describe, and a contradictory plan is refused."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.runtime.execution.inputs import Inputs, Known
from branchwork.runtime.plan import Plan, Row
from branchwork.runtime.wire import Shape

CPU = torch.device("cpu")
DRAW = Shape(temperature=0.0)


def row(request: int, start: int, count: int, page_size: int, numbers: random.Random, **more: object) -> Row:
    pages = numbers.sample(range(500), -(-(start + count) // page_size))
    return Row(request, start, [numbers.randrange(1000) for _ in range(count)], pages, **more)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.booleans()), min_size=1, max_size=8),
    page_size=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 99),
)
def test_every_tensor_follows_from_its_row(rows: list[tuple[int, int, bool]], page_size: int, seed: int) -> None:
    numbers = random.Random(seed)
    made = [
        row(i, start, count, page_size, numbers, shape=DRAW if drawn else None)
        for i, (start, count, drawn) in enumerate(rows)
    ]
    step, wanted = Inputs(page_size, CPU).build(Plan(0, tuple(made)))
    assert step.ids.tolist() == [token for r in made for token in r.ids]
    assert step.positions.tolist() == [p for r in made for p in range(r.start, r.start + len(r.ids))]
    assert step.cu_rows.diff().tolist() == [len(r.ids) for r in made]
    assert step.kv_len.tolist() == [r.start + len(r.ids) for r in made]
    slots = [
        r.pages[p // page_size] * page_size + p % page_size for r in made for p in range(r.start, r.start + len(r.ids))
    ]
    assert step.slots.tolist() == slots
    for r, numbers_of_row in zip(made, step.page_table.tolist()):
        assert numbers_of_row[: len(r.pages)] == list(r.pages)
    drawing = [i for i, (_, _, drawn) in enumerate(rows) if drawn]
    assert wanted.drawing == tuple(drawing)
    assert step.logits_index.tolist() == [int(step.cu_rows[i + 1]) - 1 for i in drawing]


def test_rows_of_one_request_keep_their_own_pages_step_after_step() -> None:
    inputs = Inputs(1, CPU)
    for length in (3, 4, 5):
        pages = [list(range(7, 7 + length)), [7, 8, *range(90, 88 + length)], [7, *range(40, 39 + length)]]
        rows = tuple(Row(0, length - 1, [5], one, shape=DRAW) for one in pages)
        step, _ = inputs.build(Plan(length, rows))
        assert step.page_table.tolist() == pages
        assert step.slots.tolist() == [one[-1] for one in pages]


def test_scores_are_read_one_place_before_their_token() -> None:
    """Row 1 wants known tokens 2 and 3 of its ids and the one that follows; row 0 draws."""
    rows = (
        Row(0, 5, [50], [0, 1, 2, 3, 4, 5], shape=DRAW),
        Row(1, 0, [10, 11, 12, 13], [6, 7, 8, 9], score_from=2, score_next=(14,), score_top=3),
    )
    step, wanted = Inputs(1, CPU).build(Plan(0, rows))
    assert step.logits_index.tolist() == [0, 2, 3, 4]
    assert wanted.drawing == (0,)
    assert wanted.known == (Known(1, 12, 3, 0), Known(1, 13, 3, 1), Known(1, 14, 3, 2))


def test_a_single_token_prefix_scores_only_what_follows() -> None:
    step, wanted = Inputs(1, CPU).build(Plan(0, (Row(0, 0, [10], [3], score_from=1, score_next=(14,)),)))
    assert step.logits_index.tolist() == [0]
    assert wanted.known == (Known(0, 14, 0, 0),)


def test_token_zero_has_no_score() -> None:
    _, wanted = Inputs(1, CPU).build(Plan(0, (Row(0, 0, [10, 11], [3, 4], score_from=0),)))
    assert [known.token for known in wanted.known] == [11]


def test_page_lists_may_grow_shrink_and_change_between_steps() -> None:
    """Page lists are remembered from the step before; whatever happens to the live list must show."""
    inputs, live = Inputs(1, CPU), list(range(100, 180))

    def table() -> list[int]:
        ids = [0] * len(live)
        return inputs.build(Plan(0, (Row(7, 0, ids, live),)))[0].page_table[0].tolist()

    assert table() == live
    live.append(3)
    assert table() == live
    live[40] = 9  # swapped for the tree's page
    assert table() == live
    live[0] = 11
    live.extend(range(200, 300))
    assert table() == live
    del live[20:]
    assert table() == live


def test_rows_of_one_request_keep_their_own_pages() -> None:
    """The options of a Score share a request number."""
    rows = tuple(Row(1, 2, [5], [0, 1, 10 + i], score_from=1, score_next=(4,)) for i in range(4))
    for _ in range(2):
        step, _ = Inputs(1, CPU).build(Plan(0, rows))
        assert step.slots.tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize("bad", [Row(3, 0, [], [1]), Row(3, 4, [1], [1, 2, 3, 4])])
def test_a_row_without_ids_or_pages_is_refused_by_its_request(bad: Row) -> None:
    with pytest.raises(ValueError, match="request 3"):
        Inputs(1, CPU).build(Plan(0, (Row(1, 0, [1], [1]), bad)))
    with pytest.raises(ValueError, match="cannot be run"):
        Inputs(1, CPU).build(Plan(0, ()))
