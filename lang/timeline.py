"""A program as a trace that Perfetto opens: a track per branch, a slice per gen and select, arrows for forks and joins.

Knows: a live program's records, the seconds that a backend gives, the Chrome trace-event format (JSON object form).
Must not know: transcripts, how a backend works. Without a backend's seconds those that this process saw stand in.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from branchwork.lang import explain
from branchwork.lang.explain import Row
from branchwork.lang.ir import Fork, Gen, Join, Select
from branchwork.lang.live import LiveProgram, Record
from branchwork.lang.race import MODES

PROCESS = 1  # a program is one process of the trace, its branches are that process's threads
Event = dict[str, Any]


def write(live: LiveProgram, path: str | os.PathLike[str]) -> None:
    """Wait until nothing of the program is left to execute, then write its trace. Raises OSError."""
    live.wait(lambda: not live.may_grow() and live.machine.idle)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(trace(live), file, ensure_ascii=False)


def trace(live: LiveProgram) -> dict[str, Any]:
    """The trace as it stands: `traceEvents` sorted by time, times in microseconds after the program began."""
    with live.changed:
        rows = {row.node: row for row in explain.rows(live)}
        records = dict(live.records)
        machine = live.machine
        parents = {number: track.origin for number, track in machine.lineage.tracks.items()}
        title = getattr(live.backend.model, "name", live.backend.model)
        outcomes = {number: failure.code for number in parents if (failure := machine.branch(number).failure)}
    drawing = _Drawing(records, rows, _shift(records))
    for number in sorted(records):
        drawing.draw(number)
    drawing.close(parents, outcomes)
    names: list[Event] = [_name("process_name", 0, f"program on {title}")]
    for branch in sorted(drawing.tracks):
        names.append(_name("thread_name", branch + 1, f"branch {branch}"))
        names.append(
            {"ph": "M", "pid": PROCESS, "tid": branch + 1, "name": "thread_sort_index", "args": {"sort_index": branch}}
        )
    # of slices that begin together the longer one comes first, of equals the one drawn first: it is the outer one
    events = sorted(drawing.events, key=lambda event: (event["ts"], -event.get("dur", 0)))
    return {
        "traceEvents": names + events,
        "displayTimeUnit": "ms",
        "otherData": {"steps": explain.totals([*rows.values()])},
    }


@dataclass(slots=True)
class _Track:
    """A branch while it is drawn, in microseconds: where it began, and the end of what was drawn on it last."""

    began: int
    end: int


@dataclass(slots=True)
class _Drawing:
    """Goes through the nodes in the order of laying, in which every node comes after those it waits for.

    Slices of a track never overlap unless one is inside the other, which the format demands. shift: what is added to
    the backend's microseconds to get this process's.
    """

    records: dict[int, Record]
    rows: dict[int, Row]
    shift: int
    tracks: dict[int, _Track] = field(default_factory=lambda: {0: _Track(0, 0)})
    events: list[Event] = field(default_factory=list)
    arrows: int = 0

    def draw(self, number: int) -> None:
        record = self.records[number]
        laid = max(_us(record.laid_s), 0)
        track = self.tracks.setdefault(record.branch, _Track(laid, laid))
        match record.node:
            case Gen() | Select():
                self._step(record, self.rows[number], track, laid)
            case Fork(children):
                self._fork(record, track, children, max(track.end, laid))
            case Join() as node:
                self._join(record, track, node, max(track.end, laid))

    def close(self, parents: dict[int, tuple[int, int] | None], outcomes: dict[int, str]) -> None:
        """A slice around everything of a branch, before all that is inside it."""
        inside, self.events = self.events, []
        for branch, track in self.tracks.items():
            args: Event = {"outcome": outcomes[branch]} if branch in outcomes else {}
            parent = parents.get(branch)
            if parent is not None:
                args["forked from"] = f"branch {parent[0]}"
            self._slice(f"branch {branch}", "branch", branch, track.began, max(track.end, track.began + 1), args)
        self.events += inside

    def _step(self, record: Record, row: Row, track: _Track, laid: int) -> None:
        branch, free, given = record.branch, track.end, row.status == "given"
        metas = () if given else record.meta
        if metas and "began_s" in metas[0] and "total_s" in metas[0]:
            sent = _us(metas[0]["began_s"]) + self.shift
            begin = max(free, sent)
            end = sent + _us(max(meta.get("total_s", 0.0) for meta in metas))
        elif record.done_s >= 0 or given:
            sent = begin = max(free, laid)
            end = _us(record.done_s)
        else:  # it never came to an end, and nobody took down when it was stopped
            self._instant(f"{row.name or row.kind}: {row.status}", branch, max(free, laid), _figures(row))
            return
        end = max(end, begin + 1)
        # until the node was laid the author's own code ran, or waited; from then on the node waited for its turn
        handed = min(max(free, laid), begin)
        self._slice("python", "client", branch, free, handed)
        self._slice("waiting", "client", branch, handed, begin)
        self._slice(row.name or row.kind, row.kind, branch, begin, end, _figures(row))
        if metas and row.queued_s is not None and row.first_s is not None:
            admitted, first = (min(max(begin, sent + _us(time)), end) for time in (row.queued_s, row.first_s))
            self._slice("queued", "phase", branch, begin, admitted)
            self._slice("score" if row.kind == "select" else "prefill", "phase", branch, admitted, first)
            self._slice("decode", "phase", branch, first, end)
        track.end = end

    def _fork(self, record: Record, track: _Track, children: tuple[int, ...], at: int) -> None:
        self._slice("fork", "fork", record.branch, at, at + 1, {"branches": list(children)})
        track.end = at + 1
        for child in children:
            self.tracks[child] = _Track(at + 1, at + 1)
            self._arrow("fork", (record.branch, at), (child, at + 1))

    def _join(self, record: Record, track: _Track, node: Join, begin: int) -> None:
        ends = {child: self.tracks[child].end for child in node.children if child in self.tracks}
        end = max(ends.values(), default=begin)
        if node.mode in MODES and record.done_s >= 0:
            end = _us(record.done_s)  # a race is not held up by who loses it
        end = max(begin + 1, end)
        self._slice("join", "join", record.branch, begin, end, {"mode": node.mode})
        for child, left in ends.items():
            leaves = min(max(self.tracks[child].began, left - 1), end - 1)
            self._arrow("join", (child, leaves), (record.branch, max(begin, leaves)))
        track.end = end

    def _slice(self, name: str, category: str, branch: int, begin: int, end: int, args: Event | None = None) -> None:
        if end > begin:
            where = {"pid": PROCESS, "tid": branch + 1, "ts": begin, "dur": end - begin}
            self.events.append({"ph": "X", "name": name, "cat": category, **where, "args": args or {}})

    def _instant(self, name: str, branch: int, at: int, args: Event) -> None:
        where = {"pid": PROCESS, "tid": branch + 1, "ts": at}
        self.events.append({"ph": "i", "s": "t", "name": name, "cat": "stopped", **where, "args": args})

    def _arrow(self, name: str, source: tuple[int, int], target: tuple[int, int]) -> None:
        """From the slice of a branch around a time to that of another, each as (branch, microseconds)."""
        self.arrows += 1
        common: Event = {"name": name, "cat": "flow", "pid": PROCESS, "id": self.arrows}
        self.events.append({"ph": "s", **common, "tid": source[0] + 1, "ts": source[1]})
        self.events.append({"ph": "f", "bp": "e", **common, "tid": target[0] + 1, "ts": target[1]})


def _shift(records: dict[int, Record]) -> int:
    """Microseconds between the beginning here and at the backend, such that the fastest answer took no time to come."""
    gaps = []
    for record in records.values():
        meta = record.meta[0] if record.meta else {}
        if record.done_s >= 0 and "began_s" in meta and "total_s" in meta:
            gaps.append(record.done_s - meta["began_s"] - max(one.get("total_s", 0.0) for one in record.meta))
    return _us(min(gaps, default=0.0))


def _figures(row: Row) -> Event:
    """What is known of a step, for the panel of a selected slice."""
    figures: Event = {
        "line": row.source,
        "status": row.status,
        "finish": row.finish,
        "samples": row.samples if row.samples > 1 else None,
        "prompt tokens": row.prompt,
        "reused": row.reused,
        "new": row.new,
        "first new token": row.diverged_at,
        "first new text": row.diverged_text,
        "generated": row.made,
        "forced": row.forced,
        "tokens per second": None if row.tokens_per_second is None else round(row.tokens_per_second, 1),
        "constraint": row.constraint,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _name(what: str, thread: int, name: str) -> Event:
    return {"ph": "M", "pid": PROCESS, "tid": thread, "name": what, "args": {"name": name}}


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
