"""What a program costs its client: bytes, processor time and latency per gen, many programs at once, many rows.

Knows: the public interface, the clock. Must not know: the runtime's insides, beyond the figures it reports itself.
The re-sending client is the way of HTTP front ends: for every gen it sends the whole text so far, waits, and appends.
Both use the same connection, model and sampling, in one run, alternating. Gens have a fixed number of tokens.
Usage: python benchmarks/client.py [--only chat,steps,chained,concurrent,rows] [--repeats 5] [--rows N] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from rich.console import Console
from rich.table import Table

import branchwork as bw

TURNS = 50
TOKENS = 6
PROGRAMS = 2000
STEPS = 16
EXACT: dict[str, Any] = {"temperature": 0, "ignore_eos": True}

Figures = dict[str, float]


class Meter:
    """Bytes, processor time of this process and wall time since the last reading."""

    def __init__(self, backend: bw.RuntimeBackend) -> None:
        self._backend = backend
        self._last = self._now()

    def _now(self) -> tuple[float, float, float]:
        traffic = self._backend.traffic
        return traffic.sent + traffic.received, time.process_time(), time.perf_counter()

    def read(self) -> tuple[float, float, float]:
        """(bytes, processor seconds, wall seconds)."""
        now = self._now()
        since = tuple(b - a for a, b in zip(self._last, now))
        self._last = now
        return since[0], since[1], since[2]


def question(turn: int) -> str:
    return f"Question {turn}: what comes after {turn * 7}?"


@bw.function
def chat(s: bw.ProgramState, meter: Meter, readings: list[tuple[float, float, float]]) -> None:
    """Every turn is read before the next one is written, as a person would."""
    for turn in range(TURNS):
        s += bw.user(question(turn))
        s += bw.assistant(bw.gen(f"a{turn}", max_tokens=TOKENS, **EXACT))
        s[f"a{turn}"]
        readings.append(meter.read())


@bw.function
def completion(s: bw.ProgramState, text: str) -> None:
    s += text
    s += bw.gen("a", max_tokens=TOKENS, **EXACT)


def resent_chat(backend: bw.RuntimeBackend, meter: Meter, readings: list[tuple[float, float, float]]) -> None:
    user, assistant = backend.frames.roles["user"], backend.frames.roles["assistant"]
    text = ""
    for turn in range(TURNS):
        text += user.begin + question(turn) + user.end + assistant.begin
        text += completion.run(text, backend=backend)["a"]
        text += assistant.end
        readings.append(meter.read())


def measure_chat(backend: bw.RuntimeBackend, repeats: int) -> list[tuple[str, Figures]]:
    """Per gen, over the first and the last ten of 50 turns."""
    collected: dict[str, list[list[tuple[float, float, float]]]] = {"Branchwork": [], "re-sending": []}
    encoded: dict[str, float] = {}
    for _ in range(repeats):
        for name, runs in collected.items():
            readings: list[tuple[float, float, float]] = []
            before = float(backend.stats()["encoded_characters"])
            meter = Meter(backend)
            if name == "Branchwork":
                chat.run(meter, readings, backend=backend)
            else:
                resent_chat(backend, meter, readings)
            encoded[name] = float(backend.stats()["encoded_characters"]) - before
            runs.append(readings)
    rows = []
    for name, runs in collected.items():
        figures: Figures = {"characters tokenized": encoded[name]}
        for label, turns in (("first 10", range(10)), ("last 10", range(TURNS - 10, TURNS))):
            for what, index, scale in (("bytes", 0, 1.0), ("client us", 1, 1e6), ("wall ms", 2, 1e3)):
                values = [statistics.mean(run[turn][index] * scale for turn in turns) for run in runs]
                figures[f"{what}, {label}"] = statistics.median(values)
        rows.append((name, figures))
    return rows


@bw.function
def steps(s: bw.ProgramState, topic: str) -> None:
    """Short gens one after the other, each after a literal: the shape of an extraction or a plan."""
    s += f"About {topic}:\n"
    for step in range(STEPS):
        s += f"{step}. "
        s += bw.gen(f"x{step}", max_tokens=2, **EXACT)
        s += "\n"


@bw.function
def chained(s: bw.ProgramState, topic: str) -> None:
    """The same, and every step names what the one before it came to: uncompiled, the body has to read it."""
    s += f"About {topic}:\n"
    said = "nothing"
    for step in range(STEPS):
        s += f"{step}. after {said}: "
        s += bw.gen(f"x{step}", max_tokens=2, **EXACT)
        s += "\n"
        said = s[f"x{step}"]


def resent_chained(backend: bw.RuntimeBackend, topic: str) -> None:
    text, said = f"About {topic}:\n", "nothing"
    for step in range(STEPS):
        text += f"{step}. after {said}: "
        said = short.run(text, backend=backend)["a"]
        text += said + "\n"


def resent_steps(backend: bw.RuntimeBackend, topic: str) -> None:
    text = f"About {topic}:\n"
    for step in range(STEPS):
        text += f"{step}. "
        text += short.run(text, backend=backend)["a"] + "\n"


@bw.function
def short(s: bw.ProgramState, text: str) -> None:
    s += text
    s += bw.gen("a", max_tokens=2, **EXACT)


def measure_steps(
    backend: bw.RuntimeBackend, repeats: int, program: Any, resent: Callable[[bw.RuntimeBackend, str], None]
) -> list[tuple[str, Figures]]:
    """One program of 16 gens: compiled, pipelined, and by the re-sending client."""
    compiled = program.compile()
    assert compiled.run("once", backend=backend).sync() and compiled.compiled, compiled.notes
    ways: dict[str, Callable[[str], Any]] = {
        "compiled": lambda topic: compiled.run(topic, backend=backend).sync(),
        "pipelined": lambda topic: program.run(topic, backend=backend).sync(),
        "re-sending": lambda topic: resent(backend, topic),
    }
    walls: dict[str, list[float]] = {name: [] for name in ways}
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(-1, repeats * 4):  # the first round warms up
        for name, way in ways.items():
            backend.flush_cache()
            meter = Meter(backend)
            way(f"the same length {repeat:4d}")
            sent, cpu, wall = meter.read()
            if repeat >= 0:
                walls[name].append(wall)
                costs[name].append((sent, cpu))
    return [
        (
            name,
            {
                "ms a step": statistics.median(walls[name]) / STEPS * 1e3,
                "gens per s": STEPS / statistics.median(walls[name]),
                "client us a step": statistics.median(cost[1] for cost in costs[name]) / STEPS * 1e6,
                "bytes a step": statistics.median(cost[0] for cost in costs[name]) / STEPS,
            },
        )
        for name in ways
    ]


@bw.function
async def small(s: bw.ProgramState, number: int) -> None:
    s += bw.user(f"What is {number} plus one?")
    s += bw.assistant(bw.gen("a", max_tokens=4, **EXACT))
    await s.get("a")


def measure_concurrent(backend: bw.RuntimeBackend) -> list[tuple[str, Figures]]:
    """2,000 programs on one event loop."""
    peak = 0

    async def everything() -> None:
        nonlocal peak
        tasks = [asyncio.create_task(small.arun(n, backend=backend)) for n in range(PROGRAMS)]
        while not all(task.done() for task in tasks):
            peak = max(peak, threading.active_count())
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)

    before, cpu, since = threading.active_count(), time.process_time(), time.perf_counter()
    asyncio.run(everything())
    wall, cpu = time.perf_counter() - since, time.process_time() - cpu
    return [
        (
            f"{PROGRAMS} programs on one loop",
            {
                "extra threads": peak - before,
                "seconds": wall,
                "programs per s": PROGRAMS / wall,
                "client us each": cpu / PROGRAMS * 1e6,
            },
        )
    ]


ROWS = """
import resource, sys, time
import branchwork as bw

