"""What is shown of a program: kinds of text, forks, outcomes and errors, in HTML and in a terminal, live or not."""

from __future__ import annotations

import asyncio
import io
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

import branchwork as bw
from branchwork.lang import display, html, live_view
from branchwork.lang.backend import Call, Chunk, LocalBackend, Reply
from branchwork.lang.ir import Image, RoleBegin
from branchwork.lang.live_view import Span, View
from branchwork.lang.protocol import ChatFrames, Frame
from branchwork.lang.transcript import Branch

CHATML = ChatFrames(roles={r: Frame(f"<|{r}|>", "<|end|>\n") for r in ("system", "user", "assistant", "tool")})


def run(body: Any, script: Any = (), **backend: Any) -> bw.ProgramState:
    state = bw.function(body).run(backend=bw.ScriptedBackend(script, **backend))
    state.wait_idle()
    return state


def seen(state: bw.ProgramState, branch: int = 0) -> View:
    return live_view.view(state.live, branch)


def kinds(view: View) -> list[tuple[str, str]]:
    return [(part.kind, part.text) for part in view.parts if isinstance(part, Span)]


def columns(view: View) -> list[View]:
    return [child for part in view.parts if not isinstance(part, Span) for child in part]


def answer(text: str, **meta: Any) -> Reply:
    return Reply((text,), ({"prompt_tokens": 9, "cached_tokens": 4, "completion_tokens": 3, **meta},))


