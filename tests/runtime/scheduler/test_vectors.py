"""Texts that are to become vectors: what of them is reused, and that their vectors depend on nothing else that runs."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from fakes import FakeRunner, fake_state

from branchwork.runtime.cache.prefix_cache import PrefixCache
from branchwork.runtime.plan import Plan, Result
from branchwork.runtime.scheduler.encoding import EncodingScheduler
from branchwork.runtime.scheduler.scheduler import Scheduler
from branchwork.runtime.wire import Embed, Embedded, Event, Failed, Finished, Shape, Stops, Submit

VOCAB = 97


def packed(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def expected(ids: Sequence[int], pooling: str) -> list[float]:
    """The vector before it is scaled, as float32 holds it."""
    states = np.array([fake_state(ids[: end + 1]) for end in range(len(ids))])
    pooled = {"mean": states.mean(0), "last": states[-1], "first": states[0]}[pooling]
    return np.float32(pooled).tolist()  # type: ignore[no-any-return]


def vector(event: Event) -> list[float]:
    assert isinstance(event, Embedded), event
    return array("f", event.vector).tolist()


class House:
    """A scheduler with a runner that gives wrong states for wrong pages; every step is checked."""

    def __init__(self, pages: int = 256, page_size: int = 1, ahead: bool = False, **options: int) -> None:
        self.cache = PrefixCache(pages, page_size)
        settings = {"context": 4096, **options}
        self.scheduler = Scheduler(self.cache, [b"x"] * VOCAB, **settings)  # type: ignore[arg-type]
        self.runner = FakeRunner(pages, page_size, VOCAB)
        self.events: dict[int, Event] = {}
        self._ahead = ahead

    def add(self, number: int, ids: Sequence[int], pooling: str = "mean", normalize: bool = False) -> None:
        self.take(self.scheduler.add(Embed(number, packed(ids), pooling, normalize)))  # type: ignore[arg-type]

    def take(self, events: Sequence[Event]) -> None:
        self.events |= {event.id: event for event in events}

    def steps(self) -> Iterator[Plan]:
        """Run to the end, where that is asked for with a step under way while the next is planned."""
        flight: tuple[Plan, Result] | None = None
        while True:
            plan = self.scheduler.plan_ahead() if flight is not None else self.scheduler.plan()
            result = None if plan is None else self.runner.execute(plan)
            if flight is not None:
                self.take(self.scheduler.commit(*flight))
            self.scheduler.check()
            flight = None
            if plan is not None and result is not None:
                yield plan
                if self._ahead:
                    flight = (plan, result)
                else:
                    self.take(self.scheduler.commit(plan, result))
                    self.scheduler.check()
            elif self.scheduler.idle:
                return

    def drain(self) -> list[Plan]:
        return list(self.steps())

    def assert_nothing_held(self) -> None:
        self.scheduler.flush()
        assert self.cache.stats().free == self.cache.pages


@pytest.mark.parametrize("ahead", [False, True], ids=["one by one", "overlapped"])
@pytest.mark.parametrize("page_size, budget, pages", [(1, 512, 600), (4, 7, 200), (1, 16, 45), (4, 16, 14)])
def test_vectors_are_those_of_each_text_alone(page_size: int, budget: int, pages: int, ahead: bool) -> None:
    """In chunks, with shared beginnings, next to answers, and preempted where pages are few."""
    draw = random.Random(5)
    stem = [draw.randrange(VOCAB) for _ in range(20)]
    house = House(pages, page_size, ahead, budget=budget)
    texts = [
        [*stem[: draw.randrange(21)], *(draw.randrange(VOCAB) for _ in range(draw.randrange(1, 20)))] for _ in range(30)
    ]
    for number, ids in enumerate(texts):
        if number % 5 == 4:
            house.take(house.scheduler.add(Submit(number, packed(ids), Shape(seed=number), Stops(6))))
        else:
            house.add(number, ids, ("mean", "last")[number % 2])
    house.drain()
    for number, ids in enumerate(texts):
        if number % 5 == 4:
            assert isinstance(house.events[number], Finished)
        else:
            assert vector(house.events[number]) == expected(ids, ("mean", "last")[number % 2])
    house.assert_nothing_held()


def test_the_last_state_is_computed_after_a_prefix_that_the_tree_has() -> None:
    house, ids = House(), list(range(40))
    house.add(1, ids, "last")
    house.drain()
    house.add(2, [*ids, 77], "last")
    house.add(3, ids, "last")
    house.drain()
    one, longer, again = (house.events[number] for number in (1, 2, 3))
    assert isinstance(one, Embedded) and isinstance(longer, Embedded) and isinstance(again, Embedded)
    assert (one.usage.reused, longer.usage.reused, again.usage.reused) == (0, 40, 39)
    assert (one.usage.computed, longer.usage.computed, again.usage.computed) == (40, 1, 1)
    assert vector(again) == vector(one) != vector(longer)


def test_a_mean_takes_nothing_from_the_tree_and_leaves_its_pages_there() -> None:
    house, ids = House(), list(range(40))
    for number, pooling in ((1, "mean"), (2, "mean"), (3, "last")):
        house.add(number, ids, pooling)
        house.drain()
    usages = [event.usage for event in house.events.values() if isinstance(event, Embedded)]
    assert [(usage.prompt, usage.reused) for usage in usages] == [(40, 0), (40, 0), (40, 39)]


def test_a_vector_is_scaled_to_length_1_when_that_is_asked_for() -> None:
    house = House()
    house.add(1, [5, 6, 7], "mean", normalize=True)
    house.drain()
    found, plain = np.array(vector(house.events[1])), np.array(expected([5, 6, 7], "mean"))
    assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(found, plain / np.linalg.norm(plain), rtol=1e-6)


@pytest.mark.parametrize("ahead", [False, True], ids=["one by one", "overlapped"])
def test_a_cancelled_text_frees_its_pages_at_once(ahead: bool) -> None:
    house = House(budget=8, ahead=ahead)
    house.add(1, range(60))
    house.add(2, range(50, 90), "last")
    for step, _ in enumerate(house.steps()):
        if step == 2:
            house.take(house.scheduler.cancel(1))
            house.scheduler.check()
    cancelled = house.events[1]
    assert isinstance(cancelled, Finished) and cancelled.reason == "cancelled"
    assert vector(house.events[2]) == expected(range(50, 90), "last")
    house.assert_nothing_held()


@pytest.mark.parametrize(
    "ids, pooling, code, message",
    [
        ([], "mean", "bad_request", "the text is empty"),
        ([5, VOCAB], "mean", "bad_request", f"has the id {VOCAB}"),
        ([5], "first", "bad_request", "pooling first is for encoders"),
        ([5] * 33, "last", "context_length", "33 tokens are given, the context holds 32"),
    ],
)
def test_texts_that_cannot_be_served_are_refused(ids: list[int], pooling: str, code: str, message: str) -> None:
    house = House(context=32)
    house.add(1, ids, pooling)
    refused = house.events[1]
    assert isinstance(refused, Failed) and refused.code == code and message in refused.message
    assert house.scheduler.idle


def test_states_that_are_not_finite_fail_their_text_alone() -> None:
    house = House()
    house.add(1, [1, 2])
    house.add(2, [3, 4])
    plan = house.scheduler.plan()
    assert plan is not None
    first, second = house.runner.execute(plan).rows
    broken = type(first)(state=np.array([np.nan, 0, 0, 0]).tobytes())
    house.take(house.scheduler.commit(plan, Result(plan.step, (broken, second))))
    failed = house.events[1]
    assert isinstance(failed, Failed) and failed.code == "no_vector"
    assert vector(house.events[2]) == expected([3, 4], "mean")
    house.assert_nothing_held()


# --- encoders


def encoding(**options: int) -> EncodingScheduler:
    return EncodingScheduler(
        **{"vocab": VOCAB, "context": 64, "budget": 40, "max_running": 8, "queue_limit": 5, **options}
    )


def _paged(plan: Plan) -> Plan:
    """The same rows for a runner with a cache, a page each."""
    rows = [type(row)(row.request, 0, row.ids, [number], state=row.state) for number, row in enumerate(plan.rows)]
    return Plan(plan.step, tuple(rows))


def test_an_encoder_computes_whole_texts_within_its_budget_and_higher_priorities_first() -> None:
    scheduler = encoding()
    for number, (length, priority) in enumerate(((30, 0), (20, 0), (60, 0), (10, 1))):
        assert scheduler.add(Embed(number, packed(range(length)), "mean", False, priority)) == []
    plans = []
    while not scheduler.idle:
        plan = scheduler.plan()
        assert plan is not None
        plans.append([(row.request, len(row.ids), row.state) for row in plan.rows])
        scheduler.check()
        for event in scheduler.commit(plan, FakeRunner(9, 64, VOCAB).execute(_paged(plan))):
            assert vector(event) == expected(range((30, 20, 60, 10)[event.id]), "mean")
    assert plans == [[(3, 10, "sum"), (0, 30, "sum")], [(1, 20, "sum")], [(2, 60, "sum")]]
    assert scheduler.plan() is None
    assert scheduler.stats()["finished"] == 4 and scheduler.stats()["computed_tokens"] == 120


def test_a_text_cancelled_before_or_while_it_is_computed_brings_nothing() -> None:
    scheduler = encoding()
    for number in range(3):
        scheduler.add(Embed(number, packed(range(20)), "last"))
    (first,) = scheduler.cancel(0)
    assert isinstance(first, Finished) and scheduler.cancel(0) == []
    plan = scheduler.plan()
    assert plan is not None and [row.request for row in plan.rows] == [1, 2]
    scheduler.cancel(1)
    (event,) = scheduler.commit(plan, FakeRunner(2, 64, VOCAB).execute(_paged(plan)))
    assert event.id == 2 and scheduler.idle
    scheduler.check()


def test_an_encoder_refuses_what_it_cannot_do() -> None:
    scheduler = encoding()
    cases: list[tuple[Submit | Embed, str, str]] = [
        (Submit(1, packed([1]), Shape(), Stops(4)), "unsupported", "ask it for embeddings"),
        (Embed(1, packed(range(65))), "context_length", "65 tokens are given, the context holds 64"),
        (Embed(1, b""), "bad_request", "the text is empty"),
    ]
    for message, code, text in cases:
        (failed,) = scheduler.add(message)
        assert isinstance(failed, Failed) and failed.code == code and text in failed.message
    for number in range(5):
        assert scheduler.add(Embed(number, packed([1]), "first")) == []
    for number, code in ((4, "bad_request"), (5, "queue_full")):
        (failed,) = scheduler.add(Embed(number, packed([1])))
        assert isinstance(failed, Failed) and failed.code == code
    assert {event.id for event in scheduler.fail_all("engine_error", "gone")} == set(range(5)) and scheduler.idle
