"""Many runs of one program: a bounded number of rows under way, results in order, progress, errors.

Knows: states, worker threads, the background loop. Must not know: signatures, knobs, backends.
Rows may be any iterable and are taken as they are due, so what a batch holds depends on its width, not on its length.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from branchwork.lang import loop, race
from branchwork.lang.errors import ProgramError
from branchwork.lang.ir import Join
from branchwork.lang.live import LiveProgram
from branchwork.lang.state import ProgramState


class Crew:
    """Rows under way, each in a worker thread or watched from the background loop, stopped together."""

    def __init__(self, width: int) -> None:
        self._pool = ThreadPoolExecutor(width, thread_name_prefix="branchwork-row")  # starts threads when needed
        self._lock = threading.Lock()
        self._stopped = False
        self._under_way: set[ProgramState[Any]] = set()

    def perform(
        self, begin: Callable[[], ProgramState[Any]], body: Callable[[ProgramState[Any]], object]
    ) -> Future[ProgramState[Any] | None]:
        """A row whose body needs a thread."""
        return self._pool.submit(self._perform, begin, body)

    def watch(self, begin: Callable[[], ProgramState[Any]]) -> Future[ProgramState[Any] | None]:
        """A row that runs by itself once it has begun, here and now."""
        row: Future[ProgramState[Any] | None] = Future()
        try:
            state = self._enter(begin)
        except Exception as error:
            row.set_exception(error)
            return row
        if state is None:
            row.set_result(None)
            return row
        return asyncio.run_coroutine_threadsafe(self._watch(state), loop.get())

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            under_way = list(self._under_way)
        for state in under_way:
            state.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _enter(self, begin: Callable[[], ProgramState[Any]]) -> ProgramState[Any] | None:
        with self._lock:
            if self._stopped:
                return None
        state = begin()  # may wait for the backend, so not under the lock
        with self._lock:
            self._under_way.add(state)
            stopped = self._stopped
        if stopped:
            state.cancel()
        return state

    def _perform(
        self, begin: Callable[[], ProgramState[Any]], body: Callable[[ProgramState[Any]], object]
    ) -> ProgramState[Any] | None:
        """One row from its body's first line to the end of generation."""
        state = self._enter(begin)
        if state is None:
            return None
        try:
            body(state)
            state.wait_idle()
            return finished(state)
        finally:
            self._leave(state)

    async def _watch(self, state: ProgramState[Any]) -> ProgramState[Any]:
        try:
            await state.live.wait_async(lambda: state.live.machine.idle)
            return finished(state)
        finally:
            self._leave(state)

    def _leave(self, state: ProgramState[Any]) -> None:
        with self._lock:
            self._under_way.discard(state)


def finished(state: ProgramState[Any]) -> ProgramState[Any]:
    """A state whose program has nothing left to execute. Raises what went wrong on any of its branches."""
    error = failure(state.live)
    if error is not None:
        raise error from error.cause
    return state


def failure(live: LiveProgram) -> ProgramError | None:
    """Why a program that is idle has failed, None when it has not: its first branch, or one that nobody gave up on.

    Branches that were cancelled, or lost a race that was decided, are given up on.
    """
    with live.changed:
        lineage = live.machine.lineage
        raced = [
            child
            for number, record in live.records.items()
            if isinstance(record.node, Join) and record.node.mode in race.MODES and number in live.machine.winners
            for child in record.node.children
        ]
        failures = [
            track.branch.failure
            for branch, track in lineage.tracks.items()
            if track.branch.failure is not None
            and (branch == 0 or track.branch.failure.code not in ("cancelled", "outrun"))
            and not any(lineage.descends(branch, child) for child in raced)
        ]
        return live.error(min(failures, key=lambda one: (one.node != one.cause, one.node))) if failures else None


class Plan(NamedTuple):
    """How a batch is run. width: rows under way; ahead: rows begun and not yet given out; total: rows, if known."""

    width: int
    ahead: int
    total: int | None
    progress_bar: bool
    return_exceptions: bool
    in_order: bool  # an error is raised when its row is due, else as soon as it is known


