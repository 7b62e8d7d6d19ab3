"""Worker processes that can be killed: each job has a deadline, and whoever dies is replaced.

Knows: deadlines, processes, signals. Must not know: what a stage does, vocabularies, caches.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

import msgspec

from branchwork.runtime.grammar.recipe import Answer, Job, goes_on
from branchwork.runtime.grammar.worker import read_frame, write_frame

START_SECONDS = 60.0  # for a worker to import what it needs on a very busy machine

log = logging.getLogger(__name__)


class Died(msgspec.Struct, frozen=True):
    """The worker ended in the middle of a job. killed: by someone's SIGKILL, not by what it did."""

    how: str
    killed: bool


class Late(msgspec.Struct, frozen=True):
    """The job was not done in time; its worker was killed."""

    seconds: float


Outcome = Answer | Died | Late


class Process:
    """One worker process and what it has answered."""

    def __init__(self, memory: int) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # its life is the process's
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "branchwork.runtime.grammar.worker", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **threads},
        )
        self.pid = self._process.pid
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._decoder = msgspec.msgpack.Decoder(Answer)
        self._ready = False

    def _listen(self) -> None:
        assert self._process.stdout is not None
        while (frame := read_frame(self._process.stdout)) is not None:
            self._answers.put(frame)
        self._answers.put(None)

    def ask(self, job: bytes, seconds: float, then: float) -> tuple[Outcome, Outcome | None]:
        """One job: what its stage gave, and that which follows it if it came to that (then: its seconds, 0 for none).
        After Died or Late this process is gone."""
        assert self._process.stdin is not None
        try:
            if not self._ready:
                if self._answers.get(timeout=START_SECONDS) is None:
                    return self._died(), None
                self._ready = True
            write_frame(self._process.stdin, job)
        except BrokenPipeError:
            return self._died(), None
        except queue.Empty:
            self.end()
            return Late(START_SECONDS), None
        first = self._answer(seconds)
        return first, self._answer(then) if then and goes_on(first) else None

    def _answer(self, seconds: float) -> Outcome:
        try:
            frame = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.end()
            return Late(seconds)
        return self._died() if frame is None else self._decoder.decode(frame)

    def _died(self) -> Died:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip()[-300:]
        self.end()
        if status >= 0:
            return Died(f"with status {status}: {said}", False)
        return Died(f"by {signal.Signals(-status).name}" + (f": {said}" if said else ""), -status == signal.SIGKILL)

    def kill(self) -> None:
        """Whoever asks it gets Died."""
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._errors.close()


class Pool:
    """`workers` threads, each with at most one process at a time; processes start when first needed and are replaced
    when they end. Shared by any number of compilers."""

    def __init__(self, workers: int, memory: int) -> None:
        self.memory = memory
        self._idle: list[Process] = []
        self._busy: set[Process] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def do(self, task: Callable[[], None]) -> None:
        """Run it in one of the threads; it must not raise. After close() it runs where ask() gives Died."""
        self._tasks.put(task)

    @property
    def waiting(self) -> bool:
        """Whether tasks wait for a thread."""
        return not self._tasks.empty()

    def ask(self, job: Job, seconds: float, then: float = 0.0) -> tuple[Outcome, Outcome | None]:
        """Within a task: blocks for at most `seconds` of work, and `then` of the stage after it. A job whose worker was
        killed from outside is given to another one, once."""
        data = msgspec.msgpack.encode(job)
        found = self._ask(data, seconds, then)
        if any(isinstance(outcome, Died) and outcome.killed for outcome in found) and not self._closed:
            log.warning("a compile worker was killed; its job is given to another")
            found = self._ask(data, seconds, then)
        return found

    def start(self) -> None:
        """Start a process now rather than at the first job."""
        with self._lock:
            if not self._idle and not self._busy and not self._closed:
                self._idle.append(Process(self.memory))

    def pids(self) -> list[int]:
        """Of the processes that are at work now."""
        with self._lock:
            return [process.pid for process in self._busy]

    def close(self) -> None:
        """Kill the processes and end the threads, once they have come through what was asked of them."""
        with self._lock:
            self._closed = True
            for process in (*self._idle, *self._busy):
                process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for process in self._idle:
            process.end()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()

    def _ask(self, job: bytes, seconds: float, then: float) -> tuple[Outcome, Outcome | None]:
        with self._lock:
            if self._closed:
                return Died("with the pool", False), None
            process = self._idle.pop() if self._idle else Process(self.memory)
            self._busy.add(process)
        alive = False
        try:
            found = process.ask(job, seconds, then)
            alive = not any(isinstance(outcome, Died | Late) for outcome in found)
        finally:
            with self._lock:
                self._busy.discard(process)
                if alive:
                    self._idle.append(process)
        return found
