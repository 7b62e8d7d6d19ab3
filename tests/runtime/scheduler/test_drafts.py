"""Guesses in the scheduler: the same answers, whatever is guessed; pages, counts and memory add up."""

from __future__ import annotations

import random
from array import array

import msgspec
import pytest

from branchwork.runtime.scheduler.scheduler import Scheduler
from branchwork.runtime.speculative.draft import Context, Proposal
from branchwork.runtime.speculative.lookup import Lookup
from branchwork.runtime.speculative.speculator import Speculator
from branchwork.runtime.wire import Finished, Stops, Submit, Tokens
from tests.runtime.scheduler.test_scheduler import (
    TOKEN_BYTES,
    VOCAB,
    House,
    alone,
    expect,
    random_message,
    storm,
    submit,
)


def guessing(pages: int = 256, page_size: int = 1, **options: int | str) -> tuple[House, Lookup]:
    """A house whose scheduler looks up what was written before."""
    house, lookup = House(pages, page_size, **options), Lookup(capacity=2000, heads=1 << 12)
    settings: dict[str, int | str] = {"context": 4096, "queue_limit": 5000, **options}
    house.scheduler = Scheduler(house.cache, TOKEN_BYTES, speculator=Speculator((lookup,)), **settings)  # type: ignore[arg-type]
    return house, lookup


def usage(house: House, number: int) -> tuple[int, tuple[tuple[str, int, int], ...]]:
    finished = house.outcomes[number].finished
    assert finished is not None
    return finished.usage.forwards, finished.usage.drafts


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("budget", [1, 3, 17, 512])
@pytest.mark.parametrize("tight", [False, True])
def test_every_answer_is_the_one_of_the_request_alone(tight: bool, budget: int, page_size: int) -> None:
    rng = random.Random(f"{tight} {budget} {page_size}")
    pages = -(-(64 if tight else 2000) // page_size) + (1 if tight else 0)
    house, lookup = guessing(pages, page_size, budget=budget, max_running=8)
    shared = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(3)]
    pool = [random_message(rng, number, shared) for number in range(20)]
    messages = [msgspec.structs.replace(rng.choice(pool), id=number) for number in range(80)]
    storm(house, rng, messages)
    assert not lookup._live
    stats = house.scheduler.stats()
    if budget > 3:
        assert int(stats["accepted_lookup"]) > 50, "guesses that never come true test nothing"
    if tight and budget == 17 and page_size == 1:
        assert stats["preemptions"], "a tight pool that never preempts tests nothing"


def test_an_answer_given_before_is_given_again_in_a_step_or_two() -> None:
    house, _ = guessing(budget=512)
    for number in (0, 2):
        house.add(submit(number, range(10, 40), max_tokens=20))
        house.drain()
    assert house.outcomes[2].ids == alone(submit(2, range(10, 40), max_tokens=20))
    assert usage(house, 0) == (20, ())
    assert usage(house, 2) == (1, (("lookup", 19, 19),))
    finished = house.outcomes[2].finished
    assert finished is not None and finished.accepted == ((0, 19, "lookup"),)
    assert finished.usage.computed + finished.usage.reused == 30 + 20 - 1


def test_no_guess_reaches_beyond_max_tokens_or_an_end_token() -> None:
    house, _ = guessing()
    message = submit(0, range(10, 40), max_tokens=12)
    house.add(message)
    house.drain()
    ending = alone(message)[7]
    for number, stops in ((2, Stops(5)), (4, Stops(12, ids=(ending,)))):
        again = submit(number, range(10, 40), stops=stops)
        house.add(again)
        assert house.step()[0].draft == (4 if number == 2 else alone(message).index(ending))
        house.drain()
        expect(house, again)


def test_a_stop_string_inside_a_draft_cuts_the_answer_where_it_would_have_been_cut() -> None:
    house, _ = guessing()
    plain = House()
    message = submit(0, [1, 2, 3], max_tokens=12)
    text = b"".join(TOKEN_BYTES[token] for token in alone(message)[:8])
    house.add(message)
    house.drain()
    again = submit(2, [1, 2, 3], stops=Stops(12, strings=(text[-3:],)))
    for one in (house, plain):
        one.add(again)
        one.drain()
    assert house.outcomes[2].ids == plain.outcomes[2].ids
    guessed, drawn = house.outcomes[2].finished, plain.outcomes[2].finished
    assert guessed is not None and drawn is not None
    assert (guessed.reason, guessed.matched, guessed.length) == (drawn.reason, drawn.matched, drawn.length)
    assert guessed.usage.forwards < drawn.usage.forwards


