"""What each gen and select of a program cost: prompt tokens reused and new, where the prompt first diverged, time.

Knows: a live program's records and what backends say about calls. Must not know: transcripts, how a backend works.
A figure that a backend does not give is None, and blank where it is printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from branchwork.lang.constraint import capture_names
from branchwork.lang.ir import Gen, Select
from branchwork.lang.live import LiveProgram, Record
from branchwork.lang.machine import WHOLE

if TYPE_CHECKING:
    from rich.table import Table

TITLES = (
    "step",
    "line",
    "prompt",
    "reused",
    "new",
    "first new token",
    "made",
    "forced",
    "queued",
    "first",
    "total",
    "end",
)
LEFT = frozenset({"step", "line", "first new token", "end"})  # columns of words; the others are figures


@dataclass(frozen=True, slots=True)
class Row:
    """One gen or select. Token counts and seconds are of its first sample, but made and forced are of all samples.

    kind: gen | turn | select. source: "file:line" that laid it. status: done | given (an earlier run's answer) |
    running | waiting, or the code of the error that ended it. prompt, reused, new: prompt tokens, those whose KV was
    in the tree, the others. diverged_at, diverged_text: index and text of the first prompt token that was not there;
    None when all were. made: generated tokens, of them `forced` by a constraint. queued_s, first_s, total_s: seconds
    from arrival to admission, first token and end. finish: finish reason, of a select its choice. constraint: what
    enforced it. chosen: of a select, (choice, normalized log-probability) pairs. forwards: runs of the model that
    tokens were drawn after; drafts: per source of guesses, how many there were and how many came true.
    """

    node: int
    branch: int
    kind: str
    name: str | None
    source: str
    status: str
    samples: int = 1
    prompt: int | None = None
    reused: int | None = None
    new: int | None = None
    computed: int | None = None
    diverged_at: int | None = None
    diverged_text: str | None = None
    made: int | None = None
    forced: int | None = None
    queued_s: float | None = None
    first_s: float | None = None
    total_s: float | None = None
    finish: str | None = None
    constraint: str | None = None
    approximations: tuple[str, ...] = ()
    captures: tuple[str, ...] = ()
    preempted: int = 0
    chosen: tuple[tuple[str, float], ...] = ()
    forwards: int | None = None
    drafts: tuple[tuple[str, int, int], ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        """Of generation: from the first token to the end where both are known, else over the whole time."""
        if self.made is None or self.total_s is None:
            return None
        tokens, seconds = self.made, self.total_s
        if self.first_s is not None and self.made > 1 and self.samples == 1:
            tokens, seconds = self.made - 1, self.total_s - self.first_s
        return tokens / seconds if seconds > 0 else None

    @property
    def title(self) -> str:
        """Its name for people, with its branch when that is not the first."""
        name = self.name or f"({self.kind})"
        return name if self.branch == 0 else f"{name} (branch {self.branch})"


class Explanation:
    """The rows of a program in the order in which its gens and selects were laid; prints as a table."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        lines = [list(TITLES), *(_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(TITLES))]
        shown = [
            "  ".join(
                cell.ljust(width) if title in LEFT else cell.rjust(width)
                for title, cell, width in zip(TITLES, line, widths)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*shown, totals(self.rows)])

    __repr__ = __str__

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(caption=totals(self.rows), caption_justify="left")
        for title in TITLES:
            table.add_column(title, justify="left" if title in LEFT else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in _cells(row)))
        return table

    def _repr_html_(self) -> str:
        return table_html(self.rows)


def explain(live: LiveProgram) -> Explanation:
    """Wait until nothing of the program is left to execute; a row for each gen and select of all branches."""
    live.wait(lambda: not live.may_grow() and live.machine.idle)
    return Explanation(rows(live))


def rows(live: LiveProgram) -> list[Row]:
    """The same without waiting: what is known by now."""
    with live.changed:
        numbers = [number for number, record in live.records.items() if isinstance(record.node, (Gen, Select))]
        return [row(live, number) for number in numbers]


