"""A program as HTML for notebooks: kinds of text in shades, forks as columns, what each gen cost on hover.

Knows: what a live view consists of. Must not know: IPython, backends, transcripts.
Self-contained: a style element and no script. Colours are laid thinly over the page's own, so that one picture fits
light and dark pages. Everything that a model or a user wrote is escaped.
"""

from __future__ import annotations

import base64
from html import escape

from branchwork.lang import explain, live_view
from branchwork.lang.explain import Row, place, seconds
from branchwork.lang.live import LiveProgram
from branchwork.lang.live_view import KINDS, Span, Trouble, View

STYLE = """<style>
.bw{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;text-align:left}
.bw .bw-body{max-height:80em;overflow:auto}
.bw-text{white-space:pre-wrap;overflow-wrap:anywhere}
.bw span[class^=bw-]{border-radius:.2em;-webkit-box-decoration-break:clone;box-decoration-break:clone}
.bw .bw-frame{opacity:.42;font-size:.85em}
.bw .bw-reused{background:rgba(66,133,244,.2)}
.bw .bw-tool{background:rgba(0,160,170,.2)}
.bw .bw-generated{background:rgba(30,165,85,.26)}
.bw .bw-lookup{background:rgba(30,165,85,.26);border-bottom:2px solid rgba(30,165,85,.9)}
.bw .bw-model{background:rgba(30,165,85,.26);border-bottom:2px dotted rgba(30,165,85,.9)}
.bw .bw-forced{background:rgba(235,160,0,.3)}
.bw .bw-select{background:rgba(150,80,230,.28)}
.bw .bw-cut{opacity:.5;text-decoration:line-through}
.bw span[title]{cursor:help}
.bw .bw-now{border-right:.5em solid rgba(30,165,85,.8)}
.bw .bw-more{font-size:.8em;opacity:.7;border:1px dotted;padding:0 .3em;margin-left:.3em}
.bw .bw-forks{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(17em,100%),1fr));gap:.5em;margin:.4em 0;
align-items:start}
.bw .bw-branch{border:1px solid rgba(128,128,128,.4);border-radius:.4em;padding:.2em .6em .4em;min-width:0}
.bw .bw-won{border:2px solid rgba(30,165,85,.75)}
.bw .bw-lost,.bw .bw-stopped{border-style:dashed}
.bw .bw-failed{border-color:rgba(225,50,60,.8)}
.bw .bw-head{font-size:.8em;opacity:.7;border-bottom:1px solid rgba(128,128,128,.25);margin-bottom:.3em}
.bw .bw-error{border-left:.25em solid rgb(225,50,60);background:rgba(225,50,60,.13);padding:.2em .6em;margin:.4em 0;
white-space:pre-wrap;overflow-wrap:anywhere}
.bw .bw-error b{color:rgb(225,60,65)}
.bw .bw-error code{background:none;color:inherit}
.bw .bw-foot{font-size:.85em;margin-top:.6em;border-top:1px solid rgba(128,128,128,.25);padding-top:.4em}
.bw .bw-foot span{padding:0 .4em;margin-right:.5em}
.bw details.bw-long{display:inline}
.bw details.bw-long>summary{display:inline;cursor:pointer;opacity:.6;font-style:italic}
.bw details.bw-long[open]>summary{display:none}
.bw details.bw-long[open]::details-content{display:inline}
.bw .bw-foot summary{cursor:pointer}
.bw img{display:block;max-width:100%;max-height:16em}
</style>"""
LABELS = {
    "frame": "chat frame",
    "reused": "prompt, reused",
    "prompt": "prompt, new",
    "tool": "tool result",
    "select": "chosen",
    "lookup": "guessed from past text",
    "model": "guessed by a draft model",
    "cut": "cut off",
}
LONG = 4000  # characters of one span that are shown without asking
ENDS = 600  # characters of a longer one that are shown at each of its ends
PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
PICTURE_BYTES = 4 * 2**20  # larger ones are named instead of shown


def render(live: LiveProgram, branch: int) -> str:
    """A branch as far as it has come, without waiting."""
    shown = live_view.view(live, branch)
    rows = {span.row.node: span.row for span in shown.spans() if span.row is not None}
    foot = _foot(shown, [rows[node] for node in sorted(rows)])
    return f'<div class="bw">{STYLE}<div class="bw-body">{_branch(shown)}</div>{foot}</div>'


def _branch(view: View) -> str:
    parts: list[str] = []
    text: list[str] = []
    for part in view.parts:
        if isinstance(part, Span):
            text.append(_span(part))
            continue
        parts += _text(text)
        text = []
        columns = "".join(_column(child) for child in part)
        parts.append(f'<div class="bw-forks">{columns}</div>')
    parts += _text(text)
    if view.hidden:
        parts.append(f"<i>{view.hidden} branches below are not shown; show one of them by itself</i>")
    if view.trouble is not None:
        parts.append(_trouble(view.trouble))
    return "".join(parts)


