"""Plans of attention: every token is given exactly the positions it may see, and common pages are read once."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from branchwork.kernels.triton.attention_plan import NEVER, Plan, Policy, Shape, plan

Words = NDArray[np.int32]
SHAPE = Shape(size=4, group=4, kv_heads=2, heights=(16, 64, 128), units=8)


def tables(rows: list[tuple[int, int]], size: int, common: dict[int, tuple[int, int]]) -> tuple[Words, Words, Words]:
    """page_table, cu_rows, kv_len; common[r] = (other, pages): row r begins with pages of an earlier row."""
    widest = max(-(-length // size) for _, length in rows) + 1
    table = np.arange(len(rows) * widest, dtype=np.int32).reshape(len(rows), widest)
    for r, (other, pages) in common.items():
        table[r, :pages] = table[other, :pages]
    counts, length = zip(*rows)
    return table, np.cumsum([0, *counts]).astype(np.int32), np.array(length, np.int32)


def forest(seed: int) -> tuple[list[tuple[int, int]], dict[int, tuple[int, int]]]:
    """Rows of random lengths, half of which begin as an earlier one does."""
    chance = random.Random(seed)
    rows: list[tuple[int, int]] = []
    common: dict[int, tuple[int, int]] = {}
    for r in range(chance.randrange(1, 14)):
        n = chance.choice((0, 1, 1, 1, 2, 5, 90))
        rows.append((n, n + chance.randrange(0 if n else 1, 120)))
        if r and chance.random() < 0.6:
            other = chance.randrange(r)
            least = min(length - count for count, length in (rows[r], rows[other]))
            common[r] = (other, chance.randrange(least // SHAPE.size + 1))
    return rows, common


def reads(made: Plan, size: int) -> dict[int, list[int]]:
    """Per token the (page, slot) places, as page * size + slot, that its tiles cover up to its own position, sorted."""
    found: dict[int, list[int]] = {token: [] for token in range(len(made.order))}
    pages = np.concatenate(made.pages).astype(int)
    for _, tiles in made.launches:
        for base, first, tokens, low, high, _, _, _ in tiles.tolist():
            for token in made.order[first : first + tokens].tolist():
                seen = np.arange(low, min(high, made.at[token] + 1))
                found[token] += (pages[base + seen // size] * size + seen % size).tolist()
    return {token: sorted(places) for token, places in found.items()}


def positions(made: Plan) -> int:
    """Positions that one key head's tiles read, each at once for all the tile's tokens."""
    return sum(int((tiles[:, 4] - tiles[:, 3]).sum()) for _, tiles in made.launches)


@pytest.mark.parametrize("policy", [Policy(), Policy(0), Policy(0, 32), Policy(NEVER, 32), Policy(8, 0, 16)])
@pytest.mark.parametrize("seed", range(20))
def test_every_token_reads_each_of_its_positions_once(seed: int, policy: Policy) -> None:
    rows, common = forest(seed)
    table, cu_rows, kv_len = tables(rows, SHAPE.size, common)
    made = plan(table, cu_rows, kv_len, SHAPE, policy)
    found = reads(made, SHAPE.size)
    assert sorted(made.order.tolist()) == list(range(cu_rows[-1]))
    for r, (n, length) in enumerate(rows):
        for i in range(n):
            seen = np.arange(length - n + i + 1)
            assert found[cu_rows[r] + i] == sorted(table[r, seen // 4].astype(int) * 4 + seen % 4)


@pytest.mark.parametrize("window", [1, 7, 50])
@pytest.mark.parametrize("seed", range(5))
def test_a_window_bounds_what_is_read(seed: int, window: int) -> None:
    rows, common = forest(seed)
    arrays = tables(rows, SHAPE.size, common)
    made = plan(*arrays, replace(SHAPE, window=window), Policy(0, 32))
    found = reads(made, SHAPE.size)
    for r, (n, length) in enumerate(rows):
        for i in range(n):
            seen = np.arange(max(0, length - n + i + 1 - window), length - n + i + 1)
            assert {*(arrays[0][r, seen // 4] * 4 + seen % 4).tolist()} <= {*found[arrays[1][r] + i]}
    for _, tiles in made.launches:  # nothing below the window of a tile's earliest token, whose pages may be gone
        for _, first, tokens, low, _, _, _, _ in tiles.tolist():
            assert low > min(made.at[made.order[first : first + tokens]]) - window


@pytest.mark.parametrize("seed", range(10))
def test_parts_of_a_token_are_merged_in_the_order_of_their_positions(seed: int) -> None:
    rows, common = forest(seed)
    made = plan(*tables(rows, SHAPE.size, common), SHAPE, Policy(0, 32))
    begins = {}
    direct = []
    for _, tiles in made.launches:
        for _, first, tokens, low, _, _, _, slot in tiles.tolist():
            for i, token in enumerate(made.order[first : first + tokens].tolist()):
                if slot < 0:
                    direct.append(token)
                else:
                    begins[slot + i] = (token, low)
    assert sorted(begins) == list(range(made.slots))  # no slot is given twice
    assert sorted([*direct, *made.merged.tolist()]) == sorted(made.order.tolist())
    for token, a, b in zip(made.merged.tolist(), made.cuts, made.cuts[1:]):
        parts = [begins[slot] for slot in made.parts[a:b].tolist()]
        assert parts == sorted(parts) and {owner for owner, _ in parts} == {token}


def test_branches_read_their_common_pages_once_at_every_depth() -> None:
    rows = [(1, 1000)] * 8
    common = dict.fromkeys(range(1, 8), (0, 200)) | dict.fromkeys((5, 6, 7), (4, 240))
    made = plan(*tables(rows, 4, common), SHAPE)
    # all eight share 800 positions; rows 4 to 7, 160 more; rows read the rest alone
    assert positions(made) == 800 + 160 + 4 * 200 + 4 * 40
    assert positions(plan(*tables(rows, 4, common), SHAPE, Policy(NEVER))) == 8 * 1000


def test_a_prefix_too_short_to_pay_for_the_merge_is_read_by_each() -> None:
    rows, common = [(1, 1000)] * 2, {1: (0, 20)}
    assert positions(plan(*tables(rows, 4, common), SHAPE)) == 2000
    assert positions(plan(*tables(rows, 4, common), SHAPE, Policy(0))) == 2000 - 80


def test_a_row_that_fills_tiles_itself_does_not_share() -> None:
    rows, common = [(64, 1000), (1, 1000), (1, 900)], {1: (0, 200), 2: (0, 200)}
    made = plan(*tables(rows, 4, common), SHAPE)
    shared = [tiles for _, tiles in made.launches for tiles in tiles.tolist() if tiles[4] == 800]
    assert [tile[2] for tile in shared] == [2]


def test_long_rows_are_cut_until_every_unit_has_work() -> None:
    made = plan(*tables([(1, 10_000)], 4, {}), replace(SHAPE, units=32), Policy(least=64))
    tiles = np.concatenate([tiles for _, tiles in made.launches])
    long = tiles[:, 4] - tiles[:, 3]
    assert len(tiles) * SHAPE.kv_heads >= 32 and long.max() <= 10_000 / len(tiles) + 64
    assert len(np.concatenate([t for _, t in plan(*tables([(1, 200)], 4, {}), SHAPE).launches])) == 1


def test_tiles_are_as_low_as_their_tokens_allow_and_start_with_the_longest() -> None:
    made = plan(*tables([(1, 30), (16, 16), (100, 300), (1, 700)], 4, {}), SHAPE, Policy(NEVER))
    assert [height for height, _ in made.launches] == [16, 64, 128]
    for height, tiles in made.launches:
        rows, long = tiles[:, 2] * SHAPE.group, tiles[:, 4] - tiles[:, 3]
        lower = max((h for h in SHAPE.heights if h < height), default=0)
        assert (rows <= height).all() and (rows > lower).all() and (np.diff(long) <= 0).all()


@pytest.mark.parametrize(
    "rows, shape, said",
    [
        ([(1, 5)], replace(SHAPE, group=129), "129 query heads share a key head; the tallest tile has 128"),
        ([(1, 5), (6, 5)], SHAPE, "row 1 has 6 tokens of this step but kv_len 5"),
    ],
)
def test_what_cannot_be_planned_is_said(rows: list[tuple[int, int]], shape: Shape, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(*tables(rows, 4, {}), shape)


def test_a_page_table_too_narrow_is_said() -> None:
    table, cu_rows, kv_len = tables([(1, 30)], 4, {})
    with pytest.raises(ValueError, match="30 positions needs more than 3 pages of 4"):
        plan(table[:, :3], cu_rows, kv_len, SHAPE)