class _Tags(HTMLParser):
    """Tags of a page, and whether every one was closed by its own end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.titles: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> _Tags:
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def printed(state: bw.ProgramState, width: int = 100, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    state.show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- what is shown


def test_every_piece_of_text_has_its_kind() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.user("Who?") + bw.assistant("I am " + bw.gen("x") + bw.select("y", [".", "!"]))

    assert kinds(seen(run(body, {"x": "me", "y": 1}, frames=CHATML))) == [
        ("frame", "<|user|>"),
        ("prompt", "Who?"),
        ("frame", "<|end|>\n"),
        ("frame", "<|assistant|>"),
        ("prompt", "I am "),
        ("generated", "me"),
        ("select", "!"),
        ("frame", "<|end|>\n"),
    ]


def test_prompt_text_that_was_in_the_tree_is_told_from_new_text() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "0123456789"
        s += bw.gen("x")
        s += "abcdef"
        s += bw.gen("y")

    state = run(body, {"x": answer("XX", reused_chars=4), "y": answer("Y", reused_chars=15)})
    assert kinds(seen(state)) == [
        ("reused", "0123"),
        ("prompt", "456789"),
        ("generated", "XX"),
        ("reused", "abc"),
        ("prompt", "def"),
        ("generated", "Y"),
    ]


def test_text_before_a_fork_is_new_when_any_branch_had_to_compute_it() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "0123456789"
        for child in s.fork(2):
            child += "?" + bw.gen("x")

    script = {"x": [answer("A", reused_chars=2), answer("B", reused_chars=10)]}
    view = seen(run(body, script))
    assert kinds(view) == [("reused", "01"), ("prompt", "23456789")]
    assert [kinds(child)[0] for child in columns(view)] == [("prompt", "?"), ("prompt", "?")]


def test_a_child_shows_how_much_of_its_own_text_was_reused() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "0123"
        for child in s.fork(1):
            child += "abcd" + bw.gen("x")

    (child,) = columns(seen(run(body, {"x": answer("A", reused_chars=6)})))
    assert kinds(child) == [("reused", "ab"), ("prompt", "cd"), ("generated", "A")]


def test_forced_text_is_told_from_drawn_text() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x")

    state = run(body, {"x": answer('{"a": 12}', forced=[[0, 6], [8, 99]])})
    assert kinds(seen(state)) == [("forced", '{"a": '), ("generated", "12"), ("forced", "}")]


def test_guessed_text_is_shown_with_its_source_and_forced_text_as_forced() -> None:
    def body(s: Any) -> None:
        s += "a" + bw.gen("x")

    meta = {"accepted": [(0, 2, "lookup"), (3, 4, "model"), (5, 6, "grammar"), (6, 8, "lookup")], "forced": [(5, 7)]}
    figures = {"forwards": 4, "completion_tokens": 8, "drafts": {"lookup": {"guessed": 6, "kept": 4}}}
    state = run(body, {"x": answer("01234567", **meta, **figures)})
    shown = [("prompt", "a"), ("lookup", "01"), ("generated", "2"), ("model", "3"), ("generated", "4")]
    assert kinds(seen(state)) == [*shown, ("forced", "56"), ("generated", "7")]
    assert "2.0 tokens a forward; guesses kept: lookup 4 of 6" in state._repr_html_()


def test_results_of_tools_are_told_from_prompt_text() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.user("ask")
        s.live.lay(0, (RoleBegin("tool"),), "here:1")
        s += "22 degrees"

    assert ("tool", "22 degrees") in kinds(seen(run(body, frames=CHATML)))


def test_other_samples_go_with_the_text_of_the_first() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x", n=3)

    (span,) = (span for span in seen(run(body, {"x": ("a", "b", "c")})).spans())
    assert (span.text, span.more) == ("a", ("b", "c"))


def test_forks_nest_where_they_left_their_branch() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "before"
        for outer in s.fork(2):
            outer += "outer"
            for inner in outer.fork(2):
                inner += bw.gen("x")
        s += "after"

    view = seen(run(body, lambda prompt, call: "leaf"))
    assert [type(part).__name__ for part in view.parts] == ["Span", "tuple", "Span"]
    assert [len(columns(child)) for child in columns(view)] == [2, 2]
    assert [span.text for span in view.spans()].count("leaf") == 4


def test_the_winners_and_losers_of_a_race_are_marked() -> None:
    def body(s: bw.ProgramState) -> None:
        forks = s.fork(3)
        forks += bw.gen("x")
        forks.join(mode="majority", name="x")

    view = seen(run(body, {"x": ["yes", "no", "yes"]}))
    assert [child.outcome for child in columns(view)] == ["won", "lost", "won"]


def test_a_cancelled_branch_shows_what_it_had_written() -> None:
    wrote, go_on = threading.Event(), asyncio.Event()

    async def execute(call: Call, branch: Branch, emit: Any) -> Reply:
        emit(Chunk("half a sent"))
        wrote.set()
        await go_on.wait()
        raise AssertionError("it was cancelled")

    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x")
        wrote.wait(10)
        s.cancel()

    state = bw.function(body).stream(backend=LocalBackend(execute, model="slow"))
    state.wait_idle()
    view = seen(state)
    assert (view.outcome, view.trouble) == ("stopped", None)
    assert kinds(view) == [("cut", "half a sent")]


def test_an_error_is_shown_with_the_line_that_laid_its_node() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "text"
        s += bw.gen("x")  # the one that fails

    view = seen(run(body, {"x": ValueError("broken")}))
    assert view.trouble is not None and view.outcome == "failed"
    assert "broken" in view.trouble.message
    assert view.trouble.line == 's += bw.gen("x")  # the one that fails'
    assert view.trouble.source.startswith(f"{__file__}:")


def test_what_the_function_raised_is_shown() -> None:
    states: list[bw.ProgramState] = []

    def body(s: bw.ProgramState) -> None:
        states.append(s)
        s += "text"
        raise KeyError("mine")  # raised here

    with pytest.raises(KeyError):
        run(body)
    trouble = seen(states[0]).trouble
    assert trouble is not None
    assert (trouble.code, trouble.line) == ("KeyError", 'raise KeyError("mine")  # raised here')


def test_forks_beyond_the_depth_shown_are_counted() -> None:
    def body(s: bw.ProgramState) -> None:
        for _ in range(live_view.DEPTH + 5):
            s += "."
            s = s.fork(1)[0]

    state = run(body)
    view, depth = seen(state), 0
    while columns(view):
        view, depth = columns(view)[0], depth + 1
    assert (depth, view.hidden) == (live_view.DEPTH, 1)
    assert "not shown" in html.render(state.live, 0)


# --- HTML


def test_everything_in_the_html_is_escaped() -> None:
    evil = "<script>alert('x')</script>\" onmouseover=\"x"

    def body(s: bw.ProgramState) -> None:
        s += evil
        s += bw.gen(evil) + bw.select("y", [evil, "b"])
        s += bw.gen("z", n=2)
        s += bw.gen("bad")

    def script(prompt: str, call: Call) -> Any:
        if call.name == "bad":
            return ValueError(evil)
        return 0 if call.kind == "select" else answer(evil, diverged_at=1, diverged_text=evil, finish_reason=evil)

    state = run(body, lambda prompt, call: (evil, evil) if call.name == "z" else script(prompt, call))
    for page in (state._repr_html_(), state.explain()._repr_html_()):
        tags = parsed(page)
        assert "script" not in tags.seen
        assert evil in tags.text


def test_the_html_needs_nothing_from_elsewhere() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "a" + bw.gen("x")

    page = run(body, {"x": "b"})._repr_html_()
    assert not re.search(r"https?:|src=|@import|url\(|<link|<script", page)


def test_hovering_tells_what_a_gen_cost() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "prompt" + bw.gen("x")

    reply = answer(
        "A B C", finish_reason="stop", diverged_at=4, diverged_text=" pt", queued_s=0.002, first_s=0.01, total_s=0.05,
        constraint={"backend": "dfa", "forced_tokens": 2, "approximations": ["maxLength"]},
    )  # fmt: skip
    (title,) = set(parsed(run(body, {"x": reply})._repr_html_()).titles)
    for told in ("gen 'x' · done · stop", "9 tokens: 4 reused, 5 new", "#4 ' pt'", "3 tokens, 2 forced, 50 tokens/s",
                 "queued 2.0 ms, first token 10.0 ms, total 50.0 ms", "dfa, approximately: maxLength"):  # fmt: skip
        assert told in title
    assert f"test_display.py:{body.__code__.co_firstlineno + 1}" in title


def test_a_select_tells_the_scores_of_its_choices() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.select("x", ["no", "yes"])

    reply = Reply(("yes",), ({"choice": "yes", "choices": ["no", "yes"], "normalized_prompt_logprobs": [-2.5, -0.5]},))
    (title,) = parsed(run(body, {"x": reply})._repr_html_()).titles
    assert "'no': -2.500" in title and "'yes': -0.500" in title


def test_a_very_long_text_is_folded_but_whole() -> None:
    text = "".join(f"{number:07} " for number in range(20_000))

    def body(s: bw.ProgramState) -> None:
        s += text

    tags = parsed(run(body)._repr_html_())
    assert "details" in tags.seen and "158,800 characters more" in tags.text
    assert tags.text.replace(" [158,800 characters more] ", "").find(text) >= 0


def test_a_picture_is_shown_and_an_unknown_one_is_named() -> None:
    class Sees(bw.ScriptedBackend):
        def accept(self, node: Any) -> None:
            return None

    def body(s: bw.ProgramState) -> None:
        s += Image(b"\x89PNG", "image/png") + Image(b"<svg onload=x>", "image/svg+xml")

    state = bw.function(body).run(backend=Sees())
    state.wait_idle()
    page = state._repr_html_()
    assert 'src="data:image/png;base64,iVBORw=="' in page
    assert "[image: image/svg+xml, 14 bytes]" in page and "<svg" not in page


def test_a_running_program_is_shown_as_far_as_it_has_come() -> None:
    wrote, go_on = threading.Event(), threading.Event()

    async def execute(call: Call, branch: Branch, emit: Any) -> Reply:
        emit(Chunk("Once upon "))
        wrote.set()
        await asyncio.get_running_loop().run_in_executor(None, go_on.wait, 10)
        return Reply(("Once upon a time",))

    def body(s: bw.ProgramState) -> None:
        s += "Tell: " + bw.gen("x") + " The end."

    state = bw.function(body).stream(backend=LocalBackend(execute, model="slow"))
    assert wrote.wait(10)
    state.live.wait(lambda: bool(state.live.records) and bool(state.live.records[1].chunks))
    page = state._repr_html_()
    assert "Once upon " in page and "bw-now" in page and "The end." not in page
    go_on.set()
    state.sync()
    page = state._repr_html_()
    assert "Once upon a time" in page and 'class="bw-generated bw-now"' not in page and "The end." in page


# --- terminal


def test_a_file_gets_the_program_once_and_without_colours() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "[b]Q:[/b] " + bw.gen("x")

    shown = printed(run(body, {"x": "[red]A"}))
    assert shown.startswith("[b]Q:[/b] [red]A\n")
    assert "\x1b" not in shown


def test_forks_stand_side_by_side_where_there_is_room() -> None:
    def body(s: bw.ProgramState) -> None:
        for number, child in enumerate(s.fork(3)):
            child += f"<{number}>"

    wide, narrow = printed(run(body), 120).splitlines(), printed(run(body), 50).splitlines()
    assert any(all(f"<{number}>" in line for number in range(3)) for line in wide)
    assert not any("<0>" in line and "<1>" in line for line in narrow)


class Watched(io.StringIO):
    """A terminal's other end: `seen` once something has been written to it."""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self.wanted, self.seen = wanted, threading.Event()

    def write(self, text: str) -> int:
        if self.wanted in text:
            self.seen.set()
        return super().write(text)


