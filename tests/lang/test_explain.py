"""What each gen and select of a program cost, as rows and as a table; blank where a backend does not say."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

import branchwork as bw
from branchwork.lang.backend import Reply
from branchwork.lang.explain import Row, place, rows


def run(body: Any, script: Any = (), **backend: Any) -> bw.ProgramState:
    return bw.function(body).run(backend=bw.ScriptedBackend(script, **backend))


def test_rows_are_in_the_order_of_laying_over_all_branches() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("first")
        for child in s.fork(2):
            child += bw.gen("inner") + bw.select("pick", ["a", "b"])
        s += bw.gen("last")

    explanation = run(body, lambda prompt, call: 0 if call.kind == "select" else "text").explain()
    assert [(row.title, row.kind) for row in explanation] == [
        ("first", "gen"),
        ("inner (branch 1)", "gen"),
        ("pick (branch 1)", "select"),
        ("inner (branch 2)", "gen"),
        ("pick (branch 2)", "select"),
        ("last", "gen"),
    ]
    assert {row.status for row in explanation.rows} == {"done"}


def test_a_row_has_the_figures_of_its_backend() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x")

    meta = {
        "prompt_tokens": 20, "cached_tokens": 15, "computed_tokens": 11, "completion_tokens": 7, "diverged_at": 15,
        "diverged_text": " Peru", "queued_s": 0.001, "first_s": 0.01, "total_s": 0.04, "finish_reason": "length",
        "constraint": {"backend": "dfa", "forced_tokens": 3, "approximations": []},
    }  # fmt: skip
    state = run(body, {"x": Reply(("text",), (meta,))})
    (row,) = state.explain().rows
    assert (row.prompt, row.reused, row.new, row.computed, row.made, row.forced) == (20, 15, 5, 11, 7, 3)
    assert (row.diverged_at, row.diverged_text, row.finish, row.constraint) == (15, " Peru", "length", "dfa")
    assert row.tokens_per_second == pytest.approx(200)
    assert row.source == f"{__file__}:{body.__code__.co_firstlineno + 1}"


def test_a_prompt_that_was_all_there_did_not_diverge() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x")

    meta = {"prompt_tokens": 20, "cached_tokens": 19, "diverged_at": 20, "diverged_text": ""}
    (row,) = run(body, {"x": Reply(("text",), (meta,))}).explain().rows
    assert (row.reused, row.diverged_at, row.diverged_text) == (19, None, None)


def test_what_a_backend_does_not_say_is_blank() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x") + bw.select("y", ["a", "b"])

    explanation = run(body, {"x": Reply(("text",)), "y": 0}).explain()
    assert [(row.prompt, row.reused, row.new, row.total_s, row.tokens_per_second) for row in explanation] == [
        (None, None, None, None, None)
    ] * 2
    assert "None" not in str(explanation) and "None" not in explanation._repr_html_()
    assert str(explanation).splitlines()[-1].startswith("2 steps")


def test_samples_are_one_row_with_all_their_tokens() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x", n=3)

    (row,) = run(body, {"x": ("a b", "c", "d e f")}).explain().rows
    assert (row.samples, row.made) == (3, 6)


def test_failed_and_unreached_steps_say_so() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("good")
        s += bw.gen("bad")
        s += bw.gen("after")

    explanation = run(body, {"good": "x", "bad": ValueError("broken"), "after": "y"}).explain()
    assert [row.status for row in explanation] == ["done", "executor_error", "branch_failed"]
    assert "executor_error" in str(explanation)


def test_the_losers_of_a_race_are_named() -> None:
    def body(s: bw.ProgramState) -> None:
        forks = s.fork(2)
        forks[0] += bw.gen("x")
        forks[1] += "waits for " + bw.gen("y") + bw.gen("z")
        forks.join(mode="first", k=1)

    async def slow(prompt: str, call: Any) -> str:
        await asyncio.sleep(0 if call.name == "x" else 60)
        return "text"

    assert [row.status for row in run(body, slow).explain()] == ["done", "outrun", "outrun"]


def test_rows_can_be_had_while_the_program_runs() -> None:
    async def never(prompt: str, call: Any) -> str:
        await asyncio.sleep(3600)
        return ""

    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x") + bw.gen("y")

    state = run(body, never)
    assert [row.status for row in rows(state.live)] == ["running", "waiting"]
    state.cancel()
    assert [row.status for row in state.explain()] == ["cancelled", "cancelled"]


def test_the_columns_of_the_table_stand_under_each_other() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x") + bw.gen("a_longer_name")

    head, first, second, total = str(run(body, lambda prompt, call: "a b c").explain()).splitlines()
    made = head.index("made") + len("made")
    assert [line[made - 1] for line in (first, second)] == ["3", "3"]
    assert total == "2 steps, 6 generated"


def test_rich_prints_the_table_and_html_has_one_line_per_row() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("[red]x")

    explanation = run(body, lambda prompt, call: "a").explain()
    console = Console(file=io.StringIO(), width=160)
    console.print(explanation)
    assert isinstance(console.file, io.StringIO)
    assert "[red]x" in console.file.getvalue()
    assert explanation._repr_html_().count("<tr>") == 2


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/a/b/program.py:12", "program.py:12"),
        ("/tmp/ipykernel_81/3405.py:2", "cell:2"),
        ("<ipython-input-1-ab>:2", "cell:2"),
        ("", ""),
    ],
)
def test_a_line_is_shown_without_its_folder(source: str, shown: str) -> None:
    assert place(source) == shown


# --- against the runtime


@pytest.fixture(scope="module")
def runtime() -> Iterator[bw.Runtime]:
    with bw.Runtime("sapling", threads=1) as started:
        yield started


@bw.function
def chat(s: bw.ProgramState, country: str) -> None:
    s += bw.user(f"What is the capital of {country}?")
    s += bw.assistant(bw.gen("capital", max_tokens=16, temperature=0))
    s += bw.user("Is this review positive or negative?\nThe movie was great.")
    s += bw.assistant("Sentiment:" + bw.select("mood", choices=[" positive", " negative"]))
    s += bw.user("Sentence: Maria Lopez is 34 years old.\nWrite the name and age as a JSON object.")
    s += bw.assistant(bw.turn('{"name": "', bw.gen("name", regex="[A-Za-z ]+"), '"}'))


def by_name(state: bw.ProgramState) -> dict[str, Row]:
    return {row.name or "": row for row in state.explain()}


def test_a_second_run_says_where_it_first_differs(runtime: bw.Runtime) -> None:
    chat.run("France", backend=runtime).sync()
    again, other = (by_name(chat.run(country, backend=runtime)) for country in ("France", "Peru"))
    row = again["capital"]
    assert row.prompt is not None and row.reused == row.prompt - 1 and row.diverged_at is None
    row = other["capital"]
    assert row.diverged_at is not None and row.diverged_at == row.reused
    assert "Peru".startswith((row.diverged_text or "?").strip())


def test_the_runtime_says_everything_that_is_shown(runtime: bw.Runtime) -> None:
    state = chat.run("Spain", backend=runtime)
    for row in state.explain():
        assert row.prompt is not None and row.reused is not None and row.new == row.prompt - row.reused
        assert row.queued_s is not None and row.first_s is not None and row.total_s is not None
        assert 0 <= row.queued_s <= row.first_s <= row.total_s
        assert row.kind == "select" or row.made
    rows = by_name(state)
    assert rows["mood"].chosen and rows["mood"].finish == state["mood"]
    form = rows["name"]
    assert form.kind == "turn" and form.forced and form.constraint
    shown = state._repr_html_()
    assert 'class="bw-forced"' in shown and 'class="bw-generated"' in shown and 'class="bw-select"' in shown
