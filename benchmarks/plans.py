"""What a decoding step of a GPU costs its host: the inputs gathered, attention planned, all packed into one buffer.

Run: python benchmarks/plans.py     Claim: under 1 ms for 128 rows with pages of 16, with and without a common prefix.
No GPU is needed or asked: the copy to one is not part of it. Least of many steps, in each of which every row has grown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table

from branchwork.kernels.triton.attention_plan import Shape as Heads
from branchwork.kernels.triton.attention_planner import Planner
from branchwork.runtime.execution.driver import PlainDriver
from branchwork.runtime.execution.feed import Feed
from branchwork.runtime.execution.inputs import Inputs
from branchwork.runtime.plan import Plan, Row
from branchwork.runtime.wire import Shape

CPU = torch.device("cpu")
GREEDY = Shape(temperature=0.0)
ALONE, PREFIX, OWN = 8192, 16_384, 256  # positions of a row; or of what all begin with, and of what each has besides
PROCESSORS = 132  # of the chip that is planned for
BEGINNING = 3  # steps until every buffer has its size


def growing(rows: int, common: int, size: int, steps: int) -> Iterator[Plan]:
    """Decoding steps whose rows begin with `common` positions, each a token longer than the one before."""
    own = OWN if common else ALONE
    stock = iter(range(1 << 30))
    trunk = [next(stock) for _ in range(common // size)]
    pages = [[*trunk, *(next(stock) for _ in range(own // size))] for _ in range(rows)]
    for step in range(steps):
        at = common + own - steps // 2 + step
        for held in pages:
            if at + 1 > len(held) * size:
                held.append(next(stock))
        yield Plan(step, tuple(Row(r, at, [5], held, GREEDY, position=at + 1) for r, held in enumerate(pages)))


def measure(rows: int, common: int, size: int, steps: int = 60) -> list[float]:
    """Seconds to gather and plan, to pad the plan, to pack it: the least of each."""
    planner = Planner([Heads(size=size, group=4, kv_heads=8, heights=(16, 64, 128), units=PROCESSORS)])
    feed = Feed(PlainDriver(), CPU)
    inputs = Inputs(size, CPU, planner, feed)
    static = torch.zeros(1 << 26, dtype=torch.uint8)
    least = [float("inf")] * 3
    for step, plan in enumerate(growing(rows, common, size, steps)):
        times = [time.perf_counter()]
        gathered = inputs.gather(plan)
        times.append(time.perf_counter())
        assert gathered.planned is not None
        padded = gathered.planned.fitted()
        times.append(time.perf_counter())
        feed.send(replace(gathered, planned=padded or gathered.planned).parts(), static)
        times.append(time.perf_counter())
        if step > BEGINNING:
            least = [min(pair) for pair in zip(least, (b - a for a, b in pairwise(times)), strict=True)]
    return least


def main() -> None:
    """Prints one row per batch, in milliseconds."""
    torch.set_num_threads(1)  # the copy stands for packing alone; on a GPU it is queued
    table = Table("page", "rows", "common", "gather and plan", "pad", "pack", "together", title="host, ms")
    for size in (16, 1):
        for rows in (1, 64, 128, 256):
            for common in (0, PREFIX):
                parts = [1e3 * seconds for seconds in measure(rows, common, size)]
                cells = (f"{part:.3f}" for part in (*parts, sum(parts)))
                table.add_row(str(size), str(rows), str(common), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
