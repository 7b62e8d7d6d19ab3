"""The background loop: one thread, timeouts, forks."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from branchwork.lang import loop


async def thread_name() -> str:
    return threading.current_thread().name


def test_there_is_one_daemon_thread() -> None:
    assert {loop.run(thread_name()) for _ in range(3)} == {"branchwork-loop"}
    assert [t.daemon for t in threading.enumerate() if t.name == "branchwork-loop"] == [True]


def test_a_timeout_cancels_the_work() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(TimeoutError):
        loop.run(work(), timeout=0.05)
    until = time.monotonic() + 5
    while not ended and time.monotonic() < until:
        time.sleep(0.01)
    assert ended == ["cancelled"]


def test_the_loop_refuses_to_wait_for_itself() -> None:
    async def work() -> None:
        loop.run(thread_name())

    with pytest.raises(RuntimeError, match="cannot wait for itself"):
        loop.run(work())


def test_a_forked_child_gets_a_loop_of_its_own() -> None:
    loop.run(thread_name())
    pid = os.fork()
    if pid == 0:
        os._exit(7 if loop.run(thread_name(), timeout=5) == "branchwork-loop" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_whether_a_loop_runs_is_asked_of_the_calling_thread() -> None:
    async def work() -> bool:
        return loop.runs_here()

    assert asyncio.run(work()) and not loop.runs_here()
