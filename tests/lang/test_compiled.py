"""Compiled programs: one message a run, the same results as the body, passes that change no meaning."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import branchwork as bw
from branchwork.lang import ir, passes
from branchwork.lang.live import LiveProgram
from branchwork.lang.protocol import Budget
from branchwork.lang.trace import Item, trace


def answer(prompt: str, call: Any) -> Any:
    """An answer that tells the prompt apart."""
    mark = sum(map(ord, prompt)) % 97
    return mark % len(call.choices) if call.kind == "select" else f"({call.name}{mark})"


# --- random programs

NAMES = st.sampled_from("abc")
LITERALS = st.text("xy ", max_size=3)


def operations(depth: int) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    simple = st.one_of(
        st.tuples(st.just("text"), LITERALS),
        st.tuples(st.just("argument"), LITERALS),
        st.tuples(st.just("gen"), NAMES),
        st.tuples(st.just("select"), NAMES),
        st.tuples(st.just("place"), NAMES),
        st.tuples(st.just("set"), NAMES),
        st.tuples(st.just("user"), LITERALS),
    )
    if depth == 0:
        return st.lists(simple, max_size=4)
    inner = operations(depth - 1)
    nested = st.one_of(
        st.tuples(st.just("scope"), NAMES, inner),
        st.tuples(st.just("copy"), inner),
        st.tuples(
            st.just("fork"), st.lists(inner, min_size=1, max_size=2), st.sampled_from(["gather", "append", "no"])
        ),
    )
    return st.lists(st.one_of(simple, simple, nested), max_size=5)


def perform(s: Any, x: str, ops: Sequence[tuple[Any, ...]], texts: set[str]) -> None:
    """texts: names of variables that hold one text (joined ones hold lists)."""
    for op, *of in ops:
        if op == "text":
            s += of[0]
        elif op == "argument":
            s += f"{of[0]}{x}"
        elif op == "gen":
            s += bw.gen(of[0])
            texts.add(of[0])
        elif op == "select":
            s += bw.select(of[0], [f"1{x}", "2", "3" + x + "!"])
            texts.add(of[0])
        elif op == "place" and of[0] in texts:
            s += "<" + s[of[0]] + ">"
        elif op == "set" and texts:
            first = min(texts)
            s[of[0]] = f"{s[first]}+{x}"
            texts.add(of[0])
        elif op == "user":
            s += bw.user(of[0] + x) + bw.assistant("ok")
        elif op == "scope":
            with s.var_scope(of[0]):
                perform(s, x, of[1], texts)
            texts.add(of[0])
        elif op == "copy":
            with s.copy() as other:
                perform(other, x, of[0], set(texts))
        elif op == "fork":
            forks = s.fork(len(of[0]))
            for child, inner in zip(forks, of[0]):
                perform(child, x, inner, set(texts))
            if of[1] != "no":
                forks.join("gather_variable" if of[1] == "gather" else "concate_and_append")


def facts(state: Any) -> dict[str, Any]:
    state.wait_idle()
    names = state.live.machine.lineage.names(0)
    return {"text": state.text(), "messages": state.messages()} | {name: state[name] for name in sorted(names)}


@settings(max_examples=60, deadline=None)
@given(ops=operations(2), x=st.text("xyz", max_size=2))
def test_a_random_program_means_the_same_compiled(ops: list[tuple[Any, ...]], x: str) -> None:
    @bw.function
    def body(s: Any, x: str) -> None:
        perform(s, x, ops, set())

    compiled = body.compile()
    assert compiled.notes == ()
    backend = bw.ScriptedBackend(answer)
    assert facts(compiled.run(x, backend=backend)) == facts(body.run(x, backend=backend))


@settings(max_examples=40, deadline=None)
@given(ops=operations(2), x=st.text("xyz", max_size=2))
@pytest.mark.parametrize("change", [passes.without_empty_text, passes.with_joined_literals])
def test_a_pass_changes_no_meaning(change: Any, ops: list[tuple[Any, ...]], x: str) -> None:
    def body(s: Any, x: str) -> None:
        perform(s, x, ops, set())

    traced = trace(body, lambda symbol: ((symbol("x"),), {}), {})
    assert traced.note == ""
    changed = change(traced.items)
    assert len(changed) <= len(traced.items)
    assert executed(changed, x, traced.branches) == executed(traced.items, x, traced.branches)


@settings(max_examples=60, deadline=None)
@given(ops=operations(2), x=st.text("xyz", max_size=2), keep=st.sets(NAMES))
def test_dropping_what_is_unread_keeps_every_variable_asked_for(
    ops: list[tuple[Any, ...]], x: str, keep: set[str]
) -> None:
    def body(s: Any, x: str) -> None:
        perform(s, x, ops, set())

    traced = trace(body, lambda symbol: ((symbol("x"),), {}), {})
    assert traced.note == ""
    before = executed(traced.items, x, traced.branches)
    after = executed(passes.without_unread(traced.items, keep), x, traced.branches)
    assert {name: before.get(name) for name in keep} == {name: after.get(name) for name in keep}


def executed(items: Sequence[Item], x: str, branches: int) -> dict[str, Any]:
    template, _ = passes.assembled(items, ["x"], branches)
    live = LiveProgram(bw.ScriptedBackend(answer))
    live.start(template, [x])
    live.end()
    live.wait(lambda: live.machine.idle)
    assert all(track.branch.failure is None for track in live.machine.lineage.tracks.values())
    found = {branch: track.branch for branch, track in live.machine.lineage.tracks.items()}
    texts = {str(branch): one.text for branch, one in found.items()}
    return texts | dict(found[0].variables) | {"messages": found[0].messages()}


# --- passes, each on what it is for


def items_of(*nodes: tuple[int, Any]) -> list[Item]:
    return [Item(number, branch, node, "here:1") for number, (branch, node) in enumerate(nodes)]


def test_joined_literals_stay_apart_where_a_join_looks_between_them() -> None:
    items = items_of(
        (0, ir.Fork((1,))),
        (1, ir.Text("a")),
        (1, ir.Fill(("b", 0))),
        (0, ir.Join((1,), "concate_and_append")),
        (1, ir.Text("c")),
        (0, ir.Text("d")),
    )
    joined = passes.with_joined_literals(items)
    assert [item.node for item in joined if item.branch == 1] == [ir.Fill(("ab", 0)), ir.Text("c")]


def test_only_gens_that_end_a_branch_are_dropped() -> None:
    params = bw.SamplingParams()
    items = items_of(
        (0, ir.Gen("early", params=params)),
        (0, ir.Text("then")),
        (0, ir.Gen("kept", params=params)),
        (0, ir.RoleEnd("assistant")),
        (0, ir.Gen("last", params=params)),
        (0, ir.RoleEnd("assistant")),
    )
    names = [item.node.name for item in passes.without_unread(items, {"kept"}) if isinstance(item.node, ir.Gen)]
    assert names == ["early", "kept"]


def test_drop_unread_keeps_what_the_body_returns() -> None:
    @bw.function
    def body(s: Any) -> Any:
        forks = s.fork(3)
        forks += lambda i: bw.gen(f"x{i}")
        return forks[1]["x1"]

    backend = bw.ScriptedBackend(answer)
    state = body.compile(drop_unread=True, keep=["x2"]).run(backend=backend)
    state.wait_idle()
    assert sorted(call.name or "" for call in backend.calls) == ["x1", "x2"]
    assert state.ret_value == body.run(backend=backend).ret_value


def test_the_prefix_is_what_all_rows_share() -> None:
    @bw.function
    def body(s: Any, x: str) -> None:
        s += bw.system("Be brief.")
        s += bw.user(f"About {x}: " + "more")
        s += bw.assistant(bw.gen("y"))

    compiled = body.compile()
    shared = "SYSTEM: Be brief.\nUSER: About "
    assert compiled.prefix == shared
    assert body.cache(bw.ScriptedBackend()) == shared


# --- what a compiled program takes and gives


@dataclasses.dataclass
class Verdict:
    title: str
    parts: list[str]


@bw.function
def essay(s: Any, topic: str, points: Sequence[str] = (), n: int = 2) -> Verdict:
    s += f"On {topic}. " + ", ".join(points)
    forks = s.fork(n)
    forks += lambda i: f"{i}:" + bw.gen("part")
    forks.join()
    s["title"] = f"{topic}: {s['part'][0]}"
    s += bw.select("mood", [f"glad of {topic}", "sad"])
    s.set_var("count", n)
    return Verdict(s["title"], [f"{part}!" for part in s["part"]])


def test_return_values_variables_and_meta_are_those_of_the_body() -> None:
    backend = bw.ScriptedBackend(answer)
    compiled = essay.compile()
    for row in ({"topic": "tea"}, {"topic": "", "n": 3}, {"topic": "a", "points": ["p", "q"]}):
        mine, theirs = compiled.run(**row, backend=backend), essay.run(**row, backend=backend)
        assert mine.ret_value == theirs.ret_value
        assert (mine["title"], mine["part"], mine["mood"], mine["count"]) == (
            theirs["title"],
            theirs["part"],
            theirs["mood"],
            theirs["count"],
        )
        assert mine.text() == theirs.text() and mine.meta("mood") == theirs.meta("mood")
    assert compiled.notes == () and "compiled" in repr(compiled)


def test_a_template_is_made_once_per_combination_of_what_is_not_text() -> None:
    traces: list[int] = []

    @bw.function
    def body(s: Any, x: str, n: int) -> None:
        traces.append(n)
        s += x * n

    compiled = body.compile()
    backend = bw.ScriptedBackend()
    texts = [compiled.run(x, n, backend=backend).text() for n in (1, 2) for x in ("a", "b", "c")]
    assert texts == ["a", "b", "c", "aa", "bb", "cc"]
    assert traces == [1, 1, 2, 2]
    compiled.run("a", True, backend=backend)
    assert len(traces) == 6  # True is not 1


def test_values_without_equality_and_too_many_values_run_uncompiled() -> None:
    @bw.function
    def body(s: Any, x: Any) -> None:
        s += f"{x!r:.3}"

    backend = bw.ScriptedBackend()
    compiled = body.compile()
    assert compiled.run(threading.Lock(), backend=backend).text() == "<un"
    assert "lock" in compiled.notes[0]
    for number in range(100):
        assert compiled.run(number, backend=backend).text() == str(number)
    assert any("combinations" in note for note in compiled.notes)


def test_fixed_arguments_become_part_of_the_template() -> None:
    @bw.function
    def body(s: Any, x: str, mode: str) -> None:
        s += x + ("!" if mode == "loud" else "")

    assert "give it to compile()" in body.compile().notes[0]
    loud = body.compile(mode="loud")
    assert loud.notes == () and loud.run("a", backend=bw.ScriptedBackend()).text() == "a!"
    assert loud.template is not None and loud.template.arguments == ("x",)


def test_knobs_budget_and_stream_reach_a_compiled_run() -> None:
    @bw.function
    def body(s: Any, x: str) -> None:
        s += x + bw.gen("y", max_tokens=7) + bw.gen("z")

    backend = bw.ScriptedBackend(lambda prompt, call: "one two three ")
    compiled = body.compile()
    state = compiled.stream("a", temperature=0.25, backend=backend)
    pieces = list(state.text_iter("y"))
    assert len(pieces) > 2 and "".join(pieces) == "one two three "
    state.wait_idle()
    assert [(c.params.max_tokens, c.params.temperature) for c in backend.calls] == [(7, 0.25), (128, 0.25)]
    with pytest.raises(bw.ProgramError, match="budget"):
        asyncio.run(compiled.arun("a", backend=backend, budget=Budget(tokens=3)))


def test_choices_that_become_alike_are_refused_where_they_are_written() -> None:
    with pytest.raises(ValueError, match=r"repeats.*test_compiled\.py:"):
        essay.compile().run("s", backend=bw.ScriptedBackend(answer)).sync() and twin.compile().run(
            "b", backend=bw.ScriptedBackend(answer)
        )


@bw.function
def twin(s: Any, x: str) -> None:
    s += bw.select("y", [x, "b"])


def test_an_uncompiled_run_says_why_on_its_state() -> None:
    @bw.function
    def body(s: Any, x: str) -> None:
        s += x.strip()

    state = body.compile().run("a", backend=bw.ScriptedBackend())
    assert "strip" in state.live.notes[0]


# --- batches


def test_a_batch_needs_no_threads_and_keeps_order() -> None:
    before = threading.active_count()
    threads: list[int] = []

    async def slow(prompt: str, call: Any) -> Any:
        threads.append(threading.active_count())
        await asyncio.sleep(0.01 if prompt.endswith(("3", "7")) else 0)
        return answer(prompt, call)

    @bw.function
    def body(s: Any, x: str) -> str:
        s += x + bw.gen("y")
        return f"{x}:{s['y']}"

    backend = bw.ScriptedBackend(slow)
    rows = [{"x": str(number)} for number in range(300)]
    states = body.compile().run_batch(rows, num_threads=50, backend=backend)
    assert [state.ret_value.split(":")[0] for state in states] == [str(number) for number in range(300)]
    assert max(threads) <= before + 1 and backend.peak <= 50


def test_a_generator_of_rows_is_taken_as_it_is_due() -> None:
    taken: list[int] = []

    def rows() -> Iterator[dict[str, str]]:
        for number in range(10**9):
            taken.append(number)
            yield {"x": str(number)}

    @bw.function
    def body(s: Any, x: str) -> None:
        s += x + bw.gen("y")

    states = body.compile().run_batch(rows(), num_threads=4, generator_style=True, backend=bw.ScriptedBackend(answer))
    first = [next(states).text() for _ in range(20)]
    states.close()
    assert first[0].startswith("0(") and len(taken) <= 20 + 2 * 4


def test_memory_does_not_grow_with_the_rows_of_a_generator() -> None:
    @bw.function
    def body(s: Any, x: str) -> None:
        s += x + bw.gen("y")

    compiled, backend = body.compile(), bw.ScriptedBackend(lambda prompt, call: "x" * 1000)

    def peak(rows: int) -> int:
        backend.prompts.clear()
        tracemalloc.start()
        states = compiled.run_batch(
            ({"x": "a"} for _ in range(rows)), num_threads=8, generator_style=True, backend=backend
        )
        for number, _ in enumerate(states):
            backend.prompts.clear()
            backend.calls.clear()
            if number % 100 == 0:
                gc.collect()  # what waits for the collector is not what grows
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached

    peak(50)
    assert peak(1200) < 2 * peak(150) + 200_000


def test_a_failing_row_stops_the_others_or_stands_in_its_place() -> None:
    async def failing(prompt: str, call: Any) -> str:
        if prompt == "3":
            raise ValueError("bad row")
        await asyncio.sleep(0 if prompt < "3" else 30)
        return prompt

    @bw.function
    def body(s: Any, x: str) -> None:
        s += x + bw.gen("y")

    backend = bw.ScriptedBackend(failing)
    compiled = body.compile()
    with pytest.raises(bw.ProgramError, match="bad row"):
        compiled.run_batch([(str(number),) for number in range(6)], backend=backend)
    while backend.running:
        threading.Event().wait(0.005)
    results = compiled.run_batch([("3",), ("1",)], backend=backend, return_exceptions=True)
    assert isinstance(results[0], bw.ProgramError) and results[1]["y"] == "1"


# --- the real runtime


@pytest.fixture(scope="module")
def runtime() -> Iterator[bw.Runtime]:
    with bw.Runtime("sapling", threads=1) as started:
        yield started


@bw.function
def journey(s: Any, country: str) -> dict[str, Any]:
    s += bw.user(f"What is the capital of {country}?")
    with s.assistant():
        s += bw.gen("capital", max_tokens=12)
    forks = s.fork(2)
    for child, wanted in zip(forks, ("currency", "language")):
        child += bw.user(f"And the {wanted} of {country}?")
        child += bw.assistant(bw.gen("fact", max_tokens=12))
    s += bw.user(f"So {forks[0]['fact']} and {forks[1]['fact']}?")
    s += bw.assistant("It is" + bw.select("kind", [" true", " false", f" in {country}"]))
    return {"capital": s["capital"], "facts": [forks[0]["fact"], forks[1]["fact"]]}


def test_on_the_runtime_a_compiled_program_gives_the_same_greedy_results(runtime: bw.Runtime) -> None:
    compiled = journey.compile(backend=runtime)
    assert compiled.notes == ()
    rows = [{"country": name} for name in ("France", "Japan", "Norway", "Italy")]
    mine = compiled.run_batch(rows, backend=runtime, temperature=0)
    theirs = journey.run_batch(rows, backend=runtime, temperature=0)
    for one, other in zip(mine, theirs):
        assert one.text() == other.text() and one["kind"] == other["kind"]
        assert one.ret_value == other.ret_value


def test_warming_computes_the_shared_text_before_the_first_row(runtime: bw.Runtime) -> None:
    @bw.function
    def body(s: Any, x: str) -> None:
        s += bw.user("A long and patient introduction to the question that follows, the same in every row. " * 4 + x)
        s += bw.assistant(bw.gen("y", max_tokens=1))

    runtime.flush_cache()
    compiled = body.compile(backend=runtime)
    assert "patient" in compiled.warm()
    meta = compiled.run("Why?", backend=runtime, temperature=0).meta("y")
    assert meta["cached_tokens"] > 0.8 * meta["prompt_tokens"]


def test_cancelling_an_awaited_compiled_run_frees_the_runtime(runtime: bw.Runtime) -> None:
    @bw.function
    def body(s: Any, x: str) -> None:
        s += x + bw.gen("y", max_tokens=2000, ignore_eos=True)

    async def main() -> None:
        task = asyncio.create_task(body.compile().arun("a", backend=runtime))
        while not await asyncio.to_thread(lambda: runtime.stats()["running"]):
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while await asyncio.to_thread(lambda: runtime.stats()["running"]):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert "fault" not in runtime.check()