def row(live: LiveProgram, number: int) -> Row:
    """One gen or select as it stands. Call with `live.changed` held."""
    record = live.records[number]
    node, metas = record.node, record.meta
    assert isinstance(node, (Gen, Select))
    constraint = node.constraint if isinstance(node, Gen) else None
    captures = tuple(name for name in capture_names(constraint) if name != node.name)
    kind = "select" if isinstance(node, Select) else "turn" if captures else "gen"
    name = node.name if node.name is not None or not captures else ", ".join(captures)
    status = _status(live, number, record)
    if not metas:
        return Row(number, record.branch, kind, name, record.source, status, captures=captures)
    meta = metas[0]
    prompt, reused, diverged = meta.get("prompt_tokens"), meta.get("cached_tokens"), meta.get("diverged_at")
    enforced = meta.get("constraint") or {}
    missed = diverged is not None and (prompt is None or diverged < prompt)
    return Row(
        number, record.branch, kind, name, record.source, status,
        samples=len(metas),
        prompt=prompt,
        reused=reused,
        new=None if prompt is None or reused is None else prompt - reused,
        computed=meta.get("computed_tokens"),
        diverged_at=diverged if missed else None,
        diverged_text=meta.get("diverged_text") if missed else None,
        made=_sum([one.get("completion_tokens") for one in metas]),
        forced=_sum([(one.get("constraint") or {}).get("forced_tokens") for one in metas]),
        queued_s=meta.get("queued_s"),
        first_s=meta.get("first_s"),
        total_s=meta.get("total_s"),
        finish=_finish(metas),
        constraint=enforced.get("backend"),
        approximations=tuple(enforced.get("approximations") or ()),
        captures=captures,
        preempted=int(meta.get("preempted") or 0),
        forwards=_sum([one.get("forwards") for one in metas]),
        drafts=tuple((source, found["guessed"], found["kept"]) for source, found in (meta.get("drafts") or {}).items()),
        chosen=tuple(zip(meta.get("choices") or (), meta.get("normalized_prompt_logprobs") or ())),
    )  # fmt: skip


def table_html(shown: Sequence[Row]) -> str:
    """An HTML table that fits light and dark pages, everything in it escaped."""
    head = "".join(f"<th{_align(title)}>{title}</th>" for title in TITLES)
    lines = (
        "<tr>"
        + "".join(f"<td{_align(title)}>{escape(cell)}</td>" for title, cell in zip(TITLES, _cells(row)))
        + "</tr>"
        for row in shown
    )
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;font-size:.9em;white-space:nowrap">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<div style="font-size:.9em;opacity:.75">{escape(totals(shown))}</div>'
    )


def totals(shown: Sequence[Row]) -> str:
    """All rows together, in a line: what is not known of any is left out."""
    parts = [f"{len(shown)} step" + ("" if len(shown) == 1 else "s")]
    prompt, reused = _sum([row.prompt for row in shown]), _sum([row.reused for row in shown])
    if prompt:
        parts.append(f"{prompt:,} prompt tokens")
    if prompt and reused is not None:
        parts.append(f"{reused:,} of them reused ({100 * reused / prompt:.0f}%)")
    if (made := _sum([row.made for row in shown])) is not None:
        parts.append(f"{made:,} generated")
    if forced := _sum([row.forced for row in shown]):
        parts.append(f"{forced:,} of them forced")
    return ", ".join(parts)


def seconds(value: float | None) -> str:
    """A time for people: "" for none."""
    if value is None:
        return ""
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def place(source: str) -> str:
    """A source line without its folder; of a notebook's cell, whose file has no name worth showing, "cell:line"."""
    path, _, line = source.rpartition(":")
    if re.search(r"ipykernel_\d+|^<ipython-input", path):
        return f"cell:{line}"
    return f"{os.path.basename(path)}:{line}" if path else source


def _status(live: LiveProgram, number: int, record: Record) -> str:
    assert isinstance(record.node, (Gen, Select))
    machine = live.machine
    failure = machine.branch(record.branch).failure
    if failure is not None and number >= failure.node:
        return failure.code if number == failure.node or failure.code in WHOLE else "branch_failed"
    if machine.caught_up(record.branch, number):
        return "done" if record.node.given is None else "given"
    call = machine.under_way(record.branch)
    return "running" if call is not None and call.node == number else "waiting"


def _finish(metas: Sequence[dict[str, Any]]) -> str | None:
    ends = [str(one.get("finish_reason", one.get("choice", ""))) for one in metas]
    return ", ".join(dict.fromkeys(end for end in ends if end)) or None


def _sum(figures: Sequence[int | None]) -> int | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None


def _align(title: str) -> str:
    return f' style="text-align:{"left" if title in LEFT else "right"};padding:.1em .6em"'


def _cells(row: Row) -> list[str]:
    name = row.title if row.samples == 1 else f"{row.title} x{row.samples}"
    diverged = "" if row.diverged_at is None else f"#{row.diverged_at}"
    if row.diverged_text:
        text = row.diverged_text
        diverged += " " + repr(text if len(text) <= 16 else text[:15] + "…")
    end = (row.finish or "") if row.status in ("done", "given") else row.status
    end = (end if len(end) <= 24 else end[:23] + "…").strip()
    return [
        name,
        place(row.source),
        *("" if figure is None else str(figure) for figure in (row.prompt, row.reused, row.new)),
        diverged,
        *("" if figure is None else str(figure) for figure in (row.made, row.forced)),
        *(seconds(time) for time in (row.queued_s, row.first_s, row.total_s)),
        f"{end} (given)".strip() if row.status == "given" else end,
    ]
