"""The trace of a program is what Perfetto opens: tracks, nested slices, arrows, times in microseconds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang.backend import Reply

Event = dict[str, Any]


def run(body: Any, script: Any = (), **backend: Any) -> bw.ProgramState:
    return bw.function(body).run(backend=bw.ScriptedBackend(script, **backend))


def traced(state: bw.ProgramState, folder: Path) -> list[Event]:
    path = folder / "trace.json"
    state.timeline(path)
    trace = json.loads(path.read_text(encoding="utf-8"))
    check(trace)
    return list(trace["traceEvents"])


def check(trace: dict[str, Any]) -> None:
    """What the trace-event format demands, and what makes a trace readable."""
    assert trace["displayTimeUnit"] == "ms"
    events = trace["traceEvents"]
    named = {event["tid"] for event in events if event["name"] == "thread_name"}
    timed = [event for event in events if event["ph"] != "M"]
    assert [event["ts"] for event in timed] == sorted(event["ts"] for event in timed)
    for event in timed:
        assert event["ph"] in ("X", "i", "s", "f")
        assert isinstance(event["ts"], int) and event["ts"] >= 0
        assert event["pid"] == 1 and event["tid"] in named
        assert event["ph"] != "X" or (isinstance(event["dur"], int) and event["dur"] > 0)
    for track in named:
        check_nesting([event for event in timed if event["ph"] == "X" and event["tid"] == track])
    leaving = {event["id"]: event for event in timed if event["ph"] == "s"}
    arriving = {event["id"]: event for event in timed if event["ph"] == "f"}
    assert leaving.keys() == arriving.keys()
    for number, event in leaving.items():
        assert event["ts"] <= arriving[number]["ts"]
        for end in (event, arriving[number]):  # an arrow is drawn only between slices
            assert any(slice["ts"] <= end["ts"] < slice["ts"] + slice["dur"] for slice in slices(timed, end["tid"] - 1))


def check_nesting(track: list[Event]) -> None:
    """Slices of one track lie inside each other or beside each other; outer ones come first."""
    around: list[int] = []  # ends of the slices that are open
    for event in track:
        while around and around[-1] <= event["ts"]:
            around.pop()
        end = event["ts"] + event["dur"]
        assert not around or end <= around[-1], event
        around.append(end)


def slices(events: list[Event], branch: int) -> list[Event]:
    return [event for event in events if event["ph"] == "X" and event["tid"] == branch + 1]


def names(events: list[Event], branch: int) -> list[str]:
    return [event["name"] for event in slices(events, branch)]


def timed(began: float, queued: float, first: float, total: float) -> Reply:
    meta = {"began_s": began, "queued_s": queued, "first_s": first, "total_s": total, "prompt_tokens": 5}
    return Reply(("text",), ({**meta, "cached_tokens": 3, "completion_tokens": 4},))


def test_a_gen_is_a_slice_of_its_phases(tmp_path: Path) -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x")

    async def script(prompt: str, call: Any) -> Reply:
        await asyncio.sleep(0.02)
        return timed(0.0, 0.001, 0.004, 0.010)

    events = traced(run(body, script), tmp_path)
    found = {event["name"]: event for event in slices(events, 0)}
    x = found["x"]
    assert x["dur"] == 10_000
    assert [(found[name]["ts"] - x["ts"], found[name]["dur"]) for name in ("queued", "prefill", "decode")] == [
        (0, 1_000),
        (1_000, 3_000),
        (4_000, 6_000),
    ]
    assert x["args"] == {
        "line": f"{__file__}:{body.__code__.co_firstlineno + 1}", "status": "done", "prompt tokens": 5, "reused": 3,
        "new": 2, "generated": 4, "tokens per second": 500.0,
    }  # fmt: skip


def test_times_of_the_backend_are_laid_on_the_clients_clock(tmp_path: Path) -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x") + bw.gen("y")

    async def script(prompt: str, call: Any) -> Reply:
        if call.name == "x":
            return timed(3600.0, 0, 0, 1e-6)  # the backend's clock began an hour earlier
        await asyncio.sleep(0.05)
        return timed(3600.04, 0, 0, 1e-6)

    state = run(body, script)
    state.wait_idle()
    x, y = (event for event in slices(traced(state, tmp_path), 0) if event["cat"] == "gen")
    assert x["ts"] < 60e6
    assert y["ts"] - x["ts"] == pytest.approx(40_000, abs=2)


def test_a_backend_that_began_before_the_branch_was_free_is_cut_to_it(tmp_path: Path) -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x") + bw.gen("y")

    async def script(prompt: str, call: Any) -> Reply:
        await asyncio.sleep(0.03)
        return timed(0.0, 0, 0, 0.03) if call.name == "x" else timed(0.01, 0.001, 0.004, 0.05)

    state = run(body, script)
    state.wait_idle()
    x, y = (event for event in slices(traced(state, tmp_path), 0) if event["cat"] == "gen")
    assert y["ts"] == x["ts"] + x["dur"]
    assert y["ts"] + y["dur"] - x["ts"] == pytest.approx(60_000, abs=2)


def test_without_a_backends_times_those_of_the_client_stand_in(tmp_path: Path) -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x") + bw.select("y", ["a", "b"])

    state = run(body, {"x": "one two three", "y": 1}, delay=0.01)
    state.wait_idle()
    events = traced(state, tmp_path)
    (x,) = (event for event in slices(events, 0) if event["name"] == "x")
    assert x["dur"] >= 30_000  # three words of 10 ms each
    assert x["ts"] + x["dur"] == pytest.approx(state.live.records[0].done_s * 1e6, abs=1)
    assert "decode" not in names(events, 0)


def test_every_branch_has_a_track_and_arrows_at_its_fork_and_join(tmp_path: Path) -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x")
        forks = s.fork(2)
        forks += bw.gen("y")
        forks.join()
        s += bw.gen("z")

    events = traced(run(body, lambda prompt, call: "a b", delay=0.001), tmp_path)
    titles = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert titles == ["branch 0", "branch 1", "branch 2"]
    assert [name for name in names(events, 0) if name in ("x", "fork", "join", "z")] == ["x", "fork", "join", "z"]
    assert [name for name in names(events, 2) if name not in ("waiting", "python")] == ["branch 2", "y"]
    arrows = [(event["name"], event["ph"], event["tid"] - 1) for event in events if event["ph"] in "sf"]
    assert sorted(arrows) == sorted(
        [("fork", "s", 0), ("fork", "f", 1), ("fork", "s", 0), ("fork", "f", 2)]
        + [("join", "s", 1), ("join", "f", 0), ("join", "s", 2), ("join", "f", 0)]
    )


def test_a_join_lasts_until_the_slowest_child_is_done(tmp_path: Path) -> None:
    def body(s: bw.ProgramState) -> None:
        forks = s.fork(2)
        forks[0] += bw.gen("short")
        forks[1] += bw.gen("long")
        forks.join()

    events = traced(run(body, {"short": "a", "long": "a b c d e f g h"}, delay=0.005), tmp_path)
    (join,) = (event for event in slices(events, 0) if event["name"] == "join")
    (long,) = (event for event in slices(events, 2) if event["name"] == "long")
    assert join["ts"] + join["dur"] == long["ts"] + long["dur"]


def test_a_race_does_not_wait_for_its_losers_in_the_trace(tmp_path: Path) -> None:
    def body(s: bw.ProgramState) -> None:
        forks = s.fork(2)
        forks[0] += bw.gen("quick")
        forks[1] += bw.gen("slow")
        forks.join(mode="first", k=1)

    async def script(prompt: str, call: Any) -> str:
        await asyncio.sleep(0 if call.name == "quick" else 60)
        return "text"

    events = traced(run(body, script), tmp_path)
    assert [event["name"] for event in events if event["ph"] == "i"] == ["slow: outrun"]
    (branch,) = (event for event in slices(events, 2) if event["name"] == "branch 2")
    assert branch["args"]["outcome"] == "outrun"


def test_failed_steps_are_marks(tmp_path: Path) -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("good") + bw.gen("bad") + bw.gen("after")

    events = traced(run(body, {"good": "x", "bad": ValueError("broken")}), tmp_path)
    assert [event["name"] for event in events if event["ph"] == "i"] == ["bad: executor_error", "after: branch_failed"]


def test_time_of_the_authors_own_code_is_shown(tmp_path: Path) -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x")
        assert s["x"] == "a"
        s += bw.gen("y")

    events = traced(run(body, {"x": "a", "y": "b"}), tmp_path)
    order = [name for name in names(events, 0) if name in ("x", "python", "y")]
    assert order[-3:] == ["x", "python", "y"]


def test_forks_of_forks_and_empty_branches_keep_the_format(tmp_path: Path) -> None:
    def body(s: bw.ProgramState) -> None:
        for outer in (group := s.fork(3)):
            inner = outer.fork(2)
            inner += bw.gen("x")
            inner.join("concate_and_append")
        group.join()
        s.fork(2)

    events = traced(run(body, lambda prompt, call: "a"), tmp_path)
    assert sum(event["name"] == "thread_name" for event in events) == 12


@pytest.fixture(scope="module")
def runtime() -> Iterator[bw.Runtime]:
    with bw.Runtime("sapling", threads=1) as started:
        yield started


def test_a_run_on_the_runtime_has_its_phases(runtime: bw.Runtime, tmp_path: Path) -> None:
    @bw.function
    def program(s: bw.ProgramState) -> None:
        s += bw.user("What is the capital of France?") + bw.assistant(bw.gen("capital", max_tokens=16, temperature=0))
        forks = s.fork(2)
        forks += bw.user("And its currency?") + bw.assistant(bw.gen("currency", max_tokens=16, temperature=0))
        forks.join()
        s += bw.user("Is this review positive or negative?\nThe movie was great.")
        s += bw.assistant("Sentiment:" + bw.select("mood", choices=[" positive", " negative"]))

    events = traced(program.run(backend=runtime), tmp_path)
    assert {"capital", "prefill", "decode", "fork", "join", "mood", "score"} <= set(names(events, 0))
    for branch in (1, 2):
        assert {"currency", "decode"} <= set(names(events, branch))
    title = next(event["args"]["name"] for event in events if event["name"] == "process_name")
    assert title == "program on sapling"