def streamed(seen: threading.Event) -> bw.ProgramState:
    """A program under way: its gen goes on from word0 to word9 when `seen` is set."""

    async def execute(call: Call, branch: Branch, emit: Any) -> Reply:
        emit(Chunk(" word0"))
        assert await asyncio.get_running_loop().run_in_executor(None, seen.wait, 10)
        return Reply((" word0 ... word9",))

    def body(s: bw.ProgramState) -> None:
        s += "Count:" + bw.gen("x")

    return bw.function(body).stream(backend=LocalBackend(execute, model="slow"))


def test_a_terminal_is_kept_up_to_date_and_ends_with_the_whole_program() -> None:
    file = Watched("word0")
    console = Console(file=file, width=60, height=10, force_terminal=True, _environ={"TERM": "xterm"})
    state = streamed(file.seen)
    state.show(console)
    state.sync()  # the gen did not have to wait in vain
    shown = file.getvalue()
    assert "word9" in shown.rpartition("Count:")[2]
    assert "\x1b[2K" in shown  # the first picture was wiped off for the next


def test_a_program_that_is_taller_than_the_terminal_shows_its_end_while_it_runs() -> None:
    file = Watched("last line")
    go_on = threading.Event()

    def body(s: bw.ProgramState) -> None:
        s += "first line\n" + "line\n" * 50 + "last line"
        go_on.wait(10)

    console = Console(file=file, width=60, height=10, force_terminal=True, _environ={"TERM": "xterm"})
    state = bw.function(body).stream(backend=bw.ScriptedBackend())
    shower = threading.Thread(target=state.show, args=(console,))
    shower.start()
    assert file.seen.wait(10)
    assert "first line" not in file.getvalue()
    go_on.set()
    shower.join(10)
    assert "first line" in file.getvalue()


