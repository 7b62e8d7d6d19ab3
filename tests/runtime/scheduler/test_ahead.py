"""Steps planned before the one under way is committed: the same answers, and nothing is held afterwards."""

from __future__ import annotations

import random

import msgspec
import pytest

from branchwork.runtime.plan import Plan, Result, Row
from branchwork.runtime.scheduler.scheduler import Scheduler
from branchwork.runtime.speculative.lookup import Lookup
from branchwork.runtime.speculative.speculator import Speculator
from branchwork.runtime.wire import Score, Shape, Stops, Submit
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


class Overlapping(House):
    """Every step is launched before the one before is committed, where the scheduler can plan it."""

    def __init__(self, pages: int = 256, page_size: int = 1, **options: int | str) -> None:
        super().__init__(pages, page_size, **options)
        self.flight: tuple[Plan, Result] | None = None
        self.ahead = 0

    def step(self) -> tuple[Row, ...]:
        before = self.flight
        plan = self.scheduler.plan() if before is None else self.scheduler.plan_ahead()
        launched = None if plan is None else (plan, self.runner.execute(self.followed(plan)))
        self.ahead += before is not None and plan is not None
        self.scheduler.check()
        if before is not None:
            self.take(self.scheduler.commit(*before))
            self.scheduler.check()
        self.flight = launched
        return () if plan is None else plan.rows

    def followed(self, plan: Plan) -> Plan:
        """The plan with the ids that only the device knows as yet."""
        if self.flight is None:
            return plan
        drawn = [
            part.tokens[-1] if part.tokens else 0
            for row, part in zip(*(one.rows for one in self.flight), strict=True)
            if row.shape is not None
        ]
        rows = (row if row.after < 0 else msgspec.structs.replace(row, ids=[drawn[row.after]]) for row in plan.rows)
        return Plan(plan.step, tuple(rows))

    def drain(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if self.scheduler.idle and self.flight is None:
                assert self.scheduler.plan() is None
                return
            self.step()
        raise AssertionError(f"not done after {limit} steps")


@pytest.mark.parametrize("page_size", [1, 2, 16])
@pytest.mark.parametrize("budget", [1, 3, 17, 512])
@pytest.mark.parametrize("tight", [False, True])
def test_answers_do_not_depend_on_overlap(tight: bool, budget: int, page_size: int) -> None:
    rng = random.Random(f"{tight} {budget} {page_size}")
    pages = -(-(64 if tight else 2000) // page_size) + (1 if tight else 0)
    house = Overlapping(pages, page_size, budget=budget, max_running=8)
    shared = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(3)]
    storm(house, rng, (random_message(rng, number, shared) for number in range(60)))
    assert house.ahead > 20, "steps that are never planned ahead test nothing"


@pytest.mark.parametrize("page_size", [1, 16])
def test_answers_do_not_depend_on_overlap_where_guesses_come_true(page_size: int) -> None:
    rng = random.Random(page_size)
    house = Overlapping(4000 // page_size, page_size, budget=64, max_running=8)
    lookup = Lookup(capacity=2000, heads=1 << 12)
    house.scheduler = Scheduler(
        house.cache, TOKEN_BYTES, context=4096, budget=64, max_running=8, speculator=Speculator((lookup,))
    )
    shared = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(3)]
    pool = [random_message(rng, number, shared) for number in range(12)]
    storm(house, rng, [msgspec.structs.replace(rng.choice(pool), id=number) for number in range(120)])
    assert house.ahead > 5 and int(house.scheduler.stats()["accepted_lookup"]) > 20


def test_a_steady_batch_is_planned_ahead_in_every_step() -> None:
    house = Overlapping()
    for number in range(5):
        house.add(submit(number, range(number, number + 9), max_tokens=30))
    house.step()
    for _ in range(29):
        assert len(house.step()) == 5
    assert house.ahead == 29
    assert house.step() == (), "the last draw ends every answer: nothing comes after it"
    for number in range(5):
        expect(house, submit(number, range(number, number + 9), max_tokens=30))


def test_what_is_drawn_after_an_answers_end_counts_for_nothing() -> None:
    house = Overlapping()
    message = next(
        one
        for one in (submit(0, [n, 5], stops=Stops(40, ids=(EOS,))) for n in range(VOCAB))
        if 3 < len(alone(one)) < 30
    )
    house.add(message)
    house.drain()
    expect(house, message)
    finished = house.outcomes[0].finished
    assert finished is not None and finished.reason == "eos"
    assert house.runner.tokens == 2 + len(alone(message)), "one row was computed in vain: the one after the end token"
    assert finished.usage.computed == 1 + len(alone(message))
    house.assert_nothing_held()


def test_penalties_wait_for_the_draws_they_count() -> None:
    house = Overlapping()
    shape = Shape(seed=1, frequency_penalty=0.5)
    house.add(msgspec.structs.replace(submit(0, [1, 2, 3], max_tokens=6), shape=shape))
    house.drain()
    assert house.ahead == 0 and [len(rows[0].answer_history) for rows in house.runner.steps] == list(range(6))


def test_cancelling_while_a_step_is_under_way_frees_everything() -> None:
    rng = random.Random(5)
    house = Overlapping(90, 2, budget=24, max_running=6)
    shared = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(4)]
    messages: list[Submit | Score] = []
    for number in range(200):
        messages.append(random_message(rng, number, shared))
        house.add(messages[-1])
        house.step()
        if rng.random() < 0.5:
            house.take(house.scheduler.cancel(number - rng.randrange(8)))
            house.scheduler.check()
    house.drain()
    for message in messages:
        expect(house, message)
    house.assert_nothing_held()


def test_a_fault_under_way_fails_what_both_steps_were_for() -> None:
    house = Overlapping()
    for number in range(3):
        house.add(submit(number, [number, 7, 8], max_tokens=9))
    house.step()
    assert house.scheduler.plan_ahead() is not None
    house.take([*house.scheduler.fail_all("engine_error", "the device is gone")])
    assert sorted(house.others) == [0, 1, 2] and house.scheduler.idle
    house.flight = None
    house.add(submit(9, [1, 2], max_tokens=3))
    house.drain()
    expect(house, submit(9, [1, 2], max_tokens=3))
    house.assert_nothing_held()
