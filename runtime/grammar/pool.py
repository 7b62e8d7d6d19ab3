"""Worker processes that can be killed, and the compiler that an engine's loop asks without ever waiting for it.

Knows: deadlines, processes, which stage follows which. Must not know: requests, what a stage does.

    get(constraint) --> in memory? -> Grammar | ConstraintError
                   `--> under way? -> None
                   `--> thread: on disk? | worker: dfa (1 s) -> worker: llguidance (10 s)
                                          `--> over the vocabulary --> poll()
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
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import msgspec

from branchwork.lang.constraint import Constraint, ConstraintError, TooBig
from branchwork.runtime.grammar import compiled, store
from branchwork.runtime.grammar.matcher import Grammar
from branchwork.runtime.grammar.recipe import (
    Answer,
    Declined,
    DfaRecipe,
    Fault,
    Job,
    LeafTables,
    LlgRecipe,
    Options,
    Recipe,
    Refusal,
    XgrRecipe,
    as_error,
    may_be_regular,
    needs_tables,
)
from branchwork.runtime.grammar.vocabulary import Vocabulary
from branchwork.runtime.grammar.worker import read_frame, write_frame

START_SECONDS = 60.0  # for a worker to import what it needs on a very busy machine
_ERROR_SECONDS = 30.0  # errors are remembered so long: the same request may come again at once, or be mended later
_ERROR_BYTES = 1024  # what an error counts in the memory of what was compiled

log = logging.getLogger(__name__)


class Died(msgspec.Struct, frozen=True):
    """The worker ended in the middle of a job. killed: by someone's SIGKILL, not by what it did."""

    how: str
    killed: bool


class Late(msgspec.Struct, frozen=True):
    """The job was not done in time; its worker was killed."""

    seconds: float


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

    def ask(self, job: bytes, seconds: float) -> Answer | Died | Late:
        """One job. After Died or Late this process is gone."""
        assert self._process.stdin is not None
        try:
            if not self._ready:
                if self._answers.get(timeout=START_SECONDS) is None:
                    return self._died()
                self._ready = True
            write_frame(self._process.stdin, job)
            frame = self._answers.get(timeout=seconds)
        except BrokenPipeError:
            return self._died()
        except queue.Empty:
            self.end()
            return Late(seconds if self._ready else START_SECONDS)
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

    def ask(self, job: Job, seconds: float) -> Answer | Died | Late:
        """Within a task: blocks for at most `seconds` of work. A job whose worker was killed from outside is given to
        another one, once."""
        data = msgspec.msgpack.encode(job)
        result = self._ask(data, seconds)
        if isinstance(result, Died) and result.killed and not self._closed:
            log.warning("a compile worker was killed; its job is given to another")
            result = self._ask(data, seconds)
        return result

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

    def _ask(self, job: bytes, seconds: float) -> Answer | Died | Late:
        with self._lock:
            if self._closed:
                return Died("with the pool", False)
            process = self._idle.pop() if self._idle else Process(self.memory)
            self._busy.add(process)
        result: Answer | Died | Late | None = None
        try:
            result = process.ask(job, seconds)
        finally:
            with self._lock:
                self._busy.discard(process)
                if result is not None and not isinstance(result, Died | Late):
                    self._idle.append(process)
        return result


