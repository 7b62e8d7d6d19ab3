"""The author's view: laying never waits, reading does, and every failure is an error at the right line."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import pickle
import threading
import time
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang.backend import Call, Reply
from branchwork.lang.machine import Call as MachineCall
from branchwork.lang.protocol import ChatFrames, Frame

CHATML = ChatFrames(roles={r: Frame(f"<|{r}|>", "<|end|>\n") for r in ("system", "user", "assistant")})


def run(body: Any, script: Any = (), **backend: Any) -> bw.ProgramState:
    return bw.function(body).run(backend=bw.ScriptedBackend(script, **backend))


def line_of(body: Any, marker: str) -> str:
    lines, first = inspect.getsourcelines(body)
    (offset,) = [i for i, line in enumerate(lines) if marker in line]
    return f"{__file__}:{first + offset}"


def test_text_and_variables_come_together() -> None:
    def body(s: bw.ProgramState) -> Any:
        s += "Q: " + bw.gen("q") + " A: " + bw.select("a", ["no", "yes"])
        s["note"] = {"any": "object"}
        return s["q"] + s["a"]

    state = run(body, {"q": "why", "a": 1})
    assert state.ret_value == "whyyes"
    assert state.text() == "Q: why A: yes"
    assert state["note"] == {"any": "object"}
    assert "q" in state and "nothing" not in state


def test_each_gen_sees_exactly_the_text_before_it() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "a"
        s.gen("x")
        s += "b"
        s.select("y", ["p", "q"])
        s += bw.gen()

    backend = bw.ScriptedBackend(["X", "q", "Z"])
    assert bw.function(body).run(backend=backend).text() == "aXbqZ"
    assert backend.prompts == ["a", "aXb", "aXbq"]


def test_laying_does_not_wait_for_generation() -> None:
    def body(s: bw.ProgramState) -> float:
        begin = time.perf_counter()
        for i in range(20):
            s += bw.gen(f"v{i}")
        return time.perf_counter() - begin

    state = run(body, lambda prompt, call: "x", delay=0.02)
    assert state.ret_value < 0.2
    assert state["v19"] == "x"


def test_n_samples_are_a_list_with_metas() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x", n=3)

    state = run(body, {"x": ("a", "b c", "d")})
    assert state["x"] == ["a", "b c", "d"]
    assert [meta["completion_tokens"] for meta in state.meta("x")] == [1, 2, 1]
    assert state.text() == "a"


def test_roles_as_calls_as_blocks_and_as_expressions() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.system("be kind")
        s.user("  hi")
        with s.assistant():
            s += "well " + bw.gen("x")
        s += bw.user_begin() + "bye" + bw.user_end()

    state = run(body, {"x": "hello"}, frames=CHATML)
    assert state.text() == (
        "<|system|>be kind<|end|>\n<|user|>  hi<|end|>\n<|assistant|>well hello<|end|>\n<|user|>bye<|end|>\n"
    )
    assert [tuple(m.values()) for m in state.messages()] == [
        ("system", "be kind"),
        ("user", "hi"),
        ("assistant", "well hello"),
        ("user", "bye"),
    ]


def test_nested_roles_are_refused_at_their_line() -> None:
    def body(s: bw.ProgramState) -> None:
        with s.user():
            s += bw.assistant("x")  # nested

    with pytest.raises(bw.ProgramError) as caught:
        run(body)
    assert (caught.value.code, caught.value.source) == ("nested_role", line_of(body, "# nested"))


def test_a_block_is_laid_at_its_own_line() -> None:
    def body(s: bw.ProgramState) -> None:
        with s.user(), s.user():  # nested
            pass

    with pytest.raises(bw.ProgramError) as caught:
        run(body)
    assert caught.value.source == line_of(body, "# nested")


def test_a_scope_captures_and_refuses_to_be_read_inside_itself() -> None:
    def body(s: bw.ProgramState) -> None:
        with s.var_scope("z"):
            s += "a" + bw.gen("x")
            with pytest.raises(bw.ProgramError, match="open_scope"):
                s["z"]
        assert s["z"] == "a1"

    run(body, {"x": "1"}).sync()


def test_forks_run_side_by_side_and_join_in_order() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "root "
        forks = s.fork(4)
        forks += lambda i: f"{i}:"
        forks += [bw.gen("x"), bw.gen("x"), bw.gen("x"), bw.gen("x")]
        forks[2] += "!"
        assert len(forks) == 4
        assert [f.text() for f in forks][2] == "root 2:<root 2:>!"
        forks.join()
        s += "done"

    backend = bw.ScriptedBackend(lambda prompt, call: f"<{prompt}>", delay=0.02)
    state = bw.function(body).run(backend=backend)
    assert state["x"] == [f"<root {i}:>" for i in range(4)]
    assert state.text() == "root done"
    assert backend.peak == 4


def test_fork_before_any_text_copy_and_concatenation() -> None:
    def body(s: bw.ProgramState) -> None:
        forks = s.fork(2)
        forks += "p"
        forks.join("concate_and_append")
        with s.copy() as t:
            t += "q" + bw.gen("y")

    state = run(body, {"y": "Y"})
    assert state.text() == "pp"
    assert state["y"] == ["Y"]


def test_a_ref_carries_text_between_branches_without_waiting() -> None:
    def body(s: bw.ProgramState) -> None:
        forks = s.fork(2)
        forks[0] += bw.gen("x")
        forks[1] += "other said " + forks[0].ref("x")
        with pytest.raises(bw.ProgramError, match="known: x"):
            forks[0].ref("nothing")
        assert forks[1].text() == "other said X"

    run(body, {"x": "X"}, delay=0.02).sync()


def test_two_hundred_forks_need_no_threads() -> None:
    def body(s: bw.ProgramState) -> int:
        forks = s.fork(200)
        forks += bw.gen("x")
        forks.join()
        return threading.active_count()

    run(lambda s: None)  # the loop's thread is there
    before = threading.active_count()
    state = run(body, lambda prompt, call: "x", delay=0.01)
    assert state.ret_value == before
    assert len(state["x"]) == 200


def test_reading_what_nobody_laid_names_what_is_known() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x") + bw.gen("y")

    with pytest.raises(bw.ProgramError, match=r"unknown_variable: .*'z'.*known: x, y"):
        run(body, {"x": "1", "y": "2"})["z"]


def test_a_failure_is_raised_where_it_is_read_with_its_own_line_and_the_first_cause() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "start "
        s += bw.gen("bad")  # the cause
        s += bw.gen("after")  # the victim
        assert s  # laying goes on

    state = run(body, {"bad": ValueError("no luck"), "after": "never"})
    with pytest.raises(bw.ProgramError) as caught:
        state["after"]
    error = caught.value
    assert (error.code, error.source) == ("branch_failed", line_of(body, "# the victim"))
    assert error.cause is not None and error.cause is error.__cause__
    assert (error.cause.code, error.cause.source) == ("executor_error", line_of(body, "# the cause"))
    assert "no luck" in str(error) and error.transcript == "start "
    with pytest.raises(bw.ProgramError, match="no luck"):
        state.sync()
    assert isinstance(state.error(), bw.ProgramError)
    assert str(state) == "start "


def test_a_failing_fork_leaves_its_sisters_and_fails_the_join() -> None:
    def body(s: bw.ProgramState) -> None:
        forks = s.fork(2)
        forks[0] += bw.gen("bad")
        forks[1] += bw.gen("good")
        assert forks[1]["good"] == "fine"
        forks.join()
        s += "after"

    state = run(body, {"good": "fine", "bad": ValueError("no luck")})
    with pytest.raises(bw.ProgramError, match="no luck"):
        state.text()


def test_an_exception_in_the_body_comes_out_and_closes_the_program() -> None:
    kept: list[bw.ProgramState] = []

    def body(s: bw.ProgramState) -> None:
        kept.append(s)
        s += bw.gen("x")
        raise KeyError("mine")

    backend = bw.ScriptedBackend(lambda prompt, call: asyncio.sleep(30, "x"))
    with pytest.raises(KeyError, match="mine"):
        bw.function(body).run(backend=backend)
    with pytest.raises(KeyError, match="mine"):
        kept[0]["x"]
    eventually(lambda: backend.running == 0)


def test_laying_after_the_end_is_refused() -> None:
    state = run(lambda s: None)
    with pytest.raises(bw.ProgramError, match="has ended"):
        state += "more"


def test_none_is_refused_at_its_line() -> None:
    def body(s: bw.ProgramState) -> None:
        s += None  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="NoneType"):
        run(body)


def test_cancel_wakes_the_reader_and_stops_the_work() -> None:
    def body(s: bw.ProgramState) -> None:
        forks = s.fork(2)
        forks += bw.gen("x")
        threading.Timer(0.05, forks[0].cancel).start()
        with pytest.raises(bw.ProgramError, match="cancelled"):
            forks[0]["x"]
        forks[1].cancel()

    backend = bw.ScriptedBackend(lambda prompt, call: asyncio.sleep(30, "x"))
    bw.function(body).run(backend=backend)
    eventually(lambda: backend.running == 0)


def test_dropping_the_state_stops_what_still_runs() -> None:
    backend = bw.ScriptedBackend(lambda prompt, call: asyncio.sleep(30, "x"))
    state = bw.function(lambda s: s.gen("x")).run(backend=backend)
    eventually(lambda: backend.running == 1)
    del state
    gc.collect()
    eventually(lambda: backend.running == 0)


def test_text_iter_gives_pieces_as_they_come() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "say: "
        s += bw.gen("x")
        s += "."
        s += bw.gen("y")

    program = bw.function(body)
    backend = bw.ScriptedBackend({"x": "one two three", "y": "four"}, delay=0.01)
    assert list(program.stream(backend=backend).text_iter()) == ["say: ", "one", " two", " three", ".", "four"]
    assert list(program.run(stream=True, backend=backend).text_iter("x")) == ["one", " two", " three"]
    assert list(program.run(backend=backend).text_iter("x")) == ["one two three"]
    assert "".join(program.run(backend=backend).sync().text_iter()) == "say: one two three.four"


def test_text_iter_inside_the_body_ends_with_what_is_laid() -> None:
    def body(s: bw.ProgramState) -> list[str]:
        s += bw.gen("x")
        return list(s.text_iter("x")) + list(s.text_iter())

    assert run(body, {"x": "a b"}).ret_value == ["a b", "a b"]


def test_a_stream_ends_with_the_error_of_body_or_node() -> None:
    def broken_body(s: bw.ProgramState) -> None:
        s += bw.gen("x")
        s.sync()
        raise KeyError("mine")

    def broken_gen(s: bw.ProgramState) -> None:
        s += "a" + bw.gen("bad")

    with pytest.raises(KeyError, match="mine"):
        list(bw.function(broken_body).stream(backend=bw.ScriptedBackend({"x": "1"})).text_iter())
    with pytest.raises(bw.ProgramError, match="no_answer"):
        list(bw.function(broken_gen).stream(backend=bw.ScriptedBackend({})).text_iter())
    with pytest.raises(bw.ProgramError, match="unknown_variable"):
        list(bw.function(broken_gen).stream(backend=bw.ScriptedBackend({})).text_iter("never"))


def test_async_iter_can_give_metas() -> None:
    async def main() -> list[Any]:
        state = bw.function(lambda s: s.gen("x")).stream(backend=bw.ScriptedBackend({"x": "a b"}))
        return [piece async for piece in state.text_async_iter("x", return_meta_data=True)]

    assert asyncio.run(main()) == [("a", {}), (" b", {}), ("", {"completion_tokens": 2})]


def test_reading_from_outside_a_streaming_body_waits_for_what_it_will_lay() -> None:
    def body(s: bw.ProgramState) -> Any:
        time.sleep(0.05)
        s += bw.gen("x")
        return "end"

    state = bw.function(body).stream(backend=bw.ScriptedBackend({"x": "1"}))
    assert state["x"] == "1"
    assert state.ret_value == "end"
    assert state.text() == "1"


def test_a_reply_may_carry_its_own_meta() -> None:
    def answer(prompt: str, call: Call) -> Reply:
        assert isinstance(call, MachineCall)
        return Reply((call.choices[0],), ({"normalized": [0.1]},))

    state = run(lambda s: s.select("c", ["a", "b"]), answer)
    assert (state["c"], state.get_meta_info("c")) == ("a", {"normalized": [0.1]})


def test_rendering_shows_prompt_generation_and_forks() -> None:
    from rich.console import Console

    def body(s: bw.ProgramState) -> None:
        s += "prompt " + bw.gen("x")
        forks = s.fork(2)
        forks += bw.gen("y")

    console = Console(record=True, width=80, file=open("/dev/null", "w"))  # noqa: SIM115
    run(body, {"x": "made", "y": "forked"}).show(console)
    shown = console.export_text()
    assert "prompt made" in shown and shown.count("forked") == 2 and "branch 2" in shown


def eventually(condition: Any, seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)


@pytest.mark.parametrize("copying", [pickle.dumps, copy.deepcopy])
def test_a_state_that_is_pickled_or_copied_says_what_to_do_instead(copying: Any) -> None:
    state = run(lambda s: s.__iadd__("a"), {})
    with pytest.raises(TypeError, match=r"s\.save\(path\)"):
        copying(state)
