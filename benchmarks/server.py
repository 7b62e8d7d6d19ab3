"""What the HTTP server costs: streamed chats at once against the same chats straight into an engine; start; memory.

Knows: the command, processes, the three ways of benchmarks/server_load.py. Must not know: the server's insides.
Checks that nothing is lost or mixed: every stream says what its chat says when it is not streamed, and what the engine
alone says with the same seed. Usage: python benchmarks/server.py [--chats 200] [--tokens 64] [--rounds 5] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["OMP_NUM_THREADS"] = "1"

import asyncio

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table
from server_client import stream
from server_load import Load, Raw, Run, chats, percentile, programs, prompt, whole

import branchwork as bw

OPTIONS = ("threads=1", "pages=40000", "speculative=off")  # a way must not guess what another has said
START, MEMORY, COST = 4.0, 200.0, 0.15  # seconds, MB, share of the throughput: at most
CONSOLE = Console()


class Server(NamedTuple):
    port: int
    endpoint: str
    gateway: psutil.Process
    begun: float  # when its process was started

    @property
    def engine(self) -> psutil.Process:
        return self.gateway.children()[0]


@contextmanager
def serving() -> Iterator[Server]:
    """`branchwork serve` on a free port."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/programs"
        command = [sys.executable, "-m", "branchwork", "serve", "--port", "0", "--endpoint", endpoint]
        for option in OPTIONS:
            command += ["-o", option]
        begun = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            said = ""
            while "HTTP at " not in said:
                said = process.stderr.readline()
                if not said:
                    raise RuntimeError(f"the server ended with status {process.wait()}")
            port = int(said.rpartition(":")[2].split()[0])
            yield Server(port, endpoint, psutil.Process(process.pid), begun)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def started() -> float:
    """Seconds from the command to the first text of a chat."""
    with serving() as server:
        return asyncio.run(stream(server.port, Load(1, 8, 0).body(0))).times[0] - server.begun


class Figures(NamedTuple):
    """runs: of each way, a list by round. processor: seconds of (gateway, engine, this client) in each HTTP round."""

    runs: dict[str, list[Run]]
    processor: list[tuple[float, float, float]]
    memory: tuple[float, float]  # MB of the gateway before and after
    unequal: int
    checked: int


def loaded(given: argparse.Namespace) -> Figures:
    """Rounds of the three ways in turns, and the check of their texts."""
    import branchwork.runtime.sapling as sapling

    raw = Raw(Path(sapling.__file__).parent, OPTIONS)
    runs: dict[str, list[Run]] = {"engine alone": [], "programs over ZeroMQ": [], "chats over HTTP": []}
    processor, unequal, checked = [], 0, 0
    with serving() as server:
        backend = bw.connect(server.endpoint, timeout=60)
        before = server.gateway.memory_info().rss / 1e6
        for number in track(range(given.rounds + 1), description="rounds", console=CONSOLE):
            load = Load(given.chats, given.tokens, number)
            prompts = [prompt(server.port, load, chat) for chat in range(load.chats)]
            found = [raw.run(load, prompts), programs(backend, load)]
            seconds = _processor(server)
            found.append(chats(server.port, load))
            spent = [after - earlier for earlier, after in zip(seconds, _processor(server))]
            if number:  # the first round warms up
                processor.append((spent[0], spent[1], spent[2]))
                for way, run in zip(runs.values(), found):
                    way.append(run)
            alone = [whole(server.port, load, chat) for chat in range(load.chats)] if number < 2 else found[2].texts
            unequal += sum(len({a, b, c, d}) > 1 for a, b, c, d in zip(alone, *(run.texts for run in found)))
            checked += load.chats
        after = server.gateway.memory_info().rss / 1e6
        backend.close()
    return Figures(runs, processor, (before, after), unequal, checked)


def _processor(server: Server) -> tuple[float, float, float]:
    times = [process.cpu_times() for process in (server.gateway, server.engine, psutil.Process())]
    return tuple(one.user + one.system for one in times)  # type: ignore[return-value]


def shown(figures: Figures, given: argparse.Namespace) -> None:
    """Each way's best round, since others use the cores as well; medians beside."""
    table = Table(title=f"{given.chats} chats at once, {given.tokens} tokens each, {given.rounds} rounds in turns")
    columns = ("", "tokens/s", "median", "requests/s", "first ms p50", "p99", "between ms p50", "p99")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for way, runs in figures.runs.items():
        best = min(runs, key=lambda run: run.seconds)
        median = statistics.median(run.tokens / run.seconds for run in runs)
        row = [f"{best.tokens / best.seconds:,.0f}", f"{median:,.0f}", f"{len(best.texts) / best.seconds:,.1f}"]
        for values in (best.first, best.gaps):
            row += [f"{percentile(values, p) * 1e3:,.1f}" if values else "-" for p in (50, 99)]
        table.add_row(way, *row)
    CONSOLE.print(table)


def facts(figures: Figures, starts: list[float]) -> list[tuple[str, float, str, float | None]]:
    """What is aimed at: (what, value, unit, at most)."""
    best = {way: min(run.seconds for run in runs) for way, runs in figures.runs.items()}
    alone, through, http = best.values()
    tokens = figures.runs["chats over HTTP"][0].tokens
    requests = len(figures.runs["chats over HTTP"][0].texts)
    gateway, engine, client = (min(round_[which] for round_ in figures.processor) for which in range(3))
    return [
        ("streams unlike their other answers", figures.unequal, f"of {figures.checked}", 0),
        ("HTTP's cost in throughput, against the engine alone", 100 * (1 - alone / http), "%", COST * 100),
        ("programs' cost in throughput, against the engine alone", 100 * (1 - alone / through), "%", None),
        ("wall time beyond the engine's, a token", (http - alone) / tokens * 1e6, "us", None),
        ("wall time beyond the engine's, a request", (http - alone) / requests * 1e3, "ms", None),
        ("processor time of the gateway, a token", gateway / tokens * 1e6, "us", None),
        ("processor time of the engine, a token", engine / tokens * 1e6, "us", None),
        ("processor time of this client, a token", client / tokens * 1e6, "us", None),
        ("from the command to a chat's first text, best", min(starts), "s", START),
        ("the same, median", statistics.median(starts), "s", None),
        ("memory of the gateway, loaded", figures.memory[0], "MB", MEMORY),
        ("memory of the gateway after all rounds", figures.memory[1], "MB", MEMORY),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="16 chats of 16 tokens, one round, one start")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.chats, given.tokens, given.rounds = 16, 16, 1
    starts = [started() for _ in track(range(1 if given.quick else 4), description="starts", console=CONSOLE)]
    figures = loaded(given)
    shown(figures, given)
    table = Table(title=f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for column in ("", "found", "", "at most", ""):
        table.add_column(column, justify="right" if column in ("found", "at most") else "left")
    told: list[dict[str, Any]] = []
    for what, value, unit, most in facts(figures, starts):
        verdict = "" if most is None else "reached" if value <= most else "MISSED"
        table.add_row(what, f"{value:,.1f}", unit, "" if most is None else f"{most:g}", verdict)
        told.append({"what": what, "value": value, "unit": unit, "at most": most})
    CONSOLE.print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(told, indent=1))
    if figures.unequal:
        sys.exit(f"{figures.unequal} streams were lost or mixed")


if __name__ == "__main__":
    main()
