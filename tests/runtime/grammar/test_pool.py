"""Compiling off the loop: bounded in time and memory, survives the death of its workers, never in the caller's way."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from branchwork.lang.constraint import (
    Constraint,
    ConstraintError,
    Grammar,
    Invalid,
    JsonSchema,
    Regex,
    TooBig,
    Unsupported,
)
from branchwork.runtime.grammar.leaves import byte_vocabulary
from branchwork.runtime.grammar.matcher import Grammar as Compiled
from branchwork.runtime.grammar.pool import Compiler
from branchwork.runtime.grammar.recipe import Options

NOWHERE = Options(folder="")
HUGE = Regex("(a|b)*a(a|b){240}")  # 2^241 states: as a DFA it never ends, and it is too long to be seen as such

PATHOLOGICAL = [
    HUGE.pattern,
    "(a|b)*a(a|b){20}",
    "(a|b)*a(a|b){16}",
    "((a{0,100}){0,100}){0,100}",
    "([a-z]{0,300}[0-9]{0,300}){0,300}",
    "[a-z]{0,5000}",
    '"[^"\\\\]{0,1000}"',
    "(((a?){50}){50}){50}b",
    "(a|aa)+" * 12,
    "(x+x+)+y",
    "(.*a){20}.*b(.){18}",
    r"(\w+ ){5}\w+",
]


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    compiler = Compiler(byte_vocabulary(), NOWHERE)
    yield compiler
    compiler.close()


def answer(compiler: Compiler, constraint: Constraint, seconds: float = 20.0) -> Compiled | ConstraintError:
    """As an engine gets it: asked for once, then polled."""
    found = compiler.get(constraint)
    until = time.monotonic() + seconds
    while found is None:
        assert time.monotonic() < until, f"no answer for {constraint} in {seconds} s"
        select.select([compiler.fileno()], [], [], 0.5)
        found = dict(compiler.poll()).get(constraint)
    return found


def grammar(compiler: Compiler, constraint: Constraint) -> Compiled:
    found = answer(compiler, constraint)
    assert not isinstance(found, ConstraintError), found
    return found


def works(grammar: Compiled, text: bytes) -> bool:
    matcher = grammar.start()
    return matcher.accept(list(text)) == len(text) and matcher.is_accepting


def until_busy(compiler: Compiler) -> int:
    """The worker that has been at its job for a while."""
    for _ in range(1000):
        if compiler._pool.pids():
            time.sleep(0.4)
            return compiler._pool.pids()[0]
        time.sleep(0.01)
    raise AssertionError("no worker took the job")


def test_a_constraint_is_compiled_once_and_told_once(compiler: Compiler) -> None:
    regex = Regex("[a-z]+[0-9]")
    assert compiler.get(regex) is None
    assert compiler.get(regex) is None
    assert select.select([compiler.fileno()], [], [], 20)[0]
    [(told, found)] = compiler.poll()
    assert told == regex and works(found, b"ab1")  # type: ignore[arg-type]
    assert compiler.poll() == []
    assert not select.select([compiler.fileno()], [], [], 0)[0]
    assert compiler.get(regex) is found


def test_a_wrong_constraint_is_an_answer_too(compiler: Compiler) -> None:
    assert isinstance(answer(compiler, Regex("(a")), Invalid)
    assert isinstance(answer(compiler, Regex(r"(a)\1")), Unsupported)
    with pytest.raises(Invalid):
        compiler.wait(Regex("(a"))
    assert isinstance(answer(compiler, Grammar("start: nothing")), ConstraintError)


def test_a_dfa_past_its_time_becomes_llguidance(compiler: Compiler) -> None:
    began = time.monotonic()
    found = grammar(compiler, HUGE)
    assert found.report.backend == "llguidance"
    assert 0.9 < time.monotonic() - began < 8
    assert works(found, b"ba" + b"b" * 240) and not works(found, b"b" * 242)


def test_limits_are_told_with_their_figures() -> None:
    compiler = Compiler(byte_vocabulary(), Options(folder="", backend="dfa", dfa_seconds=0.3, nfa=300, states=50))
    try:
        with pytest.raises(TooBig, match=r"more than 0\.3 s"):
            compiler.wait(HUGE)
        with pytest.raises(TooBig, match=r"[0-9]{3} atoms.*300"):
            compiler.wait(Regex("[a-z]{1,400}x"))
        with pytest.raises(TooBig, match=r"50"):
            compiler.wait(Regex("[a-z]{1,80}x"))
        with pytest.raises(TooBig, match="not regular"):
            compiler.wait(Grammar('start: "a"'))
    finally:
        compiler.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
def test_memory_is_limited_and_the_next_constraint_compiles() -> None:
    limits = Options(folder="", backend="dfa", dfa_seconds=30, memory=96 << 20)
    compiler = Compiler(byte_vocabulary(), limits)
    try:
        with pytest.raises(TooBig, match="96 MiB"):
            compiler.wait(HUGE)
        assert compiler.wait(Regex("[a-z]+")).report.backend == "dfa"
    finally:
        compiler.close()


def test_a_worker_killed_in_mid_job_costs_one_more_try() -> None:
    compiler = Compiler(byte_vocabulary(), Options(folder="", dfa_seconds=3.0), workers=1)
    try:
        assert compiler.get(HUGE) is None
        first = until_busy(compiler)
        os.kill(first, signal.SIGKILL)
        second = until_busy(compiler)
        assert second != first, "the job went to another worker"
        os.kill(second, signal.SIGKILL)
        assert grammar(compiler, HUGE).report.backend == "llguidance", "twice is enough: the next engine has it"
        assert works(grammar(compiler, Regex("[a-f]+")), b"abc")
    finally:
        compiler.close()


def test_an_idle_worker_that_died_is_replaced(compiler: Compiler) -> None:
    grammar(compiler, Regex("[a-f]+x"))
    for process in compiler._pool._idle:
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.1)
    assert works(grammar(compiler, Regex("[a-f]+y")), b"ay")


@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks into /proc")
def test_workers_end_with_their_parent() -> None:
    code = (
        "import os, time\n"
        "from branchwork.lang.constraint import Regex\n"
        "from branchwork.runtime.grammar.pool import Compiler\n"
        "from branchwork.runtime.grammar.recipe import Options\n"
        "from branchwork.runtime.grammar.leaves import byte_vocabulary\n"
        "c = Compiler(byte_vocabulary(), Options(folder='', dfa_seconds=60))\n"
        f"c.get(Regex({HUGE.pattern!r}))\n"
        "while not c._pool.pids(): time.sleep(0.01)\n"
        "time.sleep(0.5); print(c._pool.pids()[0], flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    worker = int(done.stdout)
    for _ in range(300):
        line = Path(f"/proc/{worker}/cmdline")
        if not line.exists() or not line.read_text():  # gone, or nobody has taken notice of its end
            return
        time.sleep(0.01)
    raise AssertionError(f"worker {worker} outlives its parent, in the middle of a job")


def test_closing_ends_what_is_under_way() -> None:
    compiler = Compiler(byte_vocabulary(), Options(folder="", dfa_seconds=60))
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(compiler.wait, HUGE)
        worker = until_busy(compiler)
        began = time.monotonic()
        compiler.close()
        assert isinstance(waiting.exception(timeout=10), ConstraintError)
    assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_eight_threads_get_the_same_grammar_of_the_same_constraint(compiler: Compiler) -> None:
    same = Regex("[0-9]{3}-[a-z]+")
    barrier = threading.Barrier(8)

    def ask(number: int) -> tuple[Compiled, Compiled]:
        barrier.wait()
        return compiler.wait(same), compiler.wait(Regex(f"[a-z]+{number}"))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert len({id(shared) for shared, _ in found}) == 1
    for number, (_, own) in enumerate(found):
        assert works(own, f"ab{number}".encode()) and not works(own, b"ab")


def test_errors_and_grammars_mixed_in_eight_threads_reach_who_asked(compiler: Compiler) -> None:
    constraints: list[Constraint] = [Regex("(a"), Regex("a+b"), JsonSchema('{"type":"boolean"}'), Regex(r"a\b"), HUGE]

    def ask(number: int) -> list[str]:
        said = []
        for turn in range(len(constraints)):
            try:
                compiler.wait(constraints[(number + turn) % len(constraints)])
                said.append("")
            except ConstraintError as error:
                said.append(error.code)
        return said[-number % len(constraints) :] + said[: -number % len(constraints)]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert all(found == ["invalid_constraint", "", "", "unsupported_constraint", ""] for found in answers)


def test_the_pathological_list_is_bounded_and_stands_in_nobodys_way() -> None:
    compiler = Compiler(byte_vocabulary(), Options(folder="", dfa_seconds=0.5, seconds=3.0))
    try:
        cached = grammar(compiler, JsonSchema('{"type":"object","properties":{"a":{"type":"string"}}}'))
        began = time.monotonic()
        asked = {Regex(pattern): time.monotonic() for pattern in PATHOLOGICAL}
        slowest_get = 0.0
        for regex in asked:
            before = time.perf_counter()
            assert compiler.get(regex) is None
            slowest_get = max(slowest_get, time.perf_counter() - before)
        answers: dict[Constraint, Compiled | ConstraintError] = {}
        row, steps = np.zeros(9, np.int32), 0
        matcher = cached.start()
        while len(answers) < len(asked):
            assert time.monotonic() - began < 3.5 * len(asked)
            matcher.mask_into(row)
            assert row.any() and matcher.error == ""
            steps += 1
            answers.update(compiler.poll())
            time.sleep(0.001)
        assert slowest_get < 0.05
        assert steps > 100
        for regex, found in answers.items():
            assert not isinstance(found, ConstraintError) or isinstance(found, TooBig), (regex, found)
    finally:
        compiler.close()