def test_a_failed_program_is_printed_with_its_error() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "text" + bw.gen("x")  # fails

    shown = " ".join(printed(run(body, {"x": ValueError("broken")}), 200).split())
    assert "text executor_error: gen 'x' failed: ValueError: broken at test_display.py:" in shown
    assert "# fails" in shown


# --- notebooks


class FakeNotebook:
    """Stands in for IPython.display: what was displayed, and each update of it."""

    def __init__(self) -> None:
        self.pages: list[str] = []
        self.begun, self.done = threading.Event(), threading.Event()

    def display(self, shown: Any, display_id: bool) -> FakeNotebook:
        assert display_id
        self.pages.append(shown._repr_html_())
        return self

    def update(self, shown: Any) -> None:
        self.pages.append(shown._repr_html_())
        if "word0" in self.pages[-1]:
            self.begun.set()
        if "word9" in self.pages[-1]:
            self.done.set()


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNotebook]:
    fake = FakeNotebook()
    monkeypatch.setattr(display, "_notebook", lambda: fake)
    yield fake


def test_in_a_notebook_one_output_grows_until_the_program_is_done(notebook: FakeNotebook) -> None:
    state = streamed(notebook.begun)
    state.show()
    assert state["x"] == " word0 ... word9"
    assert any("word0" in page and "word9" not in page for page in notebook.pages)
    assert "word9" in notebook.pages[-1]


def test_a_state_that_is_a_cells_value_grows_without_holding_up_the_cell(notebook: FakeNotebook) -> None:
    state = streamed(notebook.begun)
    display.appear(state.live, 0, "plain")
    assert "word9" not in notebook.pages[0]
    assert notebook.done.wait(10)


def test_a_finished_state_that_is_a_cells_value_is_shown_once(notebook: FakeNotebook) -> None:
    def body(s: bw.ProgramState) -> None:
        s += "a" + bw.gen("x")

    display.appear(run(body, {"x": "b"}).live, 0, "plain")
    assert len(notebook.pages) == 1


def test_outside_a_notebook_a_cells_value_is_its_repr(capsys: pytest.CaptureFixture[str]) -> None:
    def body(s: bw.ProgramState) -> None:
        s += "a"

    display.appear(run(body).live, 0, "plain")
    assert capsys.readouterr().out == "plain\n"


def test_showing_does_not_load_ipython() -> None:
    code = (
        "import sys, io, branchwork as bw; from rich.console import Console\n"
        "s = bw.function(lambda s: s.user('x')).run(backend=bw.ScriptedBackend())\n"
        "s.show(); s._repr_html_(); str(s.explain()); print('IPython' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("False\n")