def _text(spans: list[str]) -> list[str]:
    return ['<div class="bw-text">' + "".join(spans) + "</div>"] if spans else []


def _column(view: View) -> str:
    outcome = f" · {view.outcome}" if view.outcome else ""
    return (
        f'<div class="bw-branch bw-{view.outcome or "done"}">'
        f'<div class="bw-head">branch {view.branch}{outcome}</div>{_branch(view)}</div>'
    )


def _span(span: Span) -> str:
    if span.picture is not None:
        return _picture(span)
    running = span.row is not None and span.row.status == "running"
    classes = f"bw-{span.kind}" + (" bw-now" if running else "")
    title = "" if span.row is None else f' title="{escape(tooltip(span.row), quote=True)}"'
    more = ""
    if span.more:
        texts = "\n\n".join(f"sample {number}: {text}" for number, text in enumerate(span.more, start=2))
        more = f'<span class="bw-more" title="{escape(texts, quote=True)}">+{len(span.more)} more</span>'
    return f'<span class="{classes}"{title}>{_long(span.text)}</span>{more}'


def _long(text: str) -> str:
    """Escaped; of a very long one only the ends, and the middle on a click."""
    if len(text) <= LONG:
        return escape(text)
    first, middle, last = text[:ENDS], text[ENDS:-ENDS], text[-ENDS:]
    folded = (
        f'<details class="bw-long"><summary> [{len(middle):,} characters more] </summary>{escape(middle)}</details>'
    )
    return escape(first) + folded + escape(last)


def _picture(span: Span) -> str:
    assert span.picture is not None
    media, data = span.picture.media, span.picture.data
    if media in PICTURES and len(data) <= PICTURE_BYTES:
        return f'<img alt="image" src="data:{media};base64,{base64.b64encode(data).decode()}">'
    kind = type(span.picture).__name__.lower()
    return f'<span class="bw-frame">[{kind}: {escape(media)}, {len(data):,} bytes]</span>'


def tooltip(row: Row) -> str:
    """What is known of a gen or select, in a few lines."""
    title = row.kind + (f" {row.name!r}" if row.name else "")
    lines = [f"{title} · {row.status}" + (f" · {row.finish}" if row.finish else "")]
    if row.captures and row.name not in (", ".join(row.captures), None):
        lines.append("captures: " + ", ".join(row.captures))
    if row.prompt is not None:
        reused = "" if row.reused is None else f": {row.reused} reused, {row.new} new"
        lines.append(f"prompt: {row.prompt} tokens{reused}")
    if row.diverged_at is not None:
        text = f" {row.diverged_text!r}" if row.diverged_text else ""
        lines.append(f"first new token: #{row.diverged_at}{text}")
    if row.made is not None:
        rate = row.tokens_per_second
        speed = f", {rate:,.0f} tokens/s" if rate is not None else ""
        forced = f", {row.forced} forced" if row.forced else ""
        lines.append(f"generated: {row.made} tokens{forced}{speed}")
    if row.forwards and row.made:
        kept = ", ".join(f"{source} {kept} of {guessed}" for source, guessed, kept in row.drafts)
        guesses = f"; guesses kept: {kept}" if kept else ""
        lines.append(f"{row.made / row.forwards:.1f} tokens a forward{guesses}")
    times = (("queued", row.queued_s), ("first token", row.first_s), ("total", row.total_s))
    if told := ", ".join(f"{what} {seconds(time)}" for what, time in times if time is not None):
        lines.append(f"time: {told}")
    if row.constraint:
        loosely = f", approximately: {', '.join(row.approximations)}" if row.approximations else ""
        lines.append(f"constraint: {row.constraint}{loosely}")
    if row.preempted:
        lines.append(f"preempted {row.preempted} times")
    lines += [f"  {choice!r}: {score:.3f}" for choice, score in row.chosen[:20]]
    if row.source:
        lines.append(f"at {place(row.source)}")
    return "\n".join(lines)


def _trouble(trouble: Trouble) -> str:
    where = ""
    if trouble.source:
        line = f": <code>{escape(trouble.line)}</code>" if trouble.line else ""
        where = f'\n<span title="{escape(trouble.source, quote=True)}">at {escape(place(trouble.source))}</span>{line}'
    return f'<div class="bw-error"><b>{escape(trouble.code)}</b>: {escape(trouble.message)}{where}</div>'


def _foot(view: View, rows: list[Row]) -> str:
    kinds = {span.kind for span in view.spans()} - {"image"}
    legend = "".join(f'<span class="bw-{kind}">{LABELS.get(kind, kind)}</span>' for kind in KINDS if kind in kinds)
    table = ""
    if rows:
        table = f"<details><summary>{escape(explain.totals(rows))}</summary>{explain.table_html(rows)}</details>"
    notes = "".join(f"<div>note: {escape(note)}</div>" for note in view.notes)
    return f'<div class="bw-foot">{legend}{table}{notes}</div>'
