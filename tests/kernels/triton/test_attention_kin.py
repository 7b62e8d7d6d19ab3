"""Rows that begin alike are found, and found again as they grow, come and go; what is remembered is never wrong."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from branchwork.kernels.reference.planning import PagedRows
from branchwork.kernels.triton import attention_kin
from branchwork.kernels.triton.attention_kin import Kinship, alike
from branchwork.kernels.triton.attention_plan import Policy, Shape, plan
from branchwork.kernels.triton.attention_planner import Planner

SHAPE = Shape(size=4, group=4, kv_heads=2, heights=(16, 64, 128), units=8)


def words(pages: list[int]) -> np.ndarray:
    return np.array(pages, np.int32)


@pytest.mark.parametrize("one, other, common", [([], [1], 0), ([1, 2, 3], [1, 2], 2), ([1, 2, 3], [1, 9, 3], 1)])
def test_pages_are_in_common_up_to_the_first_that_differs(one: list[int], other: list[int], common: int) -> None:
    for low in range(common + 1):
        assert alike(words(one), words(other), low, min(len(one), len(other))) == common


def check(kinship: Kinship, rows: dict[int, list[int]], usable: dict[int, int]) -> list[int]:
    """Every row once, and what neighbours have in common is what they have in common. Returns that."""
    keys = list(rows)
    limits = np.array([usable[key] for key in keys], np.int64)
    order, common = kinship.sorted(keys, [words(rows[key]) for key in keys], limits)
    assert sorted(order.tolist()) == list(range(len(keys)))
    seen = [rows[keys[r]][: usable[keys[r]]] for r in order.tolist()]
    exact = [alike(words(one), words(other), 0, min(len(one), len(other))) for one, other in pairwise(seen)]
    assert all(found <= real for found, real in zip(common.tolist(), exact, strict=True))
    return [real - found for found, real in zip(common.tolist(), exact, strict=True)]


@pytest.mark.parametrize("seed", range(30))
def test_rows_that_grow_come_and_go_are_compared_as_if_anew(seed: int) -> None:
    chance = random.Random(seed)
    kinship, rows, usable = Kinship(), {}, {}
    stock = iter(range(10_000))
    for step in range(25):
        for _ in range(chance.choice((0, 0, 1, 3)) if rows else 8):
            parent = chance.choice([*rows.values(), []])
            begin = parent[: chance.randrange(len(parent) + 1)]
            key = 1000 * step + next(stock)
            rows[key] = [*begin, *(next(stock) for _ in range(chance.randrange(1, 30)))]
            usable[key] = chance.choice((0, len(rows[key]), len(rows[key]), len(rows[key]) - 1))
        for key in list(rows):
            if len(rows) > 1 and chance.random() < 0.08:
                del rows[key], usable[key]
            elif chance.random() < 0.5:
                rows[key].append(next(stock))
                usable[key] = len(rows[key])
        lost = check(kinship, rows, usable)
        assert not any(lost)


def test_a_fork_is_placed_beside_its_siblings_when_its_prompt_is_computed() -> None:
    """While it computes many tokens at once it shares nothing."""
    trunk = list(range(50))
    rows = {key: [*trunk, 100 + key] for key in range(8)}
    usable = dict.fromkeys(rows, 51)
    kinship = Kinship()
    check(kinship, rows, usable)
    rows[20], usable[20] = [*trunk, 200], 0
    check(kinship, rows, usable)
    usable[20] = 51
    order, common = kinship.sorted(list(rows), [words(x) for x in rows.values()], np.array([*usable.values()]))
    assert set(common.tolist()) == {50} and len(order) == 9


def test_a_step_like_the_one_before_compares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {key: [*range(50), 100 + key] for key in range(16)}
    kinship = Kinship()
    check(kinship, rows, dict.fromkeys(rows, 51))
    monkeypatch.setattr(attention_kin, "alike", lambda *_: pytest.fail("compared"))
    for key, pages in rows.items():
        pages.append(1000 + key)
    check(kinship, rows, dict.fromkeys(rows, 52))


@pytest.mark.parametrize("seed", range(5))
def test_a_planner_that_remembers_plans_what_one_that_does_not_would(seed: int) -> None:
    """The same positions are read, however many steps were before."""
    chance = random.Random(seed)
    trunk = list(range(60))
    pages = {key: [*trunk[: chance.choice((0, 20, 60))], *range(100 * key + 100, 100 * key + 140)] for key in range(9)}
    lengths = {key: 4 * len(pages[key]) - 3 for key in pages}
    planner = Planner([SHAPE], Policy(8))
    for step in range(12):
        keys = [key for key in pages if chance.random() < 0.9]
        for key in keys:
            lengths[key] += 1
            if lengths[key] > 4 * len(pages[key]):
                pages[key].append(5000 + 50 * key + step)
        cuts, kv_len = np.arange(len(keys) + 1, dtype=np.int32), words([lengths[key] for key in keys])
        listed = [words(pages[key]) for key in keys]
        (made,) = planner.plan(PagedRows(keys, listed, cuts, kv_len)).plans
        anew = plan(listed, cuts, kv_len, SHAPE, Policy(8))
        work = [sum(int((t[:, 4] - t[:, 3]).sum()) for _, t in each.launches) for each in (made, anew)]
        assert work[0] == work[1]


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("common", [0, 30])
def test_fitted_plans_of_one_key_are_of_one_size(rows: int, common: int) -> None:
    sizes: dict[object, list[int]] = {}
    for own in (3, 40, 90, 200):
        pages = [words([*range(common), *range(1000 + 300 * r, 1000 + 300 * r + own)]) for r in range(rows)]
        kv_len = np.full(rows, (common + own) * 4 - 1, np.int32)
        planned = Planner([SHAPE]).plan(PagedRows(range(rows), pages, np.arange(rows + 1, dtype=np.int32), kv_len))
        padded = planned.fitted()
        assert padded is not None and padded.key == planned.key
        held = [len(array) for array in padded.arrays[:-1]]
        assert sizes.setdefault(planned.key, held) == held
    assert sizes


def test_a_plan_that_holds_more_than_its_bounds_is_not_fitted() -> None:
    """Parts of a token at more depths than a padded plan has room for."""
    rows = 24
    pages = [words([*range(40 * (r + 1)), *range(5000 + 50 * r, 5040 + 50 * r)]) for r in range(rows)]
    kv_len = np.array([4 * len(x) - 1 for x in pages], np.int32)
    made = Planner([SHAPE], Policy(0, 64)).plan(
        PagedRows(range(rows), pages, np.arange(rows + 1, dtype=np.int32), kv_len)
    )
    assert made.plans[0].slots > 16 * rows + 100 and made.fitted() is None