class Compiler:
    """Grammars over one vocabulary: cached, compiled once however many ask, never in the caller's thread. Thread-safe.

    Bounded per constraint by options.dfa_seconds + options.seconds of a worker; more than `workers` at a time queue.
    """

    def __init__(
        self, vocabulary: Vocabulary, options: Options | None = None, workers: int = 2, pool: Pool | None = None
    ) -> None:
        self.vocabulary, self.options = vocabulary, options or Options()
        self._owns = pool is None
        self._pool = pool or Pool(workers, self.options.memory)
        folder = store.default_folder() if self.options.folder == "default" else Path(self.options.folder)
        self._store = store.Store(folder, self.options.folder_bytes) if self.options.folder else None
        self._known: store.Recent[Grammar | tuple[ConstraintError, float]] = store.Recent(self.options.kept)
        self._under_way: dict[bytes, Future[Grammar | ConstraintError]] = {}
        self._asked: set[bytes] = set()  # by get(): these go to poll()
        self._ready: deque[tuple[Constraint, Grammar | ConstraintError]] = deque()
        self._lock = threading.Lock()
        self._bell: tuple[int, int] | None = None  # a pipe, once someone wants to wait for it

    def get(self, constraint: Constraint) -> Grammar | ConstraintError | None:
        """What is known of it; None while it is being compiled, from now on if need be (then poll() will have it)."""
        name = msgspec.msgpack.encode(constraint)
        with self._lock:
            found = self._find(name)
            if found is None:
                self._asked.add(name)
                self._begin(name, constraint)
            return found

    def wait(self, constraint: Constraint) -> Grammar:
        """The grammar, however long it takes (that is bounded). Raises ConstraintError."""
        name = msgspec.msgpack.encode(constraint)
        with self._lock:
            result = self._find(name)
            future = None if result is not None else self._begin(name, constraint)
        if future is not None:
            result = future.result()
        if isinstance(result, ConstraintError):
            raise result.with_traceback(None)
        assert result is not None
        return result

    def poll(self) -> list[tuple[Constraint, Grammar | ConstraintError]]:
        """What get() asked for and has become ready since the last call."""
        with self._lock:
            if self._bell is not None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._bell[0], 4096)
            found, self._ready = list(self._ready), deque()
        return found

    def fileno(self) -> int:
        """Readable when poll() has something."""
        with self._lock:
            if self._bell is None:
                self._bell = os.pipe()
                for end in self._bell:
                    os.set_blocking(end, False)
                if self._ready:
                    os.write(self._bell[1], b"!")
        return self._bell[0]

    def prepare(self) -> None:
        """Start a worker and the engines' forms of the vocabulary ahead of the first request. Takes seconds."""
        self._pool.start()
        compiled.prepare(self.vocabulary)

    def close(self) -> None:
        """End the workers, unless the pool is shared. What is under way ends in an error."""
        if self._owns:
            self._pool.close()
        with self._lock:
            bell, self._bell = self._bell, None
        for end in bell or ():
            os.close(end)

    def _find(self, name: bytes) -> Grammar | ConstraintError | None:
        found = self._known.get(name)
        if isinstance(found, tuple):
            error, until = found
            if time.monotonic() < until:
                return error
            self._known.drop(name)
            return None
        return found

    def _begin(self, name: bytes, constraint: Constraint) -> Future[Grammar | ConstraintError]:
        future = self._under_way.get(name)
        if future is None:
            future = self._under_way[name] = Future()
            self._pool.do(partial(self._make, name, constraint))
        return future

    def _make(self, name: bytes, constraint: Constraint) -> None:
        result: Grammar | ConstraintError
        kept: Grammar | tuple[ConstraintError, float]
        try:
            result, size = self._compile(constraint)
            kept = result
        except Exception as error:
            if isinstance(error, ConstraintError):
                result, size = error, _ERROR_BYTES
            else:  # a fault of ours must reach who waits, and not end this thread
                log.exception("compiling a constraint failed")
                result, size = ConstraintError(f"compiling failed: {error!r}"), _ERROR_BYTES
            kept = result, time.monotonic() + _ERROR_SECONDS
        with self._lock:
            self._known.put(name, kept, size)
            future = self._under_way.pop(name)
            if name in self._asked:
                self._asked.discard(name)
                self._ready.append((constraint, result))
                if self._bell is not None:
                    with contextlib.suppress(BlockingIOError):  # full: it is readable already
                        os.write(self._bell[1], b"!")
        future.set_result(result)

    def _compile(self, constraint: Constraint) -> tuple[Grammar, int]:
        began = time.perf_counter()
        recipe = self._stored(constraint)
        fresh = recipe is None
        if recipe is None:
            recipe = self._prepare(constraint)
        grammar = compiled.realise(recipe, constraint, self.vocabulary, self.options)
        seconds = time.perf_counter() - began if fresh else 0.0
        return compiled.finish(grammar, recipe, constraint, self.vocabulary, seconds), compiled.size(recipe)

    def _store_name(self, constraint: Constraint) -> str:
        chosen = msgspec.structs.replace(self.options, kept=0, mask_bytes=0, folder="", folder_bytes=0)
        parts = (msgspec.msgpack.encode(constraint), msgspec.msgpack.encode(chosen), compiled.versions())
        return store.key(*parts)

    def _stored(self, constraint: Constraint) -> Recipe | None:
        data = self._store.get(self._store_name(constraint)) if self._store is not None else None
        if data is None:
            return None
        try:
            recipe: Recipe = msgspec.msgpack.decode(data, type=Recipe)
            return recipe
        except msgspec.DecodeError as error:  # written by a version that says it is this one
            log.warning("a stored grammar cannot be read and is made anew: %s", error)
            return None

    def _prepare(self, constraint: Constraint) -> Recipe:
        """The stages in order of preference, each within its limits. What a busy machine may have decided (a deadline
        missed) is not stored."""
        backend = self.options.backend
        recipe: Recipe | None = None
        why = Declined("a part of it is not regular")
        if backend in ("auto", "dfa") and may_be_regular(constraint):
            found = self._stage("dfa", constraint, self.options.dfa_seconds)
            if isinstance(found, Declined):
                why = found
            else:
                recipe = found
        storable = not why.late
        if recipe is None and backend == "dfa":
            raise TooBig(f"the constraint cannot be a DFA: {why.reason}")
        if recipe is None and backend in ("auto", "llguidance"):
            recipe = self._fallback(constraint)
        if recipe is None:
            recipe = XgrRecipe("asked for")
        if needs_tables(constraint):
            leaves = self._pool.ask(Job("leaves", constraint, self.options), self.options.dfa_seconds)
            if isinstance(leaves, LeafTables):
                recipe = msgspec.structs.replace(recipe, leaves=leaves.tables)
            else:
                storable = False
        if storable and self._store is not None:
            self._store.put(self._store_name(constraint), msgspec.msgpack.encode(recipe))
        return recipe

    def _fallback(self, constraint: Constraint) -> Recipe:
        """llguidance's recipe; xgrammar's where it is there and llguidance refuses."""
        try:
            found = self._stage("llguidance", constraint, self.options.seconds)
        except ConstraintError as error:
            if self.options.backend == "auto" and compiled.xgrammar_may(constraint, error):
                return XgrRecipe(str(error))
            raise
        if isinstance(found, Declined):
            raise TooBig(found.reason)
        return found

    def _stage(self, stage: str, constraint: Constraint, seconds: float) -> DfaRecipe | LlgRecipe | Declined:
        """One stage in a worker; a limit passed is Declined, with the limit. Raises ConstraintError."""
        match self._pool.ask(Job(stage, constraint, self.options), seconds):
            case Late(seconds):
                return Declined(f"compiling it takes more than {seconds:g} s", late=True)
            case Died(how):
                memory = self._pool.memory / 2**20
                return Declined(f"its compile worker, which may take {memory:,.0f} MiB, ended {how}", late=True)
            case Refusal(code=TooBig.code, message=message):
                return Declined(message)
            case Refusal() as refusal:
                raise as_error(refusal)
            case Fault(traceback):
                raise ConstraintError(f"compiling failed: {traceback}")
            case LeafTables():
                raise AssertionError(stage)
            case found:
                return found
