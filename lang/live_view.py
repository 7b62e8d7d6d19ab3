"""What is shown of a program: one branch as spans of text, each of a kind, its forks nested where they left it.

Knows: a live program's transcripts and records. Must not know: colours, terminals, HTML.
Both renderers (lang.display for terminals, lang.html for notebooks) draw what `view` returns, which never waits.
"""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from branchwork.lang import explain
from branchwork.lang.errors import ProgramError
from branchwork.lang.ir import Gen, Image, Join, Select, Video
from branchwork.lang.live import LiveProgram
from branchwork.lang.transcript import Branch, NodeFailed, Segment

# prompt: text whose KV had to be computed (or nobody knows); reused: its KV was in the tree for all who read it;
# cut: what a gen had written when it was stopped, and is not part of the transcript; image: a picture, without text
# lookup, model: generated, and guessed ahead from past text or by a draft model
KINDS = ("frame", "prompt", "reused", "tool", "generated", "lookup", "model", "forced", "select", "cut", "image")
DEPTH = 24  # levels of forks shown; deeper ones are counted
STOPPED = frozenset({"cancelled", "closed"})  # the program's own doing, not errors


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a branch's text. row: the gen or select that made it. more: the texts of its other samples."""

    text: str
    kind: str
    row: explain.Row | None = None
    more: tuple[str, ...] = ()
    picture: Image | Video | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a branch stopped. source: "file:line" that laid the node, or ""; line: that line's text, or ""."""

    code: str
    message: str
    source: str
    line: str


@dataclass(frozen=True, slots=True)
class View:
    """A branch. outcome: "" (nothing to say) | running | won | lost | stopped | failed; hidden: branches too deep.

    notes: what a reader should know about how the program came about; of the branch that is shown, not of its forks.
    """

    branch: int
    outcome: str
    parts: tuple[Span | tuple[View, ...], ...]
    trouble: Trouble | None = None
    hidden: int = 0
    notes: tuple[str, ...] = ()

    def spans(self) -> Iterator[Span]:
        """All spans of this branch and of those forked from it."""
        for part in self.parts:
            if isinstance(part, Span):
                yield part
            else:
                for child in part:
                    yield from child.spans()


def view(live: LiveProgram, branch: int) -> View:
    """A branch as it is now: its own text, and its forks; with the error of the program's function for the first."""
    with live.changed:
        shown, _ = _View(live).branch(branch, 0)
        error, notes = live.body.error, tuple(live.notes)
    told = isinstance(error, ProgramError) and error.node is not None  # shown on the branch of its node
    if branch != 0 or error is None or told or shown.trouble is not None:
        return replace(shown, notes=notes)
    return replace(shown, outcome="failed", trouble=_raised(error), notes=notes)


def done(live: LiveProgram) -> bool:
    """Nothing shown of the program will change any more. Call with `live.changed` held."""
    return not live.may_grow() and live.machine.idle


