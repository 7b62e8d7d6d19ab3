"""Terminal rendering of a program: prompt, generated text in another colour, forks side by side.

Knows: a live program's branches, rich. Must not know: backends, how anything is executed.
"""

from __future__ import annotations

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from branchwork.lang.live import LiveProgram
from branchwork.lang.transcript import Segment

STYLES = {"literal": "", "frame": "dim", "gen": "bold green", "select": "bold cyan"}


def show(live: LiveProgram, branch: int, console: Console | None = None) -> None:
    """Wait for everything under `branch`, then print it."""
    live.wait(lambda: not live.may_grow() and live.machine.idle)
    (console or Console()).print(render(live, branch))


def render(live: LiveProgram, branch: int) -> RenderableType:
    """A branch as it is now: its own text, its forks as columns where they left it, and its error if it failed."""
    with live.changed:
        view = live.machine.branch(branch)
        segments, forks, failure = list(view.segments), list(view.forks), view.failure
    parts: list[RenderableType] = []
    start = view.inherited
    for at, children in forks:
        parts += [_text(segments[start:at])] if at > start else []
        panels = [
            Panel(render(live, child), title=f"branch {child}", title_align="left", border_style="dim")
            for child in children
        ]
        parts.append(Columns(panels, equal=True, expand=True))
        start = at
    parts += [_text(segments[start:])] if len(segments) > start else []
    if failure is not None:
        parts.append(Text(str(live.error(failure)), style="red"))
    return Group(*parts)


def _text(segments: list[Segment]) -> Text:
    text = Text()
    for segment in segments:
        text.append(segment.text, style=STYLES[segment.origin])
    return text
