"""Trees of guesses in the scheduler: the same answers whatever the trees look like; every page is accounted for."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from fakes import fake_next

from branchwork.runtime.plan import Row
from branchwork.runtime.scheduler.scheduler import Scheduler
from branchwork.runtime.speculative.cost import Worth
from branchwork.runtime.speculative.draft import NOTHING, Context, Draft
from branchwork.runtime.speculative.lookup import Lookup
from branchwork.runtime.speculative.speculator import SIDE_LENGTH, Sides, Speculator
from branchwork.runtime.wire import Stops
from tests.runtime.scheduler.test_scheduler import (
    EOS,
    TOKEN_BYTES,
    VOCAB,
    House,
    alone,
    expect,
    random_message,
    storm,
    submit,
)

SEEDS = (0, 1, 2)


class Chains(Speculator):
    """Guesses trunks only."""

    def draft(self, *given: Any) -> Draft:
        return super().draft(*given[:5])


class Planter(Speculator):
    """Guesses by a function of the known ids."""

    def __init__(self, tree: Callable[[list[int], int], Draft]) -> None:
        super().__init__(grammar=True)
        self._tree = tree
        self.taken: list[tuple[Draft, list[int]]] = []  # drafts, and the guesses of each that came true
        self.constrained = 0  # drafts that came true on a side branch, under a grammar

    def draft(
        self,
        context: Context,
        room: int,
        worth: Worth,
        forced: Sequence[int] = (),
        allowed: Callable[[list[int]], int] | None = None,
        sides: Sides | None = None,
    ) -> Draft:
        if room <= 0:
            return NOTHING
        draft = self._tree(context.known.tolist(), room)
        return draft if allowed is None else pruned(draft, allowed)

    def observe(
        self, context: Context, draft: Draft, taken: int, ended: bool, path: Sequence[int] | None = None
    ) -> None:
        self.taken.append((draft, list(range(taken) if path is None else path)))
        self.constrained += context.constrained and any(n >= draft.trunk for n in self.taken[-1][1])
        super().observe(context, draft, taken, ended, path)

    @property
    def turned(self) -> int:
        """Drafts that came true on a side branch."""
        return sum(any(n >= draft.trunk for n in path) for draft, path in self.taken)


def tree_of(ids: Sequence[int], parents: Sequence[int]) -> Draft:
    return Draft(tuple(ids), tuple(parents), ("tree",) * len(ids), (3,) * len(ids))


def pruned(draft: Draft, allowed: Callable[[list[int]], int]) -> Draft:
    """The guesses that may be said, and all before them too."""
    paths: dict[int, list[int]] = {-1: []}
    places = {-1: -1}
    parents: list[int] = []
    for n, (token, parent) in enumerate(zip(draft.ids, draft.parents)):
        path = [*paths.get(parent, []), token]
        if parent in paths and allowed(path) == len(path):
            paths[n], places[n] = path, len(parents)
            parents.append(places[parent])
    return tree_of([path[-1] for n, path in paths.items() if n >= 0], parents) if parents else NOTHING


def random_tree(rng: random.Random) -> Callable[[list[int], int], Draft]:
    """Trees of any form: at each place what one of the seeds would draw, or nonsense."""

    def tree(known: list[int], room: int) -> Draft:
        ids: list[int] = []
        parents: list[int] = []
        texts: list[list[int]] = []
        for n in range(rng.randrange(14)):
            parent = n - 1 if rng.random() < 0.6 else rng.randrange(-1, n)
            before = texts[parent] if parent >= 0 else []
            if len(before) >= room:
                break
            drawn = fake_next([*known, *before], rng.choice(SEEDS), VOCAB)
            token = drawn if rng.random() < 0.85 else rng.randrange(VOCAB)
            ids.append(token)
            parents.append(parent)
            texts.append([*before, token])
        return tree_of(ids, parents) if ids else NOTHING

    return tree


def planting(
    tree: Callable[[list[int], int], Draft], pages: int = 256, page_size: int = 1, **options: int | str
) -> tuple[House, Planter]:
    house, planter = House(pages, page_size, **options), Planter(tree)
    settings: dict[str, int | str] = {"context": 4096, "queue_limit": 5000, **options}
    house.scheduler = Scheduler(house.cache, TOKEN_BYTES, speculator=planter, **settings)  # type: ignore[arg-type]
    return house, planter


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("budget", [3, 17, 512])
@pytest.mark.parametrize("tight", [False, True])
def test_every_answer_is_the_one_of_the_request_alone(tight: bool, budget: int, page_size: int) -> None:
    rng = random.Random(f"{tight} {budget} {page_size}")
    pages = -(-(64 if tight else 2000) // page_size) + (3 if tight else 0)
    house, planter = planting(random_tree(rng), pages, page_size, budget=budget, max_running=8)
    shared = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(3)]
    messages = [random_message(rng, number, shared) for number in range(100)]
    storm(house, rng, messages)
    if budget > 17 and not tight:
        assert planter.turned > 8, "side branches that never come true test nothing"
    if tight and page_size == 1 and budget > 3:
        assert house.scheduler.stats()["preemptions"], "a tight pool that never preempts tests nothing"


def right_and_wrong(known: list[int], room: int) -> Draft:
    """A wrong trunk of two; the right answer branches off at once, and from its second guess a wrong one again."""
    right = [fake_next(known, 0, VOCAB)]
    while len(right) < 4:
        right.append(fake_next([*known, *right], 0, VOCAB))
    wrong = (right[0] + 1) % VOCAB
    if room < 4:
        return NOTHING
    return tree_of([wrong, wrong, *right, (right[2] + 1) % VOCAB], [-1, 0, -1, 2, 3, 4, 3])


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_a_side_branch_that_comes_true_gives_its_tokens_and_its_pages(page_size: int) -> None:
    house, planter = planting(right_and_wrong, 64, page_size)
    message = submit(0, range(10, 20), max_tokens=16)
    house.add(message)
    house.drain()
    expect(house, message)
    assert [path for _, path in planter.taken] == [[2, 3, 4, 5]] * 3
    finished = house.outcomes[0].finished
    assert finished is not None and finished.usage.forwards == 4
    assert finished.usage.drafts == (("tree", 21, 12),)
    house.add(submit(2, [*range(10, 20), *alone(message), 5], max_tokens=2))
    house.drain()
    again = house.outcomes[2].finished
    assert again is not None and again.usage.reused == 25 // page_size * page_size, "the tree has what was guessed"
    house.assert_nothing_held()


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_pages_of_guesses_that_failed_are_free_before_the_next_step(page_size: int) -> None:
    house, planter = planting(right_and_wrong, 64, page_size)
    house.cache.extend(house.cache.lease(array("i"), 0), 30 * page_size)  # more than half is taken: no runs of pages
    house.scheduler.check = lambda: house.cache.check()  # type: ignore[method-assign]  # that lease is nobody's request
    house.add(submit(0, range(10), max_tokens=14))
    while not house.scheduler.idle:
        house.step()
        for request in house.scheduler._planner.running.values():
            assert request.lease is not None and len(request.lease.pages) <= -(-len(request.known) // page_size)
    assert planter.turned == 2


def test_a_branch_that_grows_from_a_branch_is_read_through_it() -> None:
    def nested(known: list[int], room: int) -> Draft:
        right = [fake_next(known, 0, VOCAB)]
        while len(right) < 6:
            right.append(fake_next([*known, *right], 0, VOCAB))
        bad = [(token + 1) % VOCAB for token in right]
        ids = [right[0], bad[1], right[1], bad[2], right[2], bad[3], right[3], right[4], right[5]]
        return tree_of(ids, [-1, 0, 0, 2, 2, 4, 4, 6, 7]) if room >= 6 else NOTHING

    for page_size in (1, 2, 4, 16):
        house, planter = planting(nested, 128, page_size)
        message = submit(0, range(20, 31), max_tokens=22, logprobs=2)
        house.add(message)
        house.drain()
        expect(house, message)
        assert [path for _, path in planter.taken] == [[0, 2, 4, 6, 7, 8]] * 3


@pytest.mark.parametrize("where", ["stop id", "stop string", "length"])
def test_an_answer_ends_inside_a_side_branch_where_it_would_have_ended(where: str) -> None:
    whole = alone(submit(0, range(10, 20), max_tokens=9))
    text = b"".join(TOKEN_BYTES[token] for token in whole[:4])
    stops = {
        "stop id": Stops(9, ids=(whole[3],)),
        "stop string": Stops(9, strings=(text[-3:],)),
        "length": Stops(6),
    }[where]
    house, planter = planting(right_and_wrong, 64, 4)
    plain = House(64, 4)
    for one in (house, plain):
        one.add(submit(0, range(10, 20), stops=stops))
        one.drain()
        one.assert_nothing_held()
    assert planter.turned and house.outcomes[0].ids == plain.outcomes[0].ids
    guessed, drawn = house.outcomes[0].finished, plain.outcomes[0].finished
    assert guessed is not None and drawn is not None
    assert (guessed.reason, guessed.matched, guessed.length) == (drawn.reason, drawn.matched, drawn.length)
    assert guessed.usage.computed == drawn.usage.computed


def test_a_request_cancelled_in_mid_tree_holds_nothing() -> None:
    house, _ = planting(right_and_wrong, 64, 4)
    house.add(submit(0, range(10, 20), max_tokens=16))
    house.step()
    plan = house.scheduler.plan()
    assert plan is not None and len(plan.rows) == 3
    house.take(house.scheduler.cancel(0))
    house.scheduler.check()
    assert house.scheduler.commit(plan, house.runner.execute(plan)) == []
    house.assert_nothing_held()


def test_penalties_count_the_guesses_on_the_way_to_a_branch() -> None:
    house, _ = planting(right_and_wrong)
    message = submit(0, range(10, 20), max_tokens=16)
    shape = msgspec.structs.replace(message.shape, presence_penalty=0.5)
    house.add(msgspec.structs.replace(message, shape=shape))
    trunk, side, nested = house.step()
    ids = right_and_wrong(list(range(10, 20)), 9).ids
    assert (list(trunk.answer_history), trunk.position) == ([], 10)
    assert (list(side.answer_history), side.position) == ([ids[2]], 11)
    assert (list(nested.answer_history), nested.position) == ([ids[2], ids[3], ids[6]], 13)
    assert all(list(row.prompt_history) == list(range(10, 20)) for row in (trunk, side, nested))
    assert (trunk.draft, side.draft, nested.draft) == (2, 3, 0)


@pytest.mark.parametrize("page_size", [1, 16])
def test_what_was_answered_in_three_ways_is_answered_in_one_of_them_at_once(page_size: int) -> None:
    """Lookup has seen the answers of three seeds: a chain follows the newest, a tree all."""

    def forwards(trees: bool) -> list[int]:
        house = House(400, page_size)
        speculator = Speculator((Lookup(heads=1 << 12),)) if trees else Chains((Lookup(heads=1 << 12),))
        house.scheduler = Scheduler(house.cache, TOKEN_BYTES, context=4096, speculator=speculator)
        for number, seed in enumerate((*SEEDS, *SEEDS)):
            house.add(submit(number, range(10, 40), max_tokens=SIDE_LENGTH + 1, seed=seed))
            house.drain()
            expect(house, submit(number, range(10, 40), max_tokens=SIDE_LENGTH + 1, seed=seed))
        house.assert_nothing_held()
        return [outcome.finished.usage.forwards for outcome in house.outcomes.values() if outcome.finished][3:]

    assert forwards(trees=True) == [1, 1, 1]
    assert forwards(trees=False) == [2, 2, 2]


def test_a_tree_behind_a_prompt_leaves_the_scores_of_the_prompt_as_they_are() -> None:
    house, planter = planting(right_and_wrong, 128, 4)
    message = submit(0, range(20, 31), max_tokens=11, logprobs=1, prompt_logprobs=2, logprob_start=3)
    house.add(message)
    assert [len(row.ids) for row in house.step()] == [13, 7, 2], "each row begins with the page it shares"
    house.drain()
    expect(house, message)
    assert planter.turned == 2


def test_a_pool_without_room_for_branches_still_takes_the_trunk() -> None:
    def half(known: list[int], room: int) -> Draft:
        right = fake_next(known, 0, VOCAB)
        return tree_of([right, (right + 1) % VOCAB], [-1, -1])

    house, planter = planting(half, 4, 16)
    message = submit(0, range(10, 20), max_tokens=20)
    house.add(message)
    house.drain()
    expect(house, message)
    assert {len(draft) for draft, _ in planter.taken} == {1, 2}, "one page is there for guesses, then there are two"


def test_a_thousand_requests_with_trees_and_cancellations_leave_nothing_behind() -> None:
    rng = random.Random(5)
    house, planter = planting(random_tree(rng), 200, 2, budget=48, max_running=8)
    shared = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(4)]
    for number in range(1000):
        house.add(random_message(rng, number, shared))
        plan = house.scheduler.plan()
        if rng.random() < 0.3:
            house.take(house.scheduler.cancel(number - rng.randrange(6)))  # also between plan and commit
        if plan is not None:
            house.take(house.scheduler.commit(plan, house.runner.execute(plan)))
        if number % 10 == 0:
            house.scheduler.check()
    for number in range(1000):
        house.take(house.scheduler.cancel(number))
    house.scheduler.check()
    assert planter.turned > 20 and planter.contexts == 0
    house.assert_nothing_held()


def test_every_row_of_a_tree_is_an_ordinary_row() -> None:
    """Positions, ids and pages of each row alone are a text that continues the known one."""
    rng = random.Random(3)
    house, planter = planting(random_tree(rng), 400, 4)
    messages = [submit(n, range(n, n + 9), seed=n % 3, stops=Stops(60, ids=(EOS,))) for n in range(12)]
    for message in messages:
        house.add(message)
    rows: list[Row] = []
    while not house.scheduler.idle:
        rows += house.step()
    sides = [row for row in rows if row.start % 4 == 0 and len(row.ids) > row.draft + 1]
    assert sides, "no branch computed again what shares its page"
    assert all(row.position == row.start + len(row.ids) - row.draft for row in rows if row.shape is not None)
    assert planter.turned > 10
