"""Rows of `branchwork bench` as a table, JSON, Markdown or CSV.

Knows: the rows, their units. Must not know: how they were measured.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from branchwork.bench import Row
from branchwork.bench_machine import Rates
from branchwork.status import number, size

FORMATS = ("table", "json", "md", "csv")
_COLUMNS = ("test", "tokens/s", "low-high", "bandwidth", "matrix", "reused")
_MEANING = "bandwidth and matrix: the share of these that weights and KV were read at, and prompts multiplied at."
_SAME = ("model", "size", "parameters", "weights", "threads")


def document(rows: Sequence[Row], rates: Rates, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that is known, for JSON. options: how the runtime was started."""
    return {
        "model": rows[0].model,
        "options": options,
        "machine": rates._asdict(),
        "rows": [row._asdict() for row in rows],
    }


def written(output: str, rows: Sequence[Row], rates: Rates, options: dict[str, Any]) -> str:
    """The text of the formats json, md and csv."""
    if output == "json":
        return json.dumps(document(rows, rates, options), indent=2)
    if output == "csv":
        return _csv(rows, rates)
    return _markdown(rows, rates, options)


def show(console: Console, rows: Sequence[Row], rates: Rates, options: dict[str, Any]) -> None:
    """A table on a terminal."""
    about = ", ".join(f"{name} {value}" for name, value in zip(_SAME[1:], _model(rows[0])[1:]))
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "test" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*_figures(row))
    console.print(f"{rows[0].model}: {about}; {_guessing(options)}", highlight=False)
    console.print(table)
    console.print(f"{_machine(rates)} {_MEANING}", highlight=False)


def _markdown(rows: Sequence[Row], rates: Rates, options: dict[str, Any]) -> str:
    head = (*_SAME, *_COLUMNS)
    lines = [head, ["---"] * len(_SAME) + ["---"] + ["---:"] * (len(_COLUMNS) - 1)]
    lines += [(*_model(row), *_figures(row)) for row in rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{_machine(rates)} {_MEANING}\n{_guessing(options).capitalize()}."


def _csv(rows: Sequence[Row], rates: Rates) -> str:
    """Every field of a row but its single samples, and the measured rates in columns of their own."""
    fields = [name for name in Row._fields if name != "samples"]
    machine = {"read_bandwidth": rates.read, "matrix_rate": rates.matrix, "matrix_dtype": rates.dtype}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*fields, *machine])
    for row in rows:
        writer.writerow(
            [*("" if (value := getattr(row, name)) is None else value for name in fields), *machine.values()]
        )
    return text.getvalue().rstrip("\n")


def _model(row: Row) -> tuple[str, ...]:
    return row.model, size(row.size), number(row.parameters), row.type, str(row.threads)


def _figures(row: Row) -> tuple[str, ...]:
    return (
        row.test,
        f"{_rate(row.rate)} ± {_rate(row.deviation)}",
        f"{_rate(row.low)}-{_rate(row.high)}",
        "" if row.bandwidth is None else f"{row.bandwidth:.0%}",
        "" if row.matrix is None else f"{row.matrix:.0%}",
        f"{row.reused:.0%}",
    )


def _rate(tokens: float) -> str:
    return f"{tokens:,.0f}" if tokens >= 1000 else f"{tokens:.3g}"


def _guessing(options: dict[str, Any]) -> str:
    return f"guessing ahead: {options['speculative']}"


def _machine(rates: Rates) -> str:
    threads = f"{rates.threads} thread{'s' * (rates.threads != 1)}"
    by = "" if rates.reader == "native" else f" (by {rates.reader}: slower than memory where it fits into a cache)"
    return (
        f"Measured here with {threads}: {rates.read / 1e9:.1f} GB/s for a plain read of {size(rates.buffer)}{by}, "
        f"{rates.matrix / 1e9:.0f} GFLOP/s for {rates.dtype} products."
    )