def test_a_request_that_wants_no_guesses_gets_none_and_gives_none() -> None:
    house, lookup = guessing()
    for number in (0, 2):
        house.add(submit(number, range(10, 40), max_tokens=10, speculative=False))
        house.drain()
    assert usage(house, 2) == (10, ()) and lookup.runs == 0


def test_cancelling_between_plan_and_commit_of_a_draft_frees_everything() -> None:
    house, lookup = guessing(64, 2)
    house.add(submit(0, range(10, 30), max_tokens=12))
    house.drain()
    house.add(submit(2, range(10, 30), max_tokens=12))
    plan = house.scheduler.plan()
    assert plan is not None and plan.rows[0].draft > 5
    house.take(house.scheduler.cancel(2))
    house.scheduler.check()
    assert house.scheduler.commit(plan, house.runner.execute(plan)) == [] and not lookup._live
    house.assert_nothing_held()


class Liar:
    """Guesses what never comes."""

    source = "liar"

    def propose(self, context: Context, ahead: object, room: int) -> Proposal | None:
        return Proposal([VOCAB - 1 - (context.known[-1] % 7)] * room)

    def grew(self, context: Context) -> None: ...

    def ended(self, context: Context) -> None: ...


def test_nobody_is_preempted_for_a_guess() -> None:
    def preemptions(speculator: Speculator | None) -> tuple[int, House]:
        house = House(12, 16, budget=512)  # exactly what the four need, page by page
        house.scheduler = Scheduler(house.cache, TOKEN_BYTES, context=4096, budget=512, speculator=speculator)
        for number in range(4):
            house.add(submit(number, range(number * 10, number * 10 + 10), max_tokens=38))
        house.drain()
        return int(house.scheduler.stats()["preemptions"]), house

    plain, _ = preemptions(None)
    guessed, house = preemptions(Speculator((Liar(),)))
    assert plain == guessed == 0
    assert int(house.scheduler.stats()["drafted_liar"]) > 100
    for number in range(4):
        assert house.outcomes[number].ids == alone(submit(number, range(number * 10, number * 10 + 10), max_tokens=38))
    house.assert_nothing_held()


def test_a_thousand_requests_with_cancellations_leave_nothing_behind() -> None:
    rng = random.Random(11)
    house, lookup = guessing(200, 2, budget=48, max_running=8)
    shared = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(4)]
    pool = [random_message(rng, number, shared) for number in range(60)]
    for number in range(1000):
        house.add(msgspec.structs.replace(rng.choice(pool), id=number))
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
    assert house.scheduler.idle and not lookup._live and lookup.held <= 2000
    house.assert_nothing_held()


def test_a_streamed_answer_is_the_same_and_stats_count_by_source() -> None:
    house, _ = guessing()
    events: list[Tokens | Finished] = []
    for number in (0, 2):
        house.add(Submit(number, array("i", range(30)).tobytes(), submit(0, [1]).shape, Stops(16), stream=True))
        while not house.scheduler.idle:
            plan = house.scheduler.plan()
            assert plan is not None
            for event in house.scheduler.commit(plan, house.runner.execute(plan)):
                assert isinstance(event, (Tokens, Finished))
                events.append(event)
    ids = {number: [t for event in events if event.id == number for t in event.ids] for number in (0, 2)}
    assert ids[0] == ids[2] == alone(submit(0, range(30), max_tokens=16))
    stats = house.scheduler.stats()
    assert stats["drafted_lookup"] == stats["drafted_tokens"] and stats["accepted_lookup"] == stats["accepted_tokens"]


def test_after_a_fault_nobody_is_guessed_for_and_what_was_written_still_helps() -> None:
    house, lookup = guessing()
    house.add(submit(0, range(10, 40), max_tokens=12))
    house.drain()
    house.add(submit(2, range(10, 40), max_tokens=12))
    assert house.scheduler.plan() is not None
    house.take(house.scheduler.fail_all("engine_error", "the device is gone"))
    house.scheduler.check()
    assert not lookup._live
    again = submit(4, range(10, 40), max_tokens=12)
    house.add(again)
    house.drain()
    expect(house, again)
    assert usage(house, 4)[0] == 1
