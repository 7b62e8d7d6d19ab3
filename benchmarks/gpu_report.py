"""What the GPU suite found: one Figure a line, held against its aim, as a table and as JSON.

Knows: figures. Must not know: how any of them was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Figure(NamedTuple):
    """value None: not measured, `fault` or `note` says why. aim: the least value wanted; with `most`, the largest."""

    part: str
    name: str
    value: float | None = None
    unit: str = ""
    aim: float | None = None
    most: bool = False
    note: str = ""
    fault: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the aim is; None without one, or without a value."""
        if self.value is None or self.aim is None:
            return None
        return self.value <= self.aim if self.most else self.value >= self.aim

    @property
    def failed(self) -> bool:
        """Whether it makes the run fail: a fault anywhere, or a kernel that computes something else."""
        return bool(self.fault) or (self.part == "numerics" and self.reached is False)


def shown(value: float | None, unit: str = "") -> str:
    """Three digits that count, and the unit; rates by the second in T."""
    if value is None:
        return "-"
    if unit.endswith("/s") and value >= 1e9:
        value, unit = value / 1e12, f"T{unit}"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def line(figure: Figure) -> str:
    """One figure as it is printed while the run goes on."""
    rest = figure.fault or figure.note
    verdict = {True: " reached", False: " NOT REACHED", None: ""}[figure.reached]
    aim = "" if figure.aim is None else f" ({'at most' if figure.most else 'at least'} {shown(figure.aim)}{verdict})"
    return f"{figure.part}: {figure.name}: {shown(figure.value, figure.unit)}{aim}{'; ' + rest if rest else ''}"


def show(figures: Sequence[Figure], console: Console) -> None:
    """The table at the end; of the numerics only what failed and how many did not."""
    table = Table("part", "what", "figure", "aim", "reached", "besides")
    good = [figure for figure in figures if figure.part == "numerics" and figure.reached]
    for figure in figures:
        if figure.part == "numerics" and figure.reached:
            continue
        aim = "" if figure.aim is None else f"{'<=' if figure.most else '>='} {shown(figure.aim)}"
        verdict = {True: "yes", False: "no", None: ""}[figure.reached]
        cells = (figure.name, shown(figure.value, figure.unit), aim, verdict, figure.fault or figure.note)
        table.add_row(figure.part, *(Text(cell) for cell in cells), style="red" if figure.failed else "")
    console.print(table)
    aims = [figure.reached for figure in figures if figure.part != "numerics" and figure.aim is not None]
    console.print(
        f"{len(good)} of {sum(figure.part == 'numerics' for figure in figures)} kernels' results agree with the "
        f"definition; {aims.count(True)} of {len(aims)} aims reached, {aims.count(None)} not measured"
    )


def write(file: Path, about: Mapping[str, object], figures: Sequence[Figure]) -> None:
    """{"about": ..., "figures": [...]}; a value that is no number, as a kernel that gives NaN has, is text."""
    rows = []
    for figure in figures:
        value = figure.value if figure.value is None or math.isfinite(figure.value) else str(figure.value)
        rows.append({**figure._asdict(), "value": value, "reached": figure.reached})
    text = json.dumps({"about": dict(about), "figures": rows}, indent=1, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")
