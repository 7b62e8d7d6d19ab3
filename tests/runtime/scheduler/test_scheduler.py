"""The scheduler with a runner that gives wrong tokens for wrong pages: outputs never depend on what else runs."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from fakes import FakeRunner, fake_next, fake_score

from branchwork.runtime.cache.prefix_cache import PrefixCache
from branchwork.runtime.plan import Drawn, Result, Row
from branchwork.runtime.scheduler.policy import AGEING
from branchwork.runtime.scheduler.scheduler import Scheduler
from branchwork.runtime.wire import (
    Event,
    Failed,
    Finished,
    Score,
    Scored,
    Shape,
    Stops,
    Submit,
    Tokens,
    TokenScore,
)

VOCAB = 97
EOS = 3
TOKEN_BYTES = [bytes([97 + n % 26]) + (b"" if n < 26 else bytes([97 + n // 26])) for n in range(VOCAB)]


def packed(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


@dataclass
class Outcome:
    ids: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finished: Finished | None = None
    events: int = 0


class House:
    """A scheduler, its cache and its runner; every step is checked."""

    def __init__(self, pages: int = 256, page_size: int = 1, **options: int | str) -> None:
        self.cache = PrefixCache(pages, page_size)
        settings: dict[str, int | str] = {"context": 4096, "queue_limit": 5000, **options}
        self.scheduler = Scheduler(self.cache, TOKEN_BYTES, **settings)  # type: ignore[arg-type]
        self.budget = int(settings.get("budget", 512))
        self.runner = FakeRunner(pages, page_size, VOCAB)
        self.outcomes: dict[int, Outcome] = {}
        self.others: dict[int, Event] = {}
        self.choices: set[int] = set()

    def take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, (Tokens, Finished)):
                outcome = self.outcomes.setdefault(event.id, Outcome())
                assert outcome.finished is None, "nothing comes after Finished"
                outcome.ids += event.ids
                outcome.events += 1
                outcome.scores += event.scores
                if isinstance(event, Finished):
                    outcome.finished = event
            else:
                assert event.id not in self.others
                self.others[event.id] = event

    def add(self, message: Submit | Score) -> None:
        if isinstance(message, Score):
            self.choices.add(message.id)
        self.take(self.scheduler.add(message))

    def step(self) -> tuple[Row, ...]:
        before = {request.id for request in self.scheduler._planner.running.values()}
        preemptions = self.scheduler.stats()["preemptions"]
        plan = self.scheduler.plan()
        assert plan is not None and plan.rows, "work is left, yet nothing is planned"
        if self.choices.isdisjoint(row.request for row in plan.rows):
            assert sum(len(row.ids) for row in plan.rows) <= self.budget, "only choices may exceed the budget"
        if self.scheduler.stats()["preemptions"] != preemptions:
            assert before.issuperset(row.request for row in plan.rows), "admitted at the cost of a preempted one"
        self.scheduler.check()
        self.take(self.scheduler.commit(plan, self.runner.execute(plan)))
        self.scheduler.check()
        return plan.rows

    def drain(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if self.scheduler.idle:
                assert self.scheduler.plan() is None
                return
            self.step()
        raise AssertionError(f"not done after {limit} steps")

    def assert_nothing_held(self) -> None:
        self.scheduler.flush()
        assert self.cache.stats().free == self.cache.pages, "pages are held by nobody alive"


def submit(number: int, ids: Sequence[int], max_tokens: int = 4, seed: int = 0, **rest: object) -> Submit:
    stops = rest.pop("stops", None) or Stops(max_tokens)
    rest.setdefault("stream", number % 2 == 0)  # both ways in every test
    return Submit(number, packed(ids), Shape(seed=seed), stops, **rest)  # type: ignore[arg-type]


def alone(message: Submit) -> list[int]:
    """All tokens of the answer, drawn with nothing else around; ends at max_tokens or a stop id."""
    known = list(array("i", message.ids))
    start = len(known)
    while len(known) - start < message.stops.max_tokens:
        known.append(fake_next(known, message.shape.seed, VOCAB))
        if known[-1] in message.stops.ids:
            break
    return known[start:]


def prompt_scores(message: Submit) -> list[TokenScore]:
    known = list(array("i", message.ids))
    first = max(1, message.logprob_start)
    return [fake_score(known[:i], known[i], message.prompt_logprobs, VOCAB) for i in range(first, len(known))]


def option_scores(prefix: bytes, option: bytes) -> tuple[TokenScore, ...]:
    known, ids = list(array("i", prefix)), list(array("i", option))
    return tuple(fake_score([*known, *ids[:i]], ids[i], 1, VOCAB) for i in range(len(ids)))


# --- the same answers, whatever else runs


def random_message(rng: random.Random, number: int, shared: list[list[int]]) -> Submit | Score:
    ids = rng.choice(shared)[: rng.randint(1, 40)] + [rng.randrange(4) for _ in range(rng.randint(0, 6))]
    if rng.random() < 0.2:
        alphabet = rng.choice([2, VOCAB])  # options that share beginnings, and some that do not
        options = tuple(
            packed([rng.randrange(alphabet) for _ in range(rng.randint(1, 4))]) for _ in range(rng.randint(1, 8))
        )
        return Score(number, packed(ids), options, rng.random() < 0.5, packed([1, 2]), rng.randrange(2))
    stops = Stops(rng.randint(1, 12), ids=(EOS,) if rng.random() < 0.5 else ())
    rest = {"prompt_logprobs": 2, "logprob_start": rng.randint(0, 30)} if rng.random() < 0.3 else {}
    logprobs = rng.choice([-1, 0, 2])
    return submit(number, ids, seed=rng.randrange(3), stops=stops, logprobs=logprobs, priority=rng.randrange(2), **rest)


def expect(house: House, message: Submit | Score) -> None:
    """The outcome is the one of the request alone; of a cancelled one, a beginning of it."""
    if isinstance(message, Score):
        ended = house.others.get(message.id) or house.outcomes[message.id].finished
        if isinstance(ended, Scored):
            assert ended.options == tuple(option_scores(message.ids, option) for option in message.options)
            second = tuple(option_scores(message.neutral, option) for option in message.options)
            assert ended.unconditional == (second if message.unconditional else ())
        else:
            assert isinstance(ended, Finished) and ended.reason == "cancelled"
        return
    outcome, wanted = house.outcomes[message.id], alone(message)
    finished = outcome.finished
    assert finished is not None
    if finished.reason == "cancelled":
        assert outcome.ids == wanted[: len(outcome.ids)]
        return
    assert outcome.ids == wanted
    eos = wanted[-1] in message.stops.ids
    assert finished.reason == ("eos" if eos else "length")
    assert finished.kept == len(wanted) - eos
    assert finished.length == sum(len(TOKEN_BYTES[t]) for t in wanted[: finished.kept])
    known = list(array("i", message.ids))
    if message.logprobs >= 0:
        assert outcome.scores == [
            fake_score(known + wanted[:i], wanted[i], message.logprobs, VOCAB) for i in range(len(wanted))
        ]
    assert list(finished.prompt_scores) == (prompt_scores(message) if message.prompt_logprobs >= 0 else [])
    usage = finished.usage
    assert usage.prompt == len(known) and usage.reused <= usage.diverged <= usage.prompt
    if usage.preempted == 0:
        assert usage.reused + usage.computed == usage.prompt + len(wanted) - 1


def storm(house: House, rng: random.Random, messages: Iterable[Submit | Score]) -> None:
    """Requests come at any moment, one in ten is cancelled: every answer is right, and nothing is held afterwards."""
    came: list[Submit | Score] = []
    for number, message in enumerate(messages):
        came.append(message)
        house.add(message)
        for _ in range(rng.randint(0, 3)):
            if not house.scheduler.idle:
                house.step()
        if rng.random() < 0.1:
            house.take(house.scheduler.cancel(rng.randrange(number + 1)))
            house.scheduler.check()
    house.drain()
    for message in came:
        expect(house, message)
    house.assert_nothing_held()


@pytest.mark.parametrize("policy", ["lpm", "fcfs"])
@pytest.mark.parametrize("page_size", [1, 2, 16])
@pytest.mark.parametrize("budget", [1, 3, 17, 512])
@pytest.mark.parametrize("tight", [False, True])
def test_every_answer_is_the_one_of_the_request_alone(tight: bool, budget: int, page_size: int, policy: str) -> None:
    rng = random.Random(f"{tight} {budget} {page_size} {policy}")
    pages = -(-(64 if tight else 2000) // page_size) + (1 if tight else 0)
    house = House(pages, page_size, budget=budget, max_running=8, policy=policy)
    shared = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(3)]
    storm(house, rng, (random_message(rng, number, shared) for number in range(40)))
    if tight and budget == 17 and page_size < 16:
        assert house.scheduler.stats()["preemptions"], "a tight pool that never preempts tests nothing"


def test_three_hundred_random_adds_and_cancels_hold_no_page() -> None:
    rng = random.Random(7)
    house = House(90, 2, budget=24, max_running=6)
    shared = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(4)]
    for number in range(300):
        house.add(random_message(rng, number, shared))
        plan = house.scheduler.plan() if rng.random() < 0.8 else None
        if rng.random() < 0.5:
            house.take(house.scheduler.cancel(number - rng.randrange(8)))  # also between plan and commit
            house.scheduler.check()
        if plan is not None:
            house.take(house.scheduler.commit(plan, house.runner.execute(plan)))
            house.scheduler.check()
    for number in range(300):
        house.take(house.scheduler.cancel(number))
    assert house.scheduler.idle and house.scheduler.plan() is None
    house.assert_nothing_held()


# --- sharing


@pytest.mark.parametrize("budget", [16, 100, 4096])
@pytest.mark.parametrize("policy", ["lpm", "fcfs"])
def test_64_few_shot_requests_compute_their_common_prefix_once(policy: str, budget: int) -> None:
    rng = random.Random(budget)
    prefix = [rng.randrange(VOCAB) for _ in range(800)]
    house = House(3000, 1, budget=budget, max_running=64, policy=policy)
    messages = [submit(n, [*prefix, n, 7, n], max_tokens=2, seed=n) for n in range(64)]
    for message in messages:
        house.add(message)
    house.drain()
    assert house.runner.tokens == 800 + 64 * (3 + 1), "800 common, 3 own, and the first of the two answer tokens"
    for message in messages:
        expect(house, message)
    reused = [house.outcomes[n].finished.usage.reused for n in range(64)]  # type: ignore[union-attr]
    assert sorted(reused) == [0] + [800] * 63


def test_a_whole_batch_shares_inside_one_step() -> None:
    house = House(256, 1)
    for number in range(3):
        house.add(submit(number, [*range(20), 50 + number]))
    rows = house.step()
    assert [(row.start, len(row.ids)) for row in rows] == [(0, 21), (20, 1), (20, 1)]


def test_a_fork_of_8_computes_the_prompt_once_and_one_token_per_branch() -> None:
    house = House(1024, 1)
    for number in range(8):
        house.add(submit(number, range(60), max_tokens=3, seed=number))
    rows = house.step()
    assert sorted(len(row.ids) for row in rows) == [1] * 7 + [60]
    assert len({tuple(row.pages[:59]) for row in rows}) == 1
    house.drain()
    assert len({tuple(house.outcomes[n].ids) for n in range(8)}) == 8
    assert house.runner.tokens == 60 + 7 + 8 * 2


def test_a_later_turn_reuses_the_answer_that_was_computed() -> None:
    house = House(256, 1)
    first = submit(0, range(10), max_tokens=5)
    house.add(first)
    house.drain()
    house.add(submit(1, [*range(10), *alone(first), 90, 91]))
    house.drain()
    usage = house.outcomes[1].finished.usage  # type: ignore[union-attr]
    assert (usage.prompt, usage.reused, usage.diverged) == (17, 14, 14), "all but the last drawn token have KV"


def test_usage_names_the_token_that_diverged() -> None:
    house = House(256, 4)
    house.add(submit(0, range(20)))
    house.drain()
    house.add(submit(1, [*range(9), 50, *range(10, 20)]))
    house.drain()
    usage = house.outcomes[1].finished.usage  # type: ignore[union-attr]
    assert (usage.reused, usage.diverged) == (8, 9)


def test_prompt_logprobs_recompute_for_themselves_and_take_nothing_from_others() -> None:
    house = House(256, 1, budget=7)
    house.add(submit(0, range(30)))
    house.drain()
    cached = house.cache.stats().cached
    scored = submit(1, range(30), prompt_logprobs=1, logprob_start=12)
    house.add(scored)
    house.drain()
    expect(house, scored)
    usage = house.outcomes[1].finished.usage  # type: ignore[union-attr]
    assert usage.reused == 11
    assert house.cache.stats().cached == cached, "the same ids are in the tree once"


def test_a_short_prompt_waits_for_a_long_one_that_computes_its_prefix_anyway() -> None:
    house = House(512, 1, budget=32)
    house.add(submit(0, [n % VOCAB for n in range(300)], max_tokens=1))
    house.step()
    house.add(submit(1, [n % VOCAB for n in range(45)], max_tokens=1))
    house.add(submit(2, [*range(32), 90, 91], max_tokens=1))
    starts = [(row.request, row.start, len(row.ids)) for row in house.step()]
    assert starts == [(2, 32, 2), (0, 32, 30)], "2 shares only what is there; 1 would compute 13 tokens twice"
    house.drain()
    assert house.runner.tokens == 300 + 1 + 2


# --- order and fairness


def test_a_long_prompt_does_not_keep_short_ones_waiting() -> None:
    house = House(4096, 1, budget=32)
    house.add(submit(0, [n % VOCAB for n in range(2000)]))
    house.step()
    house.add(submit(1, [90, 91, 92]))
    rows = house.step()
    assert {row.request for row in rows} == {0, 1}
    assert sum(len(row.ids) for row in rows) == 32, "the long one takes all the rest"


def test_longest_prefix_first_does_not_starve_a_stranger() -> None:
    house = House(4096, 1, budget=64, max_running=1)
    popular = [5] * 400
    house.add(submit(0, popular, max_tokens=1))
    house.drain()
    house.add(submit(1, [6] * 20, max_tokens=1))
    served, number = 0, 2
    while house.outcomes.get(1) is None:
        while house.scheduler.waiting < 4:
            house.add(submit(number, [*popular, number % VOCAB, number // VOCAB], max_tokens=1))
            number += 1
        house.step()
        served += 1
        assert served < 3 * 400 / AGEING + 10, "the stranger starves"
    assert served > 3, "those with the longer prefix went first for a while"


def test_higher_priority_goes_first() -> None:
    house = House(256, 1, max_running=1)
    house.add(submit(0, [1, 2], priority=0))
    house.add(submit(1, [3, 4], priority=5))
    assert [row.request for row in house.step()] == [1]


def test_the_latest_of_the_lowest_priority_is_preempted_and_still_right() -> None:
    house = House(40, 1, budget=64)
    messages = [
        submit(0, range(10), max_tokens=14, priority=1),
        submit(1, range(20, 30), max_tokens=14),
        submit(2, range(40, 45), max_tokens=14),
    ]
    for message in messages:
        house.add(message)
    house.drain()
    for message in messages:
        expect(house, message)
    preempted = [house.outcomes[n].finished.usage.preempted for n in range(3)]  # type: ignore[union-attr]
    assert preempted[0] == 0 and preempted[2] > 0


def test_nothing_is_admitted_that_would_cost_a_running_request_its_pages() -> None:
    house = House(40, 1, budget=64)
    house.add(submit(0, range(10), max_tokens=20))
    house.step()
    house.add(submit(1, range(40, 75), max_tokens=1))
    house.drain()
    assert house.scheduler.stats()["preemptions"] == 0


# --- scores


def test_all_options_ride_in_one_step_over_the_shared_prefix() -> None:
    house = House(512, 4, budget=16)
    house.add(submit(0, range(40), max_tokens=1))
    house.drain()
    options = tuple(packed([n, n + 1, n + 2]) for n in range(20))
    score = Score(1, packed(range(40)), options)
    house.add(score)
    rows = house.step()
    assert len(rows) == 21 and rows[0].start == 36
    assert all(row.start == 40 and row.pages[:10] == rows[0].pages[:10] for row in rows[1:])
    expect(house, score)
    assert isinstance(house.others[1], Scored) and house.others[1].usage.reused == 36
    house.assert_nothing_held()


def test_usage_of_choices_is_that_of_their_own_prefix_not_of_the_neutral_one() -> None:
    house = House(512, 1)
    house.add(submit(0, [7] * 9, max_tokens=1))
    house.drain()
    house.add(Score(1, packed([1, 2, 3]), (packed([4, 5]),), unconditional=True, neutral=packed([7] * 9)))
    house.drain()
    event = house.others[1]
    assert isinstance(event, Scored)
    assert (event.usage.prompt, event.usage.reused, event.usage.diverged) == (3, 0, 0)
    assert event.usage.computed == 2 + 2 + 2, "two of the prefix, and two per option and prefix"


def test_options_leave_running_answers_their_tokens() -> None:
    house = House(512, 1, budget=16)
    house.add(submit(0, range(10), max_tokens=30))
    house.step()
    score = Score(
        1, packed([50, 51]), tuple(packed([n, n]) for n in range(40)), unconditional=True, neutral=packed([0])
    )
    house.add(score)
    while 1 not in house.others:
        rows = house.step()
        assert rows[0].request == 0
        assert sum(len(row.ids) for row in rows) <= 16 + 1
    expect(house, score)


def test_cancelling_choices_under_way_frees_every_option_at_once() -> None:
    house = House(64, 2)
    house.add(Score(0, packed(range(9)), (packed([1, 2]), packed([3])), unconditional=True, neutral=packed([0, 1])))
    plan = house.scheduler.plan()
    assert plan is not None
    house.take(house.scheduler.cancel(0))
    house.scheduler.check()
    assert house.cache.stats().leases == 0
    assert house.scheduler.commit(plan, house.runner.execute(plan)) == [] and house.scheduler.idle
    house.assert_nothing_held()


# --- stops and events


def test_a_stop_string_across_tokens_is_cut_off_and_never_sent() -> None:
    house = House(256, 1)
    answer = alone(submit(0, [1, 2, 3], max_tokens=12))
    text = b"".join(TOKEN_BYTES[token] for token in answer[:8])
    stop = text[-3:]
    length = text.find(stop)
    house.add(submit(0, [1, 2, 3], stops=Stops(12, strings=(stop,))))
    house.drain()
    outcome = house.outcomes[0]
    finished = outcome.finished
    assert finished is not None and (finished.reason, finished.matched, finished.length) == ("stop", stop, length)
    assert outcome.ids == answer[: len(outcome.ids)]
    sent_before = len(outcome.ids) - len(finished.ids)
    assert sent_before <= finished.kept, "held back until it could not be part of the stop"


def test_penalties_carry_the_history_and_nothing_else_does() -> None:
    house = House(256, 1)
    house.add(Submit(0, packed([1, 2, 3]), Shape(presence_penalty=0.5), Stops(3)))
    house.add(submit(1, [4, 5]))
    house.step()
    rows = {row.request: row for row in house.step()}
    assert list(rows[0].prompt_history) == [1, 2, 3] and len(rows[0].answer_history) == 1
    assert len(rows[1].prompt_history) == len(rows[1].answer_history) == 0


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (submit(0, []), "bad_request", ["empty"]),
        (submit(0, [1, VOCAB]), "bad_request", ["97", "0..96"]),
        (submit(0, [-1]), "bad_request", ["-1"]),
        (Submit(0, b"abc", Shape(), Stops(1)), "bad_request", ["3 bytes"]),
        (submit(0, [1], max_tokens=0), "bad_request", ["max_tokens"]),
        (submit(0, [1], stops=Stops(3, regexes=(b"(",))), "bad_request", ["stop regex"]),
        (submit(0, [1] * 90, max_tokens=11), "context_length", ["101", "100"]),
        (submit(0, [1] * 60, max_tokens=21), "context_length", ["81", "80"]),
        (Score(0, packed([1]), ()), "bad_request", ["no options"]),
        (Score(0, packed([1]), (b"",)), "bad_request", ["option 0", "empty"]),
        (Score(0, packed([1]), (packed([2]),), unconditional=True), "bad_request", ["neutral"]),
        (Score(0, packed([1] * 70), (packed([2] * 11),)), "context_length", ["81", "80"]),
    ],
)
def test_what_can_never_be_served_is_refused_with_figures(message: Submit | Score, code: str, words: list[str]) -> None:
    house = House(80, 1, context=100)
    house.add(message)
    event = house.others[0]
    assert isinstance(event, Failed) and event.code == code
    assert all(word in event.message for word in words), event.message
    assert house.scheduler.idle


def test_a_full_queue_says_so_and_a_number_in_use_is_refused() -> None:
    house = House(80, 1, queue_limit=2)
    for number in (0, 0, 1, 2):
        house.add(submit(number, [1]))
    assert [(e.code, n) for n, e in house.others.items() if isinstance(e, Failed)] == [
        ("bad_request", 0),
        ("queue_full", 2),
    ]


def test_after_a_fault_everything_fails_and_nothing_stale_is_matched() -> None:
    house = House(80, 1)
    for number in range(3):
        house.add(submit(number, [*range(10), number]))
    assert house.scheduler.plan() is not None  # planned and sealed, but never computed
    house.take(house.scheduler.fail_all("engine_error", "the device is gone"))
    house.scheduler.check()
    assert all(isinstance(house.others[n], Failed) for n in range(3)) and house.scheduler.idle
    assert house.cache.stats().free == 80
    again = submit(9, range(10))
    house.add(again)
    house.drain()
    expect(house, again)


def test_stats_add_up() -> None:
    house = House(80, 2)
    house.add(submit(0, range(10), max_tokens=1))
    house.drain()
    house.add(submit(1, range(10), max_tokens=1))
    house.drain()
    stats = house.scheduler.stats()
    assert (stats["prompt_tokens"], stats["reused_tokens"], stats["computed_tokens"]) == (20, 8, 12)
    assert stats["hit_rate"] == 0.4 and stats["pages_used"] == 5 and stats["running"] == stats["waiting"] == 0


def test_tokens_leave_one_by_one_only_when_streamed() -> None:
    house = House()
    house.add(submit(2, range(10, 20), max_tokens=9))
    house.add(submit(3, range(30, 40), max_tokens=9))
    house.drain()
    assert house.outcomes[2].events == 9 and house.outcomes[3].events == 1
    assert len(house.outcomes[2].ids) == len(house.outcomes[3].ids) == 9


def test_a_row_without_a_token_ends_its_request_and_no_other() -> None:
    house = House()
    house.add(submit(1, range(10, 20)))
    house.add(submit(2, range(30, 40)))
    plan = house.scheduler.plan()
    assert plan is not None
    result = house.runner.execute(plan)
    drawn = [Drawn(fault="NaN") if row.request == 1 else one for row, one in zip(plan.rows, result.rows)]
    house.take(house.scheduler.commit(plan, Result(result.step, tuple(drawn))))
    assert house.others[1] == Failed(1, "no_token", "NaN")
    house.drain()
    assert house.outcomes[2].ids == alone(submit(2, range(30, 40)))
    house.assert_nothing_held()
