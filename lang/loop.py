"""The one background event loop of this process, and its synchronous faces.

Knows: asyncio, threads. Must not know: programs, sockets, what runs on it.
The thread is a daemon, starts on first use, and starts anew in a forked child.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Background:
    """The loop with its thread, and the process it belongs to."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="branchwork-loop", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


_lock = threading.Lock()
_background: _Background | None = None


def _forked() -> None:
    """In a forked child the thread is not there any more, and the lock may be held for ever."""
    global _lock, _background
    _lock, _background = threading.Lock(), None


os.register_at_fork(after_in_child=_forked)


def get() -> asyncio.AbstractEventLoop:
    """The background loop, started if need be."""
    global _background
    if _background is None:
        with _lock:
            if _background is None:
                _background = _Background()
    return _background.loop


def is_current() -> bool:
    """Whether the caller runs on the background loop's thread, where nothing may block."""
    return _background is not None and threading.current_thread() is _background.thread


def runs_here() -> bool:
    """Whether an event loop, of whoever, runs in the calling thread, so that nothing may block or start another."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def post(callback: Callable[..., object], *args: Any) -> None:
    """Run a function on the loop soon. Takes no lock once the loop runs, so a finalizer may call it."""
    get().call_soon_threadsafe(callback, *args)


def run(work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
    """Run a coroutine on the loop and wait for it in this thread.

    Raises TimeoutError after `timeout` seconds (the coroutine is cancelled), RuntimeError on the loop's own thread.
    """
    if is_current():
        work.close()
        raise RuntimeError("the background loop cannot wait for itself; await the coroutine instead")
    future = asyncio.run_coroutine_threadsafe(work, get())
    try:
        return future.result(timeout)
    except concurrent.futures.TimeoutError:  # another class than TimeoutError before Python 3.11
        raise TimeoutError from None
    finally:
        future.cancel()
