"""The figures of benchmarks/peers.py: medians, ratios, the table and the JSON file.

Knows: seconds and counts. Must not know: how they were measured.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers_optimum import Dry
from peers_workloads import Workload
from rich.console import Console
from rich.table import Table

OURS = "Branchwork"
START_AIM = 3.0  # seconds from starting the process to the first token


@dataclass
class Cell:
    """What was measured of one workload with one kind of weights. Lists have one entry for each round, by side."""

    workload: Workload
    bits: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    hits: dict[str, list[float]] = field(default_factory=dict)
    made: dict[str, list[int]] = field(default_factory=dict)
    optimum: float = 0.0
    tokens: int = 0  # that are generated; of prompts where none are
    how: str = ""
    tree: list[float] = field(default_factory=list)  # of Branchwork's seconds, the share spent in the radix tree

    def expect(self, dry: Dry) -> None:
        self.optimum = dry.hit_rate
        self.tokens = dry.generated if dry.generated > 1 else dry.prompt

    def add(self, side: str, seconds: float, hit: float = 0.0, made: int = 0) -> None:
        """made: tokens of one run where their number is the model's choice."""
        print(f"  {self.workload.name} {self.bits} {side}: {seconds:.2f} s", file=sys.stderr)
        self.seconds.setdefault(side, []).append(seconds)
        self.hits.setdefault(side, []).append(hit)
        self.made.setdefault(side, []).append(made)

    def median(self, side: str) -> float | None:
        return statistics.median(self.seconds[side]) if side in self.seconds else None

    def rate(self, side: str) -> float | None:
        """Tokens a second."""
        seconds = self.median(side)
        if seconds is None:
            return None
        return (statistics.median(self.made[side]) or self.tokens) / seconds

    def rows(self) -> list[dict[str, Any]]:
        own = self.median(OURS)
        found = []
        for side in self.seconds:
            their = self.median(side)
            if side == OURS or their is None:
                continue
            found.append(
                {
                    "workload": self.workload.name,
                    "bits": self.bits,
                    "peer": side,
                    "ratio": their / own if own else None,
                    "aim": self.workload.aims.get(side)
                    if self.bits == "bf16" or self.workload.name == "stream"
                    else None,
                    "branchwork_s": own,
                    "peer_s": their,
                    "branchwork_tokens_per_s": self.rate(OURS),
                    "peer_tokens_per_s": self.rate(side),
                    "hit": statistics.median(self.hits[OURS]) if own else None,
                    "optimum": self.optimum,
                    "tree": statistics.median(self.tree) if self.tree else None,
                    "peer_hit": statistics.median(self.hits[side]) if side == "llama.cpp" else None,
                    "how": self.how if side == "llama.cpp" else "",
                    "branchwork_runs_s": self.seconds.get(OURS, []),
                    "peer_runs_s": self.seconds[side],
                }
            )
        return found


class Report:
    """Everything measured in one run, and what has to be said beside it."""

    def __init__(self, model: str, threads: int, rounds: int) -> None:
        self._about = f"{model}, {threads} threads each"
        self.settings: dict[str, Any] = {"model": model, "threads": threads, "rounds": rounds}
        self.versions: list[str] = []
        self.shares: list[str] = []
        self._cells: dict[tuple[str, str], Cell] = {}
        self._starts: dict[str, dict[str, float]] = {}
        self._notes: list[str] = []

    @property
    def title(self) -> str:
        """What was run, and how many rounds of it there were time for."""
        rounds = max((len(seconds) for cell in self._cells.values() for seconds in cell.seconds.values()), default=0)
        return f"{self._about}, {'one round' if rounds == 1 else f'medians of {rounds} rounds'}"

    def note(self, line: str) -> None:
        if line not in self._notes:
            self._notes.append(line)

    def cell(self, workload: Workload, bits: str) -> Cell:
        return self._cells.setdefault((workload.name, bits), Cell(workload, bits))

    def started(self, bits: str, side: str, seconds: float) -> None:
        self._starts.setdefault(bits, {})[side] = seconds

    def rows(self) -> list[dict[str, Any]]:
        """One for each workload, bits and peer; seconds are medians, ratio is the peer's over Branchwork's."""
        found = [row for cell in self._cells.values() for row in cell.rows()]
        for bits, sides in self._starts.items():
            own = sides.get(OURS)
            for side, seconds in sides.items():
                if side != OURS:
                    ratio = seconds / own if own else None
                    both = {"branchwork_s": own, "peer_s": seconds, "aim": None, "hit": None, "optimum": None}
                    found.append({"workload": "start", "bits": bits, "peer": side, "ratio": ratio, **both})
        return found

    def write(self, path: Path) -> None:
        about = {"settings": self.settings, "versions": self.versions, "notes": self._notes, "starts": self._starts}
        path.write_text(json.dumps({"rows": self.rows(), **about}, indent=2) + "\n", encoding="utf-8")

    def show(self) -> None:
        console = Console(width=140)
        table = Table(title=self.title)
        for title in ("workload", "bits", "peer", "Branchwork s", "peer s", "tokens/s", "theirs", "ratio", "aim"):
            table.add_column(title, justify="left" if title in ("workload", "bits", "peer") else "right")
        for title in ("hit", "optimum", "their hit", "tree"):
            table.add_column(title, justify="right")
        for row in self.rows():
            table.add_row(*_shown(row))
        console.print(table)
        for row in self.rows():
            if row.get("how"):
                console.print(f"llama.cpp, {row['workload']} ({row['bits']}): {row['how']}")
        for bits, sides in self._starts.items():
            said = ", ".join(f"{side} {seconds:.2f}" for side, seconds in sides.items())
            console.print(
                f"start to first token, {bits}, files in the page cache, s (aim: < {START_AIM:g}): {said}",
                highlight=False,
            )
        for line in self._notes:
            console.print(line, markup=False, highlight=False)
        console.print(f"{platform.machine()}; {'; '.join(self.versions)}", highlight=False)


def _shown(row: dict[str, Any]) -> list[str]:
    def number(name: str, form: str) -> str:
        value = row.get(name)
        return "-" if value is None else format(value, form)

    aim, ratio = row["aim"], row["ratio"]
    reached = "" if aim is None or ratio is None else ("" if ratio >= aim else "!")
    return [
        *(row["workload"], row["bits"], row["peer"]),
        *(number("branchwork_s", ".2f"), number("peer_s", ".2f")),
        *(number("branchwork_tokens_per_s", ".0f"), number("peer_tokens_per_s", ".0f")),
        "-" if ratio is None else f"{ratio:.2f}x",
        "-" if aim is None else f">= {aim:g}x{reached}",
        *(number("hit", ".1%"), number("optimum", ".1%"), number("peer_hit", ".1%"), number("tree", ".2%")),
    ]
