"""`branchwork demo`: one program with turns, gen, select and fork on its own runtime, and what the radix tree saved.

Knows: the language's public surface, the terminal. Must not know: runtime internals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

import branchwork as bw


@bw.function
def tour(s: Any, country: str, review: str, tips: int = 3) -> Any:
    """A chat about a country, a form filled in, a judged review, and tips that are expanded side by side."""
    s += bw.user(f"What is the capital of {country}?")
    s += bw.assistant(bw.gen("capital", max_tokens=24, temperature=0))
    s += bw.user("And its currency?")
    s += bw.assistant(bw.gen("currency", max_tokens=24, temperature=0))

    sentence = "Our neighbor Maria Lopez is 34 years old and lives in Lima."
    s += bw.user(f"Sentence: {sentence}\nWrite the name, age and city as a JSON object.")
    form = bw.turn(
        '{"name": "', bw.gen("name", regex="[A-Za-z ]+"), '", "age": ', bw.gen("age", type=int),
        ', "city": "', bw.gen("city", regex="[A-Za-z ]+"), '"}', name="form", temperature=0,
    )  # fmt: skip
    s += bw.assistant(form)

    s += bw.user(f"Is this review positive or negative?\n{review}")
    s += bw.assistant("Sentiment:" + bw.select("sentiment", choices=[" positive", " negative"]))

    s += bw.user(f"Give {tips} tips for staying healthy.")
    s += bw.assistant(bw.gen("tips", max_tokens=96, temperature=0))
    forks = s.fork(tips)
    for number, branch in enumerate(forks, start=1):
        branch += bw.user(f"Now, expand tip {number} into a paragraph.")
        branch += bw.assistant(bw.gen("detail", max_tokens=96, temperature=0))
    return forks


def show(console: Console, model: str, start: Callable[[], bw.Runtime]) -> None:
    """Start a runtime, run the tour, print the program as it went and a table of its generations."""
    console.print("[bold]branchwork demo[/]: starting a runtime process with [cyan]" + model + "[/] ...")
    begun = time.perf_counter()
    with start() as runtime:
        ready = time.perf_counter()
        state = tour.run(country="France", review="The movie was great.", backend=runtime)
        state.sync()
        done = time.perf_counter()
        state.show(console)
        console.print(_reuse(state))
        stats = runtime.stats()
    console.print(
        f"runtime ready in {ready - begun:.1f} s, program ran in {done - ready:.2f} s; "
        f"{stats['computed_tokens']} tokens computed, {stats['reused_tokens']} reused from the radix tree"
    )


def _reuse(state: Any) -> Table:
    table = Table(title="what each step computed", title_justify="left")
    for title in ("variable", "prompt tokens", "reused", "new", "generated", "forced"):
        table.add_column(title, justify="left" if title == "variable" else "right")
    for name in ("capital", "currency", "form", "sentiment", "tips"):
        _row(table, name, state.meta(name))
    for number, branch in enumerate(state.ret_value, start=1):
        _row(table, f"detail (branch {number})", branch.meta("detail"))
    return table


def _row(table: Table, name: str, meta: Mapping[str, Any]) -> None:
    prompt, reused = meta["prompt_tokens"], meta["cached_tokens"]
    generated = str(meta.get("completion_tokens", "scored"))
    forced = meta["constraint"]["forced_tokens"] if "constraint" in meta else 0
    table.add_row(name, str(prompt), str(reused), str(prompt - reused), generated, str(forced))
