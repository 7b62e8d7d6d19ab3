"""Many runs of one program: a bounded number of rows under way, results in order, progress, errors.

Knows: states and worker threads. Must not know: signatures, knobs, backends.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from branchwork.lang.state import ProgramState

Start = Callable[[int], tuple[ProgramState, Callable[[], object]]]


class _Rows:
    """Rows under way, so that they can be stopped together."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.stopped = False
        self._lock = threading.Lock()
        self._under_way: set[ProgramState] = set()

    def run(self, index: int) -> ProgramState | None:
        """One row from its body's first line to the end of generation; None when the batch was stopped before it."""
        with self._lock:
            if self.stopped:
                return None
            state, perform = self.start(index)
            self._under_way.add(state)
        try:
            perform()
            state.wait_idle()
            state.sync()
            return state
        finally:
            with self._lock:
                self._under_way.discard(state)

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            under_way = list(self._under_way)
        for state in under_way:
            state.cancel()


def run_rows(
    count: int, start: Start, width: int, progress_bar: bool, return_exceptions: bool, ahead: int
) -> Iterator[Any]:
    """Every row's state, in order. At most `width` run at once, at most `ahead` of what has been asked for.

    Stops what runs when a row fails (unless return_exceptions), when the caller is interrupted, or stops iterating.
    """
    if count == 0:
        return
    rows = _Rows(start)
    pool = ThreadPoolExecutor(min(width, count), thread_name_prefix="branchwork-row")
    waiting: deque[Future[ProgramState | None]] = deque(pool.submit(rows.run, i) for i in range(min(ahead, count)))
    next_row = len(waiting)
    try:
        with _progress(count if progress_bar else 0) as advance:
            for index in range(count):
                error = waiting[0].exception()
                if error is not None and not (return_exceptions and isinstance(error, Exception)):
                    if sys.version_info >= (3, 11):
                        error.add_note(f"in row {index} of the batch")
                    raise error
                done = waiting.popleft()
                if next_row < count:
                    waiting.append(pool.submit(rows.run, next_row))
                    next_row += 1
                advance()
                yield done.result() if error is None else error
    finally:
        rows.stop()
        pool.shutdown(wait=False, cancel_futures=True)


def _progress(total: int) -> AbstractContextManager[Callable[[], object]]:
    if not total:
        return nullcontext(lambda: None)
    from rich.console import Console

    return _Bar(total, Console(stderr=True))


class _Bar:
    """A progress bar as a context that gives the function to call per finished row."""

    def __init__(self, total: int, console: Any) -> None:
        from rich.progress import Progress

        self._progress = Progress(console=console)
        self._task = self._progress.add_task("programs", total=total)

    def __enter__(self) -> Callable[[], object]:
        self._progress.start()
        return lambda: self._progress.advance(self._task)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
