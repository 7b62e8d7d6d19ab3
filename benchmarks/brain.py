"""What a step costs beside the model: the whole engine loop with a null model, its parts, and a long radix match.

Run: python benchmarks/brain.py     Claims: an engine step under 1 ms at 64 running; 8,192 tokens matched under 50 us.
"""

from __future__ import annotations

import random
import statistics
import time
from array import array
from collections.abc import Callable
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table

from branchwork.runtime.cache.prefix_cache import PrefixCache
from branchwork.runtime.engine import Engine
from branchwork.runtime.execution.inputs import Inputs
from branchwork.runtime.plan import Drawn, Plan, Result
from branchwork.runtime.scheduler.scheduler import Scheduler
from branchwork.runtime.wire import FromEngine, Shape, Stop, Stops, Submit, ToEngine, encode

VOCAB = 32_000
CONTEXT = 8192


def ids_of(rng: random.Random, count: int) -> array[int]:
    return array("i", (rng.randrange(VOCAB) for _ in range(count)))


def ran(plan: Plan) -> Result:
    return Result(plan.step, tuple(Drawn((11,) if row.shape is not None else ()) for row in plan.rows))


def steady(running: int, waiting: int, page_size: int, strings: tuple[bytes, ...]) -> tuple[float, float]:
    """Median us of plan and of commit while `running` requests decode and `waiting` cannot start."""
    cache = PrefixCache(running * 2048 // page_size, page_size)
    scheduler = Scheduler(
        cache, [b"word"] * VOCAB, context=CONTEXT, budget=512, max_running=running, queue_limit=waiting + running
    )
    rng = random.Random(1)
    prefix = ids_of(rng, 1000)
    for number in range(running + waiting):
        ids = (prefix + ids_of(rng, 8)).tobytes()
        scheduler.add(Submit(number, ids, Shape(seed=number), Stops(900, strings=strings)))
    planned, committed = [], []
    for step in range(500):
        began = time.perf_counter()
        plan = scheduler.plan()
        after = time.perf_counter()
        assert plan is not None
        result = ran(plan)
        begun = time.perf_counter()
        scheduler.commit(plan, result)
        if step > 100:
            planned.append(after - began)
            committed.append(time.perf_counter() - begun)
    assert scheduler.running == running and scheduler.waiting == waiting
    return statistics.median(planned) * 1e6, statistics.median(committed) * 1e6


def best(call: Callable[[], object], repeats: int = 300) -> float:
    """Median us of a call."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def matching(nodes: int, page_size: int) -> tuple[float, float, float]:
    """us to peek, to lease (match and lock) and to release 8,192 tokens that lie in `nodes` nodes of the tree."""
    cache = PrefixCache(4 * CONTEXT // page_size, page_size)
    ids = ids_of(random.Random(2), CONTEXT)
    for node in range(1, nodes + 1):
        upto = CONTEXT * node // nodes // page_size * page_size
        branch = ids[:upto] + array("i", [node] * page_size)
        lease = cache.lease(branch, len(branch))
        assert cache.extend(lease, len(branch))
        cache.seal(lease, branch, len(branch))
        cache.release(lease)
    assert cache.peek(ids, CONTEXT) == CONTEXT
    peek = best(lambda: cache.peek(ids, CONTEXT))
    both = best(lambda: cache.release(cache.lease(ids, CONTEXT)))
    leases = [cache.lease(ids, CONTEXT) for _ in range(2)]
    release = best(lambda: cache.release(leases.pop()), 2)
    return peek, both - release, release


class Null:
    """Hands that build a step's tensors and draw token 11 without a model."""

    def __init__(self) -> None:
        self._inputs = Inputs(1, torch.device("cpu"))

    def launch(self, plan: Plan) -> Null:
        self._inputs.build(plan)
        self._plan = plan
        return self

    def collect(self) -> Result:
        return ran(self._plan)


def loop(running: int, stream: bool) -> float:
    """Median us from one step's events to the next one's: inbox, plan, tensors, commit, encoded outbox."""
    scheduler = Scheduler(
        PrefixCache(running * 2048, 1), [b"word"] * VOCAB, context=CONTEXT, budget=2048, max_running=running
    )
    rng = random.Random(1)
    inbox: list[ToEngine] = [
        Submit(n, ids_of(rng, 200).tobytes(), Shape(seed=n), Stops(600), stream=stream) for n in range(running)
    ]
    moments: list[float] = []

    def receive(wait: bool) -> list[ToEngine]:
        if wait and moments:
            return [Stop()]
        taken = inbox[:]
        inbox.clear()
        return taken

    def send(events: list[FromEngine]) -> None:
        encode(events)
        moments.append(time.perf_counter())

    Engine(scheduler, Null()).run(receive, send)  # type: ignore[arg-type]
    beats = moments[1::2][100:500]  # a turn of the loop sends answers, then its step's events
    return statistics.median(later - sooner for sooner, later in pairwise(beats)) * 1e6


def main() -> None:
    console = Console()
    whole = Table("running", "streamed", "us a step", title="The engine loop with a null model")
    for running, stream in [(64, False), (64, True), (256, True)]:
        whole.add_row(str(running), "all" if stream else "none", f"{loop(running, stream):.0f}")
    console.print(whole)
    steps = Table(
        "running", "waiting", "page", "stop strings", "plan us", "commit us", "sum us", title="One decode step"
    )
    for running, waiting, size, strings in [
        (64, 0, 1, ()),
        (64, 0, 16, ()),
        (64, 0, 1, (b"\n\n", b"</answer>")),
        (64, 1000, 1, ()),
        (256, 0, 16, ()),
    ]:
        plan, commit = steady(running, waiting, size, strings)
        row = [running, waiting, size, len(strings), f"{plan:.0f}", f"{commit:.0f}", f"{plan + commit:.0f}"]
        steps.add_row(*map(str, row))
    console.print(steps)
    radix = Table("nodes", "page", "peek us", "lease us", "release us", title="Radix match of 8,192 tokens")
    for nodes, size in [(1, 1), (20, 1), (20, 16), (200, 1)]:
        radix.add_row(str(nodes), str(size), *(f"{value:.1f}" for value in matching(nodes, size)))
    console.print(radix)


if __name__ == "__main__":
    main()
