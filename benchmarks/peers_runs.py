"""One timed run of one workload on one side, for benchmarks/peers.py.

Knows: both forms of a workload, the clock. Must not know: processes, tables.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from peers_llama import Llama
from peers_optimum import Dry
from peers_report import Cell
from peers_transformers import Transformers
from peers_workloads import Ask, Row, Workload
from tokenizers import Tokenizer

import branchwork as bw


def run_program(runtime: bw.Runtime, workload: Workload, rows: list[Row]) -> list[bw.ProgramState[Any]]:
    """All rows side by side, to the end of every branch."""
    states: list[bw.ProgramState[Any]] = workload.program.run_batch(rows, backend=runtime, temperature=0)
    return states


def time_ours(runtime: bw.Runtime, workload: Workload, rows: list[Row], cell: Cell) -> None:
    before = runtime.stats()
    begun = time.perf_counter()
    states = run_program(runtime, workload, rows)
    seconds = time.perf_counter() - begun
    after = runtime.stats()
    prompt = after["prompt_tokens"] - before["prompt_tokens"]
    reused = after["reused_tokens"] - before["reused_tokens"]
    made = 0
    if workload.name == "json":
        for state in states:
            json.loads(state["record"])
            made += state.meta("record")["completion_tokens"]
    cell.add("Branchwork", seconds, reused / max(prompt, 1), made)
    cell.tree.append((after["tree_s"] - before["tree_s"]) / seconds)


def time_transformers(peer: Transformers, workload: Workload, rows: list[Row], cell: Cell) -> None:
    begun = time.perf_counter()
    asyncio.run(peer.run([workload.theirs(peer, row) for row in rows]))
    cell.add(peer.name, time.perf_counter() - begun)


def time_llama(peer: Llama, workload: Workload, rows: list[Row], cell: Cell, lanes: bool) -> None:
    """lanes: as Llama says."""
    cell.add(peer.name, *_llama(peer, workload, rows, lanes))


def try_llama(peer: Llama, workload: Workload, rows: list[Row], others: list[Row], cell: Cell) -> bool:
    """Run once with all requests at once and once lane by lane; keep the better time. Whether lanes were better.

    others: rows of the same shape that share nothing with `rows`.
    """
    tries = {False: _llama(peer, workload, rows, False), True: _llama(peer, workload, others, True)}
    better = tries[True] < tries[False]
    cell.add(peer.name, *tries[better])
    cell.how = (
        f"{'lane by lane' if better else 'at once'} ({tries[False][0]:.1f} s at once, {tries[True][0]:.1f} s by lanes)"
    )
    return better


def _llama(peer: Llama, workload: Workload, rows: list[Row], lanes: bool) -> tuple[float, float, int]:
    """Seconds, share of prompt tokens found in a cache, tokens of JSON."""

    async def run() -> float:
        peer.begin(lanes)
        begun = time.perf_counter()
        await asyncio.gather(*(workload.theirs(peer, row) for row in rows))
        seconds = time.perf_counter() - begun
        await peer.end()
        return seconds

    seconds = asyncio.run(run())
    return seconds, peer.reused / max(peer.prompt, 1), peer.made


def dry_run(workload: Workload, rows: list[Row], tokenizer: Tokenizer) -> Dry:
    """What an endless cache would have had to compute."""
    dry = Dry(tokenizer)
    asyncio.run(_together(dry, workload, rows))
    return dry


async def _together(peer: Ask, workload: Workload, rows: list[Row]) -> None:
    await asyncio.gather(*(workload.theirs(peer, row) for row in rows))