class _View:
    """One pass over a program, with its lock held."""

    def __init__(self, live: LiveProgram) -> None:
        self.live = live
        self.placed: dict[int, tuple[int, int]] = {}  # child branch -> its race's Join node and its index there
        for number, record in live.records.items():
            if isinstance(record.node, Join) and number in live.machine.winners:
                self.placed.update({child: (number, i) for i, child in enumerate(record.node.children)})

    def branch(self, number: int, level: int) -> tuple[View, int | None]:
        """The branch, and how many characters of its text the first call on it found in the tree (None: unknown).

        Goes backward, since what tells new prompt text from reused is the first call after it: on this branch, or on
        one that was forked in between.
        """
        shown = self.live.machine.branch(number)
        parts: list[Span | tuple[View, ...]] = list(reversed(self._under_way(shown)))
        forks = list(shown.forks)
        at = sum(len(segment.text) for segment in shown.segments)
        tools = _tool_segments(shown)
        known: int | None = None
        hidden = 0
        for index in range(len(shown.segments), shown.inherited - 1, -1):
            while forks and forks[-1][0] == index:
                children = forks.pop()[1]
                if level >= DEPTH:
                    hidden += len(children)
                    continue
                views = [self.branch(child, level + 1) for child in children]
                parts.append(tuple(child for child, _ in views))
                known = min(
                    (found for found in (known, *(found for _, found in views)) if found is not None), default=None
                )
            if index > shown.inherited:
                segment = shown.segments[index - 1]
                at -= len(segment.text)
                spans = self._spans(shown, segment, at, known, index - 1 in tools)
                parts += reversed(spans)
                if segment.origin in ("gen", "select") and shown.stamps[index - 1] == segment.node:
                    meta = self.live.records[segment.node].meta
                    known = meta[0].get("reused_chars") if meta else None
        outcome, trouble = self._outcome(shown)
        return View(number, outcome, tuple(reversed(parts)), trouble, hidden), known

    def _spans(self, shown: Branch, segment: Segment, at: int, known: int | None, tool: bool) -> list[Span]:
        text = segment.text
        match segment.origin:
            case "frame":
                return [Span(text, "frame")]
            case "image":
                return [Span("", "image", picture=shown.pictures[segment.node])]
            case "select":
                return [Span(text, "select", explain.row(self.live, segment.node))]
            case "gen":
                return self._answer(segment)
        if tool:
            return [Span(text, "tool")]
        found = max(0, min(len(text), (known or 0) - at))
        halves = (Span(text[:found], "reused"), Span(text[found:], "prompt"))
        return [half for half in halves if half.text]

    def _answer(self, segment: Segment) -> list[Span]:
        """A gen's text, cut where it was forced or guessed ahead. Its other samples go with the last piece."""
        record = self.live.records[segment.node]
        assert isinstance(record.node, Gen)
        row, text = explain.row(self.live, segment.node), segment.text
        meta = record.meta[0] if record.meta else {}
        # both are counted in the whole answer, which thinking that was taken away was part of
        marks = _marks(meta) if record.node.reasoning is None else []
        spans, end = [], 0
        for first, last, kind in marks:
            first, last = max(first, end), min(last, len(text))
            if first < last:
                spans += [Span(text[end:first], "generated", row)] if end < first else []
                spans.append(Span(text[first:last], kind, row))
                end = last
        spans += [Span(text[end:], "generated", row)] if end < len(text) else []
        if record.node.name is not None and record.node.params is not None and record.node.params.n > 1:
            values = self.live.machine.value(segment.node, record.node.name)
            more = tuple(values[1:]) if isinstance(values, list) else ()
            spans[-1] = Span(spans[-1].text, spans[-1].kind, row, more)
        return spans

    def _under_way(self, shown: Branch) -> list[Span]:
        """What a call has written so far, or had written when its branch was stopped."""
        call, failure = self.live.machine.under_way(shown.id), shown.failure
        number = call.node if call is not None else failure.node if failure is not None else -1
        record = self.live.records.get(number)
        if record is None or record.branch != shown.id or not isinstance(record.node, (Gen, Select)):
            return []
        text = "".join(chunk.text for chunk in record.chunks)
        if call is None and not text:
            return []
        return [Span(text, "generated" if call is not None else "cut", explain.row(self.live, number))]

    def _outcome(self, shown: Branch) -> tuple[str, Trouble | None]:
        failure = shown.failure
        if failure is not None:
            if failure.code == "outrun":
                return "lost", None
            if failure.code in STOPPED:
                return "stopped", None
            return "failed", self._trouble(failure)
        if self.live.machine.pending(shown.id):
            return "running", None
        if shown.id in self.placed:
            join, index = self.placed[shown.id]
            return ("won" if index in self.live.machine.winners[join] else "lost"), None
        return "", None

    def _trouble(self, failure: NodeFailed) -> Trouble:
        error = self.live.error(failure)
        return Trouble(error.code, error.message, error.source, _line(error.source))


def _raised(error: BaseException) -> Trouble:
    """What the program's own function raised, at its innermost line that is not this package's."""
    source = error.source if isinstance(error, ProgramError) else ""
    if not source:
        ours = __file__.rpartition("live_view")[0]
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
        source = f"{lines[-1].filename}:{lines[-1].lineno}" if lines else ""
    if isinstance(error, ProgramError):
        return Trouble(error.code, error.message, source, _line(source))
    return Trouble(type(error).__name__, f"the program's function raised it: {error}", source, _line(source))


def _line(source: str) -> str:
    path, _, number = source.rpartition(":")
    return linecache.getline(path, int(number)).strip() if number.isdigit() else ""


def _tool_segments(shown: Branch) -> frozenset[int]:
    """Indexes of the segments in turns of role tool."""
    end = len(shown.segments)
    return frozenset(
        index
        for turn in shown.turns
        if turn.role == "tool"
        for index in range(turn.first, end if turn.last is None else turn.last)
    )


def _marks(meta: Mapping[str, Any]) -> list[tuple[int, int, str]]:
    """Stretches of an answer that were not drawn one by one, ascending; what was forced and guessed is forced."""
    forced = [(first, last, "forced") for first, last in meta.get("forced") or ()]
    guessed = [(first, last, source) for first, last, source in meta.get("accepted") or () if source in KINDS]
    held = {place for first, last, _ in forced for place in range(first, last)}
    return sorted([*forced, *(mark for mark in guessed if held.isdisjoint(range(mark[0], mark[1])))])
