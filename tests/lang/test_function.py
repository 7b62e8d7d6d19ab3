"""Running programs: arguments, knobs, batches, async."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang.expr import knobs_of
from branchwork.lang.protocol import Budget


@bw.function
def echo(s: bw.ProgramState, word: str, times: int = 1) -> Any:
    s += word * times + bw.gen("x")
    return s["x"]


def upper(prompt: str, call: Any) -> str:
    return prompt.upper()


def test_arguments_by_position_name_default_and_bind() -> None:
    backend = bw.ScriptedBackend(upper)
    assert echo.run("a", backend=backend).ret_value == "A"
    assert echo("a", times=2, backend=backend).ret_value == "AA"
    assert echo.bind(word="b").run(times=3, backend=backend).ret_value == "BBB"


def test_wrong_arguments_are_refused_with_what_is_known() -> None:
    with pytest.raises(TypeError, match="word"):
        echo.run()
    with pytest.raises(TypeError, match="temprature"):
        echo.run("a", temprature=1)
    with pytest.raises(TypeError, match="bind"):
        echo.bind(nothing=1)
    with pytest.raises(TypeError, match="must be named s"):
        bw.function(lambda state: None)


def test_run_level_knobs_are_defaults_and_a_gen_wins() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x") + bw.gen("y", temperature=0.5, max_tokens=7)

    backend = bw.ScriptedBackend(upper)
    bw.function(body).run(temperature=0.0, max_new_tokens=3, stop="\n", backend=backend).sync()
    assert [(c.params.temperature, c.params.max_tokens, c.params.stop) for c in backend.calls] == [
        (0.0, 3, ("\n",)),
        (0.5, 7, ("\n",)),
    ]


def test_a_programs_own_parameter_wins_over_a_knob_and_a_run_option() -> None:
    @bw.function
    def body(s: bw.ProgramState, n: int, stream: str = "no") -> tuple[int, str]:
        s += bw.gen("x")
        return n, stream

    backend = bw.ScriptedBackend(upper)
    assert body.run(n=5, stream="river", backend=backend).sync().ret_value == (5, "river")
    assert backend.calls[0].params.n == 1


def test_sglang_spellings_of_logprobs() -> None:
    assert knobs_of({"return_logprob": True, "top_logprobs_num": 3}) == {"logprobs": 3}
    assert knobs_of({"return_logprob": True, "logprob_start_len": 2}) == {
        "logprobs": 0,
        "prompt_logprobs": 0,
        "logprob_start": 2,
    }
    assert knobs_of({"return_logprob": False, "logprob_start_len": 2}) == {}
    with pytest.raises(TypeError, match="same knob"):
        knobs_of({"max_new_tokens": 1, "max_tokens": 2})


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: bw.gen("x", temperature=-1), ValueError, "temperature=-1"),
        (lambda: bw.gen("x", tempo=1), TypeError, "tempo"),
        (lambda: bw.gen("x", min_tokens=9, max_tokens=5), ValueError, "min_tokens=9"),
        (lambda: bw.gen("x", stop_regex="("), ValueError, "stop_regex.*position 0"),
        (lambda: bw.gen(""), TypeError, "name"),
        (lambda: bw.gen("x", choices=[]), ValueError, "empty"),
        (lambda: bw.select("x", ["a", "a"]), ValueError, "repeats"),
        (lambda: bw.select("x", ["a", ""]), ValueError, r"choices\[1\]"),
        (lambda: bw.select("x", "abc"), ValueError, "list"),
        (lambda: bw.select("x"), ValueError, "needs choices"),
        (lambda: bw.select("x", ["a"], temperature=1.0), ValueError, "temperature"),
        (lambda: bw.select("x", ["a"], choices_method="best"), ValueError, "best"),
        (lambda: bw.gen("x") + 5, TypeError, "int"),
    ],
)
def test_mistakes_are_raised_where_they_are_written(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def test_gen_with_choices_is_a_select() -> None:
    node = bw.gen("x", choices=["a", "b"], choices_method=bw.greedy_token_selection, max_tokens=3)
    assert node == bw.select("x", ["a", "b"], choices_method="greedy_token_selection")


def test_batch_results_stand_in_input_order() -> None:
    def answer(prompt: str, call: Any) -> Any:
        return asyncio.sleep(0.02 if prompt in "02468" else 0, prompt)

    rows = [{"word": str(i)} for i in range(10)] + [("x",), ("y", 2)]
    states = echo.run_batch(rows, num_threads=4, backend=bw.ScriptedBackend(answer))
    assert [state["x"] for state in states] == [*map(str, range(10)), "x", "yy"]
    assert echo.run_batch([]) == []


def test_batch_keeps_at_most_its_width_open() -> None:
    backend = bw.ScriptedBackend(lambda prompt, call: asyncio.sleep(0.005, "x"))
    threads: list[int] = []

    def body(s: bw.ProgramState, i: int) -> None:
        threads.append(threading.active_count())
        s += bw.gen("x")

    before = threading.active_count()
    states = bw.function(body).run_batch([(i,) for i in range(60)], num_threads=5, backend=backend)
    assert len(states) == 60
    assert backend.peak <= 5
    assert max(threads) <= before + 6


def test_batch_as_a_generator_begins_only_what_is_due() -> None:
    backend = bw.ScriptedBackend(upper)
    states = echo.run_batch([(str(i),) for i in range(1000)], num_threads=2, generator_style=True, backend=backend)
    assert next(states)["x"] == "0"
    states.close()
    assert len(backend.calls) < 50


def test_a_failing_row_raises_or_stands_in_its_place() -> None:
    def answer(prompt: str, call: Any) -> str:
        if prompt == "1":
            raise ValueError("bad row")
        return prompt

    backend = bw.ScriptedBackend(answer)
    rows = [(str(i),) for i in range(4)]
    with pytest.raises(bw.ProgramError, match="bad row"):
        echo.run_batch(rows, backend=backend)
    results = echo.run_batch(rows, backend=backend, return_exceptions=True)
    assert [isinstance(result, bw.ProgramError) for result in results] == [False, True, False, False]
    with pytest.raises(TypeError, match="missing"):
        echo.run_batch([("a",), ()], backend=backend)


def test_a_batch_shows_its_progress_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    echo.run_batch([("a",), ("b",)], backend=bw.ScriptedBackend(upper), progress_bar=True)
    assert "100%" in capsys.readouterr().err


def test_progress_of_rows_from_a_generator_counts_them(capsys: pytest.CaptureFixture[str]) -> None:
    echo.run_batch(((word,) for word in "abc"), backend=bw.ScriptedBackend(upper), progress_bar=True)
    shown = capsys.readouterr().err
    assert "3/?" in shown and "rows/s" in shown


def test_arun_runs_many_programs_beside_each_other() -> None:
    backend = bw.ScriptedBackend(lambda prompt, call: asyncio.sleep(0.05, prompt))

    def body(s: bw.ProgramState, word: str) -> None:
        s += word + bw.gen("x")

    async def main() -> list[str]:
        states = await asyncio.gather(*(bw.function(body).arun(str(i), backend=backend) for i in range(50)))
        return [state["x"] for state in states]

    begin = time.perf_counter()
    assert asyncio.run(main()) == [str(i) for i in range(50)]
    assert time.perf_counter() - begin < 1.0


def test_async_bodies_read_with_get() -> None:
    @bw.function
    async def body(s: bw.ProgramState) -> Any:
        s += bw.gen("x")
        return await s.get("x") + "!"

    backend = bw.ScriptedBackend({"x": "hi"})
    assert body.run(backend=backend).ret_value == "hi!"
    assert body.stream(backend=backend).ret_value == "hi!"

    async def main() -> Any:
        with pytest.raises(RuntimeError, match="arun"):
            body.run(backend=backend)
        return (await body.arun(backend=backend)).ret_value

    assert asyncio.run(main()) == "hi!"


def test_cancelling_arun_cancels_the_program() -> None:
    backend = bw.ScriptedBackend(lambda prompt, call: asyncio.sleep(30, "x"))

    async def main() -> None:
        task = asyncio.create_task(echo.arun("a", backend=backend))
        while not backend.running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while backend.running:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_decorating_with_arguments_and_the_default_backend() -> None:
    @bw.function(num_api_spec_tokens=64)
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x")

    bw.set_default_backend(bw.ScriptedBackend({"x": "1"}))
    assert body()["x"] == "1"
    assert isinstance(body, bw.Function)


def test_a_budget_reaches_the_backend_and_a_bad_one_is_refused() -> None:
    @bw.function
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x") + bw.gen("y")

    backend = bw.ScriptedBackend(lambda prompt, call: "one two three four")
    state = body.run(backend=backend, budget=Budget(tokens=4))
    assert state["x"] == "one two three four"
    with pytest.raises(bw.ProgramError, match="its budget is 4"):
        state["y"]
    with pytest.raises(bw.ProgramError, match="budget"):
        body.run_batch([()], backend=backend, budget=Budget(tokens=4))
    with pytest.raises(ValueError, match="allows nothing"):
        body.run(backend=backend, budget=Budget(tokens=0))


def test_speculation_of_hosted_apis_is_asked_for_and_survives_bind() -> None:
    asked: list[int | None] = []

    class Noting(bw.ScriptedBackend):
        def open(self, sink: Any, stream: bool, budget: Any = None, speculate: int | None = None) -> Any:
            asked.append(speculate)
            return super().open(sink, stream, budget, speculate)

    @bw.function(num_api_spec_tokens=48)
    def body(s: bw.ProgramState, word: str) -> None:
        s += word + bw.gen("x")

    backend = Noting({"x": "a"})
    assert body.num_api_spec_tokens == body.bind(word="b").num_api_spec_tokens == 48
    body.bind(word="b").run(backend=backend)
    body.compile().run("b", backend=backend)
    echo.run("a", backend=backend)
    assert asked == [48, 48, None]
    with pytest.raises(ValueError, match="num_api_spec_tokens"):
        bw.function(num_api_spec_tokens=0)(lambda s: None)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_failed_branch_that_nobody_joined_fails_its_row(compiled: bool) -> None:
    def answer(prompt: str, call: Any) -> str:
        if call.branch == 2 and prompt.startswith("bad"):
            raise ValueError("broken child")
        return "a"

    @bw.function
    def body(s: bw.ProgramState, word: str) -> None:
        s += word
        s.fork(2).__iadd__(bw.gen("x"))
        s += bw.gen("y")

    backend = bw.ScriptedBackend(answer)
    program = body.compile() if compiled else body
    results = program.run_batch([("good",), ("bad",)], backend=backend, return_exceptions=True)
    assert results[0]["y"] == "a" and "broken child" in str(results[1])


def test_rows_may_come_from_a_generator() -> None:
    backend = bw.ScriptedBackend(upper)
    taken: list[int] = []

    def rows() -> Any:
        for number in range(10**9):
            taken.append(number)
            yield (str(number),)

    states = echo.run_batch(rows(), num_threads=2, generator_style=True, backend=backend)
    assert [next(states)["x"] for _ in range(5)] == ["0", "1", "2", "3", "4"]
    states.close()
    assert len(taken) <= 5 + 2 * 2
    assert [state["x"] for state in echo.run_batch(((word,) for word in "ab"), backend=backend)] == ["A", "B"]


def test_an_error_of_a_row_taken_from_a_generator_stops_the_rows_before_it() -> None:
    def rows() -> Any:
        yield ("a",)
        raise OSError("the file ended")

    with pytest.raises(OSError, match="the file ended"):
        echo.run_batch(rows(), backend=bw.ScriptedBackend(lambda prompt, call: asyncio.sleep(30, "x")))
