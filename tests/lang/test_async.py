"""Async first: `async def` bodies need no thread, and whatever stops a task stops its program at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang.default import set_default_backend


@pytest.fixture(scope="module")
def runtime() -> Iterator[bw.Runtime]:
    with bw.Runtime("sapling", threads=1) as started:
        yield started


@bw.function
async def talk(s: Any, word: str) -> str:
    s += word + bw.gen("x", max_tokens=2000, ignore_eos=True)
    s += "." + bw.gen("y", max_tokens=2000, ignore_eos=True)
    return str(await s.get("x") + await s.get("y"))


async def until(holds: Callable[[], Awaitable[bool] | bool]) -> None:
    while True:
        found = holds()
        if found if isinstance(found, bool) else await found:
            return
        await asyncio.sleep(0.005)


def test_two_thousand_programs_on_one_loop_use_no_thread_of_their_own() -> None:
    backend = bw.ScriptedBackend(lambda prompt, call: asyncio.sleep(0.01, prompt[-5:]))
    seen: set[str] = set()

    async def main() -> list[str]:
        before = set(threading.enumerate())
        set_default_backend(backend)
        tasks = [asyncio.create_task(talk.arun(str(number))) for number in range(2000)]
        while not all(task.done() for task in tasks):
            seen.update(thread.name for thread in set(threading.enumerate()) - before)
            await asyncio.sleep(0.02)
        return [(await task).ret_value for task in tasks]

    values = asyncio.run(main())
    assert values[7] == "7" + "77." and len(set(values)) == 2000
    assert seen <= {"branchwork-loop"}


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_task_that_is_stopped_stops_its_program(how: str) -> None:
    backend = bw.ScriptedBackend({"x": "one two three four", "y": "b"}, delay=30)

    async def main() -> None:
        task = asyncio.create_task(talk.arun("a", backend=backend))
        await until(lambda: backend.running == 1)
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(task, 0.01)
        await until(lambda: backend.running == 0)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert [call.name for call in backend.calls] == ["x"]


def test_a_stopped_task_frees_what_the_runtime_held(runtime: bw.Runtime) -> None:
    async def idle() -> bool:
        stats = await asyncio.to_thread(runtime.stats)
        return stats["running"] == stats["waiting"] == stats["leases"] == stats["programs"] == 0

    async def busy() -> bool:
        return bool((await asyncio.to_thread(runtime.stats))["running"])

    async def main() -> None:
        task = asyncio.create_task(talk.arun("a", backend=runtime))
        await until(busy)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(idle)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert "fault" not in runtime.check()


def test_an_interrupt_in_run_stops_the_program() -> None:
    backend = bw.ScriptedBackend({"x": "one two", "y": "b"}, delay=30)

    @bw.function
    def body(s: Any) -> str:
        s += bw.gen("x")
        return str(s["x"])

    def interrupt() -> None:
        while not backend.running:
            threading.Event().wait(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        body.run(backend=backend)
    asyncio.run(asyncio.wait_for(until(lambda: backend.running == 0), 20))


@pytest.mark.parametrize("compiled", [False, True])
def test_an_interrupt_in_a_batch_stops_every_row(compiled: bool) -> None:
    backend = bw.ScriptedBackend({"x": lambda prompt, call: "one two"}, delay=30)

    @bw.function
    def body(s: Any, word: str) -> None:
        s += word + bw.gen("x")

    def interrupt() -> None:
        while backend.running < 4:
            threading.Event().wait(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        (body.compile() if compiled else body).run_batch([(str(n),) for n in range(9)], num_threads=4, backend=backend)
    asyncio.run(asyncio.wait_for(until(lambda: backend.running == 0), 20))
    assert len(backend.calls) == 4


def test_arun_raises_what_went_wrong_on_a_branch_that_nobody_joined() -> None:
    @bw.function
    async def body(s: Any) -> None:
        forks = s.fork(2)
        forks += bw.gen("x")
        s += bw.gen("y")

    def one_fails(prompt: str, call: Any) -> str:
        if call.branch == 2:
            raise ValueError("no such word")
        return "a"

    with pytest.raises(bw.ProgramError, match="no such word"):
        asyncio.run(body.arun(backend=bw.ScriptedBackend(one_fails)))


def test_arun_forgives_branches_that_lost_a_race_or_were_cancelled() -> None:
    @bw.function
    async def body(s: Any) -> None:
        forks = s.fork(3)
        forks += bw.gen("x")
        forks.join("first", k=1)
        other = s.fork(1)
        other += bw.gen("z")
        other[0].cancel()
        s += bw.gen("y")

    async def answer(prompt: str, call: Any) -> str:
        if call.branch == 1:
            raise ValueError("broken")
        await asyncio.sleep(0.01 if call.branch == 2 or call.name == "y" else 30)
        return "a"

    state = asyncio.run(asyncio.wait_for(body.arun(backend=bw.ScriptedBackend(answer)), 20))
    assert state["x"] == ["a"] and state["y"] == "a"


def test_only_starting_the_default_runtime_leaves_the_loop() -> None:
    code = """
import asyncio, branchwork as bw
@bw.function
async def body(s):
    s += "The capital of France is" + bw.gen("x", max_tokens=4)
    return await s.get("x")
async def main():
    ticks = 0
    task = asyncio.create_task(body.arun(temperature=0))
    while not task.done():
        ticks += 1
        await asyncio.sleep(0.01)
    assert ticks > 20 and (await task).ret_value
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
