"""Finds launch parameters for a chip: what fits it by compiling, the fastest of that by time, written to its file.

Knows: spaces, the compiler's resources, cases, the files' format. Must not know: any kernel.
Usage: python benchmarks/tune.py [--ops attend,int4,...] [--chip auto|sm_90|...] [--write] [--seconds N] [--dry]
--dry needs no GPU: it says how much of each op's space fits the chip's registers and shared memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gpu_cases
import torch
from gpu_case import Case
from gpu_timing import timed
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tune_space import COUNTS, candidates

from branchwork.kernels import compile_all, table
from branchwork.kernels.triton import tuning
from branchwork.kernels.triton.tuning import Row

EACH = 0.04  # seconds of one timing
WIDTH = 150  # of the table, at least
GAIN = 1.02  # times quicker that a new row must be, over all cases, to be worth a change


class Choice(NamedTuple):
    """new: None where the old row stays. gain: its old time over its new one, as a mean over the cases. fit: rows of
    the `tried` that fit the chip."""

    op: str
    old: Row
    new: Row | None
    gain: float
    tried: int
    fit: int
    note: str = ""


def fitting(
    tried: Mapping[str, Sequence[Row]], chip: str, jobs: int, progress: Progress, until: float = math.inf
) -> dict[str, list[Row]]:
    """By op those rows with which all that is compiled of it ahead of time fits the chip. until: by time.monotonic; an
    op that was not finished then is left out.

    An op's first specimen is tried first: what does not fit there is not tried further.
    """
    specimens: dict[str, list[str]] = {op: [] for op in tried}
    for specimen in compile_all.specimens().values():
        op = ".".join(filter(None, specimen.rows))
        if op in specimens:
            specimens[op].append(specimen.name)
    alike = {op: {_compiled(row): row for row in reversed(rows)} for op, rows in tried.items()}
    late: set[str] = set()
    for some in (slice(0, 1), slice(1, None)):
        whole = [(op, row, name) for op in tried for row in alike[op].values() for name in specimens[op][some]]
        bar = progress.add_task("compiling", total=len(whole))
        left = set(range(len(whole)))
        for index, done in compile_all.compile_tasks([(name, chip, row) for _, row, name in whole], jobs):
            left.discard(index)
            op, row, _ = whole[index]
            if done.error:
                alike[op].pop(_compiled(row), None)
            progress.update(bar, advance=1, description=f"compiling {op}")
            if time.monotonic() > until:
                break
        progress.remove_task(bar)
        late |= {whole[index][0] for index in left}
    return {op: [row for row in rows if _compiled(row) in alike[op]] for op, rows in tried.items() if op not in late}


def _compiled(row: Row) -> tuple[tuple[str, int], ...]:
    """What of a row matters to the compiler."""
    return tuple((key, value) for key, value in row.items() if key not in COUNTS)


def times(op: str, rows: Sequence[Row], cases: Sequence[Case], device: torch.device, progress: Progress) -> list[float]:
    """Each row's time over the first one's (if that runs, else the best one's), as a geometric mean over the cases;
    infinite where it does not run."""
    ratios = [[] for _ in rows]  # type: list[list[float]]
    bar = progress.add_task(f"{op}: timing", total=len(rows) * len(cases))
    for case in cases:
        inputs = case.make(device, case.dtypes[0])
        found = []
        for row in rows:
            with tuning.trial(op, row):
                try:
                    found.append(timed(lambda: case.once(inputs), device, EACH).seconds)  # noqa: B023 (called here)
                except Exception as error:  # too many registers for a launch, say: a row like any other, only useless
                    progress.console.print(f"{op} {row}: {type(error).__name__}: {error}"[:300])
                    found.append(math.inf)
            progress.advance(bar)
        base = found[0] if found[0] < math.inf else min(found)
        if base == math.inf:
            raise RuntimeError(f"{op}: no row runs {case.name}")
        for ratio, seconds in zip(ratios, found):
            ratio.append(seconds / base)
    progress.remove_task(bar)
    return [math.exp(sum(math.log(x) for x in ratio) / len(ratio)) for ratio in ratios]


def chosen(op: str, rows: Sequence[Row], ratios: Sequence[float], cases: Sequence[Case], device: torch.device) -> int:
    """The quickest row whose results agree with the definition; 0, the old row, where none is worth a change."""
    for ratio, index in sorted(zip(ratios, range(len(rows)))):
        if ratio * GAIN > 1:
            break
        with tuning.trial(op, rows[index]):
            faults = [case.fault(device, case.dtypes[0]) <= case.allowed(case.dtypes[0]) for case in cases]
        if all(faults):
            return index
    return 0


def tuned(op: str, tried: Sequence[Row], fit: Sequence[Row], device: torch.device, progress: Progress) -> Choice:
    """The rows that fit, ordered by time. tried: the one in use first."""
    old = tried[0]
    cases = [case for case in gpu_cases.timed() if op in case.rows]
    if not cases:
        return Choice(op, old, None, 1.0, len(tried), len(fit), "no case uses it: not timed")
    rows = [old, *(row for row in fit if row != old)]
    ratios = times(op, rows, cases, device, progress)
    best = chosen(op, rows, ratios, cases, device)
    return Choice(op, old, rows[best] if best else None, 1 / ratios[best], len(tried), len(fit))


def filtered(op: str, tried: Sequence[Row], fit: Sequence[Row]) -> Choice:
    """What is known without a device."""
    note = "" if tried[0] in fit else "the row in use does not fit"
    return Choice(op, tried[0], None, 1.0, len(tried), len(fit), note)


def file_text(about: str, rows: dict[str, Row]) -> str:
    """A file of launch parameters: an op a line, everything sorted, so that a change is a line of a diff."""
    lines = [f"  {json.dumps(op)}: {json.dumps(rows[op], sort_keys=True)}" for op in sorted(rows)]
    return f'{{\n"about": {json.dumps(about)},\n"rows": {{\n' + ",\n".join(lines) + "\n}\n}\n"


def write(chip: str, choices: Sequence[Choice], when: str) -> Path:
    """The chip's file with the new rows: what differs from default.json. `when`: date, device and versions."""
    file = tuning.FOLDER / f"{chip}.json"
    whole = tuning.read(tuning.FOLDER / "default.json")
    rows = tuning.read(file) if file.is_file() else {}
    before = json.loads(file.read_text(encoding="utf-8"))["about"] if file.is_file() else "the default rows"
    for choice in choices:
        if choice.new is not None:
            rows[choice.op] = {key: value for key, value in choice.new.items() if whole[choice.op][key] != value}
    rows = {op: row for op, row in rows.items() if row}
    ops = ", ".join(sorted(choice.op for choice in choices))
    file.write_text(file_text(f"ordered by time, {when}: {ops}. Before, and the others: {before}", rows), "utf-8")
    tuning.rows.cache_clear()
    return file


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit status."""
    given = _given(arguments)
    device = None if given.dry else torch.device("cuda")
    chip = table.chip(torch.device("cuda")) if given.chip == "auto" else given.chip
    ops = [op for op in tuning.rows(chip) if not given.ops or any(op.startswith(x) for x in given.ops.split(","))]
    until = time.monotonic() + given.seconds
    choices: list[Choice] = []
    console = Console(width=max(Console().width, WIDTH))
    tried = {op: candidates(op, chip) for op in ops}
    with Progress(console=console, transient=True) as progress:
        fit = fitting(tried, chip, given.jobs, progress, until)
        bar = progress.add_task(chip, total=len(fit))
        for op in fit:
            if device is None:
                choices.append(filtered(op, tried[op], fit[op]))
            elif time.monotonic() < until:
                choices.append(tuned(op, tried[op], fit[op], device, progress))
            progress.advance(bar)
    if missing := [op for op in ops if op not in {choice.op for choice in choices}]:
        console.print(f"no time left for {', '.join(missing)}")
    _show(choices, console)
    if given.write:
        import triton

        name = torch.cuda.get_device_name()
        when = f"{datetime.date.today()}, {name}, torch {torch.__version__}, triton {triton.__version__}"
        console.print(f"written: {write(chip, choices, when)}")
    return 0


def _given(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ops", default="", help="beginnings of their names, with commas between them; all by default")
    parser.add_argument("--chip", default="auto", help="auto for the GPU that is here, or " + ", ".join(tuning.CHIPS))
    parser.add_argument("--write", action="store_true", help="put the new rows into the chip's file")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="after which nothing more is compiled and no further op timed"
    )
    parser.add_argument("--dry", action="store_true", help="only compile: what fits the chip")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile side by side")
    given = parser.parse_args(arguments)
    if given.chip != "auto" and given.chip not in compile_all.SHARED:
        parser.error(f"unknown chip {given.chip!r}; known are {', '.join(compile_all.SHARED)}")
    here = table.chip(torch.device("cuda")) if torch.cuda.is_available() else ""
    if not here and not given.dry:
        parser.error("torch finds no GPU to take the time on; --dry --chip NAME says what fits a chip")
    if given.chip == "auto" and not here:
        parser.error("no GPU is here whose chip could be found out; give --chip")
    if not given.dry and given.chip not in ("auto", here):
        parser.error(f"rows of {given.chip} cannot be ordered by time on this {here}; give --dry or --chip auto")
    if given.dry and given.write:
        parser.error("--write needs times, and --dry takes none")
    if given.ops and (
        bad := [x for x in given.ops.split(",") if not any(op.startswith(x) for op in tuning.rows("default"))]
    ):
        parser.error(f"no op begins with {', '.join(bad)}; there are {', '.join(tuning.rows('default'))}")
    return given


def _show(choices: Sequence[Choice], console: Console) -> None:
    found = Table("op", "fit of tried", "old", "new", "old time / new", "besides")
    for choice in choices:
        new: Any = "" if choice.new is None else _short(choice.new, choice.old)
        gain = "" if choice.new is None else f"{choice.gain:.2f}"
        found.add_row(choice.op, f"{choice.fit} of {choice.tried}", _short(choice.old), new, gain, choice.note)
    console.print(found)


def _short(row: Row, old: Row | None = None) -> str:
    """A row, or what differs in it from an old one."""
    return ", ".join(f"{key} {value}" for key, value in row.items() if old is None or old[key] != value)


if __name__ == "__main__":
    sys.exit(main())
