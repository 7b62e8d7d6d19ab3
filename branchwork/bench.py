"""`branchwork bench`: tokens per second of one stream, a batch, and a batch that shares its prompt.

Knows: the language's public surface, the clock. Must not know: runtime internals.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

import branchwork as bw

_WORDS = [
    "river",
    "stone",
    "letter",
    "garden",
    "window",
    "seven",
    "silver",
    "paper",
    "morning",
    "under",
    "bridge",
    "answer",
    "music",
    "travel",
    "winter",
    "table",
]


@bw.function
def _complete(s: Any, text: str, tokens: int) -> None:
    s += text + bw.gen("out", max_tokens=tokens, temperature=0, ignore_eos=True)


class Size(NamedTuple):
    """prompt: about so many tokens each; generate: tokens of each answer; batch: requests at once; repeats: rounds."""

    prompt: int
    generate: int
    batch: int
    repeats: int


def measure(console: Console, runtime: bw.Runtime, size: Size) -> list[dict[str, Any]]:
    """Run each workload `repeats` times and print medians with their spread; the rows as data."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    shared = _text(draw, size.prompt)
    batch = range(size.batch)
    workloads: dict[str, Callable[[], list[str]]] = {
        "one stream": lambda: [_text(draw, size.prompt)],
        f"batch of {size.batch}": lambda: [_text(draw, size.prompt) for _ in batch],
        f"batch of {size.batch}, shared prompt": lambda: [shared + _text(draw, 8) for _ in batch],
    }
    _round(runtime, [_text(draw, 8)], 8)
    for name, texts in track(workloads.items(), description="measuring", console=console, transient=True):
        runs = [_round(runtime, texts(), size.generate) for _ in range(size.repeats)]
        rows.append(_summary(name, runs))
    title = f"prompt about {size.prompt} tokens, generate {size.generate}, {size.repeats} rounds"
    table = Table(title=f"{runtime.model.name}: {title}")
    for title in ("workload", "generated tokens/s", "spread", "prompt tokens", "reused", "tokens a forward", "guesses"):
        table.add_column(title, justify="left" if title == "workload" else "right")
    for row in rows:
        spread = f"{row['low']:,.0f}-{row['high']:,.0f}"
        guesses = ", ".join(f"{source} {kept} of {made}" for source, (made, kept) in row["guesses"].items())
        figures = f"{row['rate']:,.0f}", spread, f"{row['prompt']:,}", f"{row['reused']:.0%}", f"{row['forward']:.2f}"
        table.add_row(row["workload"], *figures, guesses)
    console.print(table)
    return rows


def _text(draw: random.Random, tokens: int) -> str:
    return " ".join(draw.choices(_WORDS, k=max(1, tokens // 2)))  # about two tokens a word with a small vocabulary


def _round(runtime: bw.Runtime, texts: list[str], generate: int) -> dict[str, Any]:
    begun = time.perf_counter()
    states = _complete.run_batch([{"text": text, "tokens": generate} for text in texts], backend=runtime)
    metas = [state.meta("out") for state in states]
    seconds = time.perf_counter() - begun
    return {
        "rate": sum(meta["completion_tokens"] for meta in metas) / seconds,
        "prompt": sum(meta["prompt_tokens"] for meta in metas),
        "reused": sum(meta["cached_tokens"] for meta in metas),
        "made": sum(meta["completion_tokens"] for meta in metas),
        "forwards": sum(meta["forwards"] for meta in metas),
        "drafts": [meta["drafts"] for meta in metas],
    }


def _summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [run["rate"] for run in runs]
    guesses: dict[str, tuple[int, int]] = {}
    for drafts in (drafts for run in runs for drafts in run["drafts"]):
        for source, found in drafts.items():
            made, kept = guesses.get(source, (0, 0))
            guesses[source] = made + found["guessed"], kept + found["kept"]
    prompt = sum(run["prompt"] for run in runs)
    return {
        "workload": name,
        "rate": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "prompt": int(prompt / len(runs)),
        "reused": sum(run["reused"] for run in runs) / prompt,
        "forward": sum(run["made"] for run in runs) / max(1, sum(run["forwards"] for run in runs)),
        "guesses": guesses,
    }