def planned(
    rows: Iterable[Any], num_threads: int | str, auto: int, progress_bar: bool, style: bool, exceptions: bool
) -> Plan:
    """style: as a generator. Raises ValueError for a width that cannot be."""
    if num_threads != "auto" and (not isinstance(num_threads, int) or num_threads < 1):
        raise ValueError(f"num_threads must be at least 1 or 'auto', got {num_threads!r}")
    width = auto if isinstance(num_threads, str) else num_threads
    total = len(rows) if isinstance(rows, Sized) else None
    return Plan(width, 2 * width if style else sys.maxsize, total, progress_bar, exceptions, style)


def run_rows(
    rows: Iterable[Any], begin: Callable[[Crew, Any], Future[ProgramState[Any] | None]], plan: Plan
) -> Iterator[Any]:
    """Every row's state, in order.

    Stops what runs when a row fails (unless return_exceptions), when the caller is interrupted, or stops iterating.
    """
    crew = Crew(plan.width)
    window = _Window(plan)
    source, more, index = iter(rows), True, -1
    try:
        with _progress(plan) as advance:
            while True:
                while more and window.has_room():
                    try:
                        row = next(source)
                    except StopIteration:
                        more = False
                    else:
                        window.add(begin(crew, row))
                if not window.waiting:
                    return
                due = window.due(more)
                if due is None:
                    continue
                index += 1
                error = due.exception()
                if error is not None and not window.tolerates(error):
                    raise _noted(error, index)
                advance()
                yield due.result() if error is None else error
    finally:
        crew.stop()


class _Window:
    """The rows that have begun and have not been given out, oldest first."""

    def __init__(self, plan: Plan) -> None:
        self.waiting: deque[Future[ProgramState[Any] | None]] = deque()
        self._plan = plan
        self._changed = threading.Condition()
        self._under_way = self._begun = 0
        self._failed: tuple[int, BaseException] | None = None

    def has_room(self) -> bool:
        return self._under_way < self._plan.width and len(self.waiting) < self._plan.ahead

    def tolerates(self, error: BaseException) -> bool:
        return self._plan.return_exceptions and isinstance(error, Exception)

    def add(self, row: Future[ProgramState[Any] | None]) -> None:
        number = self._begun
        with self._changed:
            self._under_way += 1
            self._begun += 1
        self.waiting.append(row)
        row.add_done_callback(lambda done: self._over(number, done))

    def due(self, more: bool) -> Future[ProgramState[Any] | None] | None:
        """Wait; the oldest row when it is done, None when another may begin. Raises an error that is not tolerated."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._failed is not None or self.waiting[0].done() or (more and self.has_room())
            )
            if self._failed is not None and not self._plan.in_order:
                number, error = self._failed
                raise _noted(error, number)
            return self.waiting.popleft() if self.waiting[0].done() else None

    def _over(self, number: int, row: Future[ProgramState[Any] | None]) -> None:
        error = None if row.cancelled() else row.exception()
        with self._changed:
            self._under_way -= 1
            if error is not None and self._failed is None and not self._plan.in_order and not self.tolerates(error):
                self._failed = number, error
            self._changed.notify_all()


def _noted(error: BaseException, row: int) -> BaseException:
    if sys.version_info >= (3, 11):
        error.add_note(f"in row {row} of the batch")
    return error


def _progress(plan: Plan) -> AbstractContextManager[Callable[[], object]]:
    if not plan.progress_bar:
        return nullcontext(lambda: None)
    from rich.console import Console

    return _Bar(plan.total, Console(stderr=True))


class _Bar:
    """A progress bar as a context that gives the function to call per finished row. total: None when not known."""

    def __init__(self, total: int | None, console: Any) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *([] if total is None else [TaskProgressColumn()]),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} rows/s"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("programs", total=total, rate=0.0)
        self._rows = 0

    def __enter__(self) -> Callable[[], object]:
        self._began = time.monotonic()
        self._progress.start()
        return self._advance

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def _advance(self) -> None:
        self._rows += 1
        rate = self._rows / max(time.monotonic() - self._began, 1e-9)
        self._progress.update(self._task, advance=1, rate=rate)
