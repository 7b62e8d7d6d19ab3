"""Showing a program: in a terminal with rich, in a notebook as HTML, and live in both while it still runs.

Knows: what a live view consists of, rich, IPython where it is already running. Must not know: backends, transcripts.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from branchwork.lang import explain, html, live_view
from branchwork.lang.live import LiveProgram
from branchwork.lang.live_view import Span, Trouble, View

STYLES = {
    "frame": "dim",
    "prompt": "",
    "reused": "blue",
    "tool": "cyan",
    "generated": "bold green",
    "lookup": "green underline",
    "model": "green italic",
    "forced": "yellow",
    "select": "bold magenta",
    "cut": "dim strike",
    "image": "dim cyan",
}
LABELS = {
    "tool": "tool result",
    "select": "chosen",
    "lookup": "guessed",
    "model": "guessed by a model",
    "cut": "cut off",
}
OUTCOMES = {"won": "green", "lost": "dim", "stopped": "dim", "failed": "red", "running": "yellow"}
NARROW = 32  # columns of a terminal that a branch should have, beside its neighbours
REFRESH = 0.1  # seconds at least between two pictures of a running program


def show(live: LiveProgram, branch: int, console: Console | None = None) -> None:
    """Wait for everything under `branch` and show it; meanwhile as it grows, in a notebook and in a terminal.

    With a console of one's own, or where nobody watches (a file, a pipe), it is printed once at the end.
    """
    if console is None and (notebook := _notebook()) is not None:
        handle = notebook.display(_Shown(live, branch), display_id=True)
        for _ in _changes(live):
            handle.update(_Shown(live, branch))
        return
    console = console or Console()
    if console.is_terminal and not console.is_dumb_terminal:
        _watch(live, branch, console)
    else:
        for _ in _changes(live):
            pass
    console.print(render(live, branch))
    console.print(legend(live_view.view(live, branch)))


def appear(live: LiveProgram, branch: int, plain: str) -> None:
    """What IPython calls for a state that is the last expression of a cell: shown at once, kept up to date without
    holding up the cell. plain: what to print where there is no notebook.
    """
    notebook = _notebook()
    if notebook is None:
        print(plain)
        return
    handle = notebook.display(_Shown(live, branch, plain), display_id=True)
    with live.changed:
        if not live.body.running and live.machine.idle:
            return

    def follow() -> None:
        for _ in _changes(live):
            handle.update(_Shown(live, branch))

    threading.Thread(target=follow, name="branchwork-display", daemon=True).start()


def render(live: LiveProgram, branch: int) -> RenderableType:
    """A branch as it is now: its own text, its forks as columns where they left it, and its error if it failed."""
    return _branch(live_view.view(live, branch))


def legend(view: View) -> Text:
    """The kinds that occur in a view, each in its style, and what it all cost."""
    kinds = {span.kind for span in view.spans()}
    shown = [Text(LABELS.get(kind, kind), style=STYLES[kind]) for kind in live_view.KINDS if kind in kinds]
    rows = {span.row.node: span.row for span in view.spans() if span.row is not None}
    line = Text("  ").join([*shown, Text(explain.totals([rows[node] for node in sorted(rows)]), style="dim")])
    return Text("\n").join([line, *(Text(f"note: {note}", style="dim") for note in view.notes)])


def _branch(view: View) -> Group:
    parts: list[RenderableType] = []
    text = Text()
    for part in view.parts:
        if isinstance(part, Span):
            text.append_text(_span(part))
            continue
        parts += _block(text)
        text = Text()
        parts.append(_Columns([_panel(child) for child in part]))
    parts += _block(text)
    if view.hidden:
        parts.append(Text(f"({view.hidden} branches below are not shown; show one of them by itself)", style="dim"))
    if view.trouble is not None:
        parts.append(_trouble(view.trouble))
    return Group(*parts)


def _block(text: Text) -> list[RenderableType]:
    """Text without its last line break, since what follows begins a new line anyway."""
    if text.plain.endswith("\n"):
        text.right_crop()
    return [text] if text else []


def _span(span: Span) -> Text:
    if span.picture is not None:
        kind = type(span.picture).__name__.lower()
        return Text(f"[{kind}: {span.picture.media}, {len(span.picture.data):,} bytes]", style=STYLES["image"])
    text = Text(span.text, style=STYLES[span.kind])
    if span.kind == "generated" and span.row is not None and span.row.status == "running":
        text.append("▌", style="blink")
    if span.more:
        text.append(f" (+{len(span.more)} more)", style="dim")
    return text


def _panel(view: View) -> Panel:
    title = Text(f"branch {view.branch}")
    if view.outcome:
        title.append(f" · {view.outcome}", style=OUTCOMES[view.outcome])
    border = "green" if view.outcome == "won" else "red" if view.outcome == "failed" else "dim"
    return Panel(_branch(view), title=title, title_align="left", border_style=border)


def _trouble(trouble: Trouble) -> Text:
    text = Text(f"{trouble.code}: {trouble.message}", style="red")
    if trouble.source:
        text.append(f"\n  at {explain.place(trouble.source)}", style="red dim")
        text.append(f": {trouble.line}" if trouble.line else "", style="red dim")
    return text


class _Columns:
    """Panels side by side, as many in a row as there is room for."""

    def __init__(self, panels: Sequence[Panel]) -> None:
        self.panels = panels

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fit = max(1, min(len(self.panels), options.max_width // NARROW))
        rows = -(-len(self.panels) // fit)
        width = -(-len(self.panels) // rows)  # rows as even as can be: four panels where three fit are two and two
        table = Table.grid(expand=True)
        for _ in range(width):
            table.add_column(ratio=1)
        for first in range(0, len(self.panels), width):
            table.add_row(*self.panels[first : first + width])
        yield table


class _Tail:
    """The last lines of a program that is taller than the terminal."""

    def __init__(self, live: LiveProgram, branch: int) -> None:
        self.live, self.branch = live, branch

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(render(self.live, self.branch), options.update(height=None), pad=False)
        for line in lines[-(console.height - 2) :]:
            yield from line
            yield Segment.line()


class _Shown:
    """A picture of a program for IPython: HTML, and text for front ends without it."""

    def __init__(self, live: LiveProgram, branch: int, plain: str = "") -> None:
        self.html = html.render(live, branch)
        with live.changed:
            self.plain = plain or live.machine.branch(branch).text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.plain


def _watch(live: LiveProgram, branch: int, console: Console) -> None:
    with live.changed:
        if live_view.done(live):
            return
    with Live(_Tail(live, branch), console=console, auto_refresh=False, transient=True) as picture:
        for _ in _changes(live):
            picture.refresh()


def _changes(live: LiveProgram) -> Iterator[None]:
    """Again and again after something has changed, at most every REFRESH seconds; the last time when all is done."""
    seen, over = -1, False

    def news() -> bool:
        nonlocal seen, over
        if live.version == seen and not live_view.done(live):
            return False
        seen, over = live.version, live_view.done(live)
        return True

    while not over:
        live.wait(news)
        began = time.monotonic()
        yield
        if not over:  # drawing a large program takes long; it must not eat the time of the program itself
            time.sleep(max(REFRESH, 4 * (time.monotonic() - began)))


def _notebook() -> Any:
    """IPython.display where this process is a notebook's kernel, else None. Never loads IPython by itself."""
    loaded: Any = sys.modules.get("IPython")
    shell = loaded.get_ipython() if loaded is not None else None
    if shell is None or "IPKernelApp" not in shell.config:
        return None
    return importlib.import_module("IPython.display")