@bw.function
def row(s, number):
    s += bw.user(f"What is {{number}} plus one?")
    s += bw.assistant(bw.gen("a", max_tokens=1, temperature=0, ignore_eos=True))

backend = bw.connect({endpoint!r})
program = row.compile() if {compiled} else row
rows = ({{"number": str(n)}} for n in range({rows}))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
list(program.run_batch([{{"number": "1"}}], backend=backend))
start, since = peak(), time.perf_counter()
kept = program.run_batch(rows, backend=backend, generator_style={generator})
count = sum(1 for state in kept)
print(count, start, peak(), time.perf_counter() - since)
"""


def measure_rows(backend: bw.RuntimeBackend, rows: int) -> list[tuple[str, Figures]]:
    """Peak memory of a client of its own for so many rows."""
    found = []
    for name, compiled, generator in (
        ("compiled, streamed", True, True),
        ("compiled, as a list", True, False),
        ("pipelined, streamed", False, True),
    ):
        script = ROWS.format(endpoint=backend.endpoint, compiled=compiled, generator=generator, rows=rows)
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
        count, start, peak, seconds = (float(word) for word in said)
        figures = {"rows": count, "MB above start": peak - start, "seconds": seconds, "rows per s": count / seconds}
        found.append((name, figures))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="chat,steps,chained,concurrent,rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard) if soft < 65_536 else (soft, hard))
    results: dict[str, list[tuple[str, Figures]]] = {}
    with bw.Runtime(progress=True) as runtime:
        backend = bw.connect(runtime.endpoint)
        measures: dict[str, Callable[[], list[tuple[str, Figures]]]] = {
            "chat": lambda: measure_chat(backend, given.repeats),
            "steps": lambda: measure_steps(backend, given.repeats, steps, resent_steps),
            "chained": lambda: measure_steps(backend, given.repeats, chained, resent_chained),
            "concurrent": lambda: measure_concurrent(backend),
            "rows": lambda: measure_rows(backend, given.rows),
        }
        for name in given.only.split(","):
            results[name] = measures[name]()
            show(name, results[name])
    if given.json is not None:
        given.json.write_text(
            json.dumps({name: [[row, figures] for row, figures in rows] for name, rows in results.items()}, indent=1)
        )


def show(name: str, rows: list[tuple[str, Figures]]) -> None:
    table = Table(title=name)
    table.add_column("")
    for row, _ in rows:
        table.add_column(row, justify="right")
    if len(rows) > 1:
        table.add_column("ratio, last to first", justify="right")
    for figure in rows[0][1]:
        values = [figures[figure] for _, figures in rows]
        ratio = [f"{values[-1] / values[0]:.2f}" if values[0] else ""] if len(rows) > 1 else []
        table.add_row(figure, *(f"{value:,.1f}" for value in values), *ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
