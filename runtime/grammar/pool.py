"""The compiler that an engine's loop asks without ever waiting for it.

Knows: caches, which stage follows which and its limits. Must not know: requests, what a stage does.

    get(constraint) --> in memory? -> Grammar | ConstraintError
                   `--> under way? -> None
                   `--> thread: on disk? | worker: dfa (1 s) -> worker: llguidance (10 s)
                                          `--> over the vocabulary --> poll()
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import msgspec

from branchwork.lang.constraint import Constraint, ConstraintError, TooBig
from branchwork.runtime.grammar import compiled, store, walk
from branchwork.runtime.grammar.matcher import Grammar
from branchwork.runtime.grammar.processes import Died, Late, Outcome, Pool
from branchwork.runtime.grammar.recipe import (
    Declined,
    Fault,
    Job,
    LeafTables,
    Options,
    Recipe,
    Refusal,
    XgrRecipe,
    as_error,
    may_be_regular,
    needs_tables,
)
from branchwork.runtime.grammar.vocabulary import Vocabulary

_ERROR_SECONDS = 30.0  # errors are remembered so long: the same request may come again at once, or be mended later
_FILL_SECONDS = 0.05  # for masks made ahead, by a thread for which nothing waits
_ERROR_BYTES = 1024  # what an error counts in the memory of what was compiled

log = logging.getLogger(__name__)


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
        self._masks = walk.Masks(self.options.mask_bytes)
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
        if isinstance(result, compiled.Compiled):
            until = time.monotonic() + _FILL_SECONDS
            result.fill(lambda: not self._pool.waiting and time.monotonic() < until)

    def _compile(self, constraint: Constraint) -> tuple[Grammar, int]:
        began = time.perf_counter()
        recipe = self._stored(constraint)
        fresh = recipe is None
        if recipe is None:
            recipe = self._prepare(constraint)
        grammar = compiled.realise(recipe, constraint, self.vocabulary, self._masks)
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
        why, following = Declined("a part of it is not regular"), None
        if backend in ("auto", "dfa") and may_be_regular(constraint):
            job = Job("dfa", constraint, self.options, "llguidance" if backend == "auto" else "")
            first, following = self._pool.ask(job, self.options.dfa_seconds, self.options.seconds if job.then else 0.0)
            found = self._read(first)
            if isinstance(found, Declined):
                why = found
            else:
                recipe = found
        storable = not why.late
        if recipe is None and backend == "dfa":
            raise TooBig(f"the constraint cannot be a DFA: {why.reason}")
        if recipe is None and backend in ("auto", "llguidance"):
            recipe = self._fallback(constraint, following)
        if recipe is None:
            recipe = self._xgrammar(constraint)
        storable = storable and not isinstance(recipe, XgrRecipe)  # it is good for one vocabulary only
        if needs_tables(constraint):
            leaves, _ = self._pool.ask(Job("leaves", constraint, self.options), self.options.dfa_seconds)
            if isinstance(leaves, LeafTables):
                recipe = msgspec.structs.replace(recipe, leaves=leaves.tables)
            else:
                storable = False
        if storable and self._store is not None:
            self._store.put(self._store_name(constraint), msgspec.msgpack.encode(recipe))
        return recipe

    def _fallback(self, constraint: Constraint, found: Outcome | None) -> Recipe:
        """llguidance's recipe, perhaps `found` already; xgrammar's where it is there and llguidance refuses."""
        if found is None:
            found, _ = self._pool.ask(Job("llguidance", constraint, self.options), self.options.seconds)
        try:
            recipe = self._read(found)
        except ConstraintError as error:
            if self.options.backend != "auto" or not compiled.xgrammar_may(constraint, error):
                raise
            try:
                return self._xgrammar(constraint)
            except ConstraintError as other:
                log.info("xgrammar does not take it either: %s", other)
                raise error from None
        if isinstance(recipe, Declined):
            raise TooBig(recipe.reason)
        return recipe

    def _xgrammar(self, constraint: Constraint) -> Recipe:
        job = Job("xgrammar", constraint, self.options, tokens=compiled.tokens(self.vocabulary))
        found, _ = self._pool.ask(job, self.options.seconds)
        recipe = self._read(found)
        if isinstance(recipe, Declined):
            raise TooBig(recipe.reason)
        return recipe

    def _read(self, outcome: Outcome) -> Recipe | Declined:
        """What a stage gave; a limit passed is Declined, with the limit. Raises ConstraintError."""
        match outcome:
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
                raise AssertionError("a stage's answer to another stage")
            case found:
                return found
