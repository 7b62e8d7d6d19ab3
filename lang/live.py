"""The client's half of a running program: what was laid where, what has come back, who waits for it.

Knows: the machine (its own record of every branch), a backend session, source lines. Must not know: the user's syntax.
Lock order: `_laying` (threads of the user only, held while a lay is handed to the session), then `changed`, which
guards everything else; the loop's thread takes only `changed`, so a blocked lay never blocks the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from branchwork.lang import ir, loop
from branchwork.lang.backend import Backend, Chunk, Event, Lost, Sink
from branchwork.lang.constraint import capture_names, optional_captures
from branchwork.lang.errors import ProgramError
from branchwork.lang.machine import Program, Reply
from branchwork.lang.protocol import Budget, Captured, Delta, Done, Failed
from branchwork.lang.transcript import NodeFailed, Value

_OURS = (os.path.dirname(os.path.abspath(__file__)) + os.sep, contextlib.__file__)


def source_line() -> str:
    """The "file:line" of the nearest caller outside this package (and outside contextlib, for `with s.user():`)."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_OURS) and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@dataclass(slots=True)
class Record:
    """One laid node as its author has it, where it was written, and what has come of it so far."""

    branch: int
    node: ir.Node
    source: str
    chunks: list[Chunk] = field(default_factory=list)
    values: tuple[str, ...] = ()  # of a gen or select, as they came
    meta: tuple[dict[str, Any], ...] = ()
    captures: dict[str, Any] = field(default_factory=dict)
    laid_s: float = -1.0  # seconds after the program began; -1: not yet
    done_s: float = -1.0

    def describe(self) -> str:
        name = getattr(self.node, "name", None)
        turn = isinstance(self.node, ir.Gen) and capture_names(self.node.constraint)
        return ("turn" if turn else type(self.node).__name__.lower()) + (f" {name!r}" if name else "")


def _record(branch: int, node: ir.Node, source: str, now: float) -> Record:
    given = node.given if isinstance(node, (ir.Gen, ir.Select)) else None
    if given is None:
        return Record(branch, node, source, laid_s=now)
    return Record(branch, node, source, values=given.values, meta=given.meta, captures=dict(given.captures), laid_s=now)


@dataclass(slots=True)
class Body:
    """The user's function: whether it still runs, in which thread, and what it came to."""

    running: bool = True
    thread: int = field(default_factory=threading.get_ident)
    value: Any = None
    error: BaseException | None = None


class LiveProgram:
    """stream: text is wanted piece by piece. Dropping the last reference cancels what still runs."""

    def __init__(
        self, backend: Backend, stream: bool = False, budget: Budget | None = None, speculate: int | None = None
    ) -> None:
        self.backend = backend  # must not be dropped while a program runs on it
        self.machine = Program(backend.frames, decides=False)
        self.changed = threading.Condition()
        self.began = time.monotonic()
        self.version = 0  # goes up with every change, so that nobody who waits can miss one
        self.records: dict[int, Record] = {}
        self.body = Body()
        self.notes: list[str] = []  # what a reader should know about how this program came about
        self._laying = threading.Lock()
        self._branches = 1
        self._watchers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._pid = os.getpid()
        self._session = backend.open(_weak_sink(self), stream, budget, speculate)
        self._finalizer = weakref.finalize(self, self._session.close)
        self._finalizer.atexit = False

    # --- the user's side

    def new_branches(self, count: int) -> tuple[int, ...]:
        with self.changed:
            first = self._branches
            self._branches += count
        return tuple(range(first, first + count))

    def lay(
        self, branch: int, nodes: Sequence[Any], source: str, objects: Mapping[int, Any] | None = None
    ) -> list[int]:
        """Put nodes on a branch; their numbers. objects: by index in `nodes`, values of SetVar that are not text.

        May block while the backend has too many nodes under way. Raises ProgramError when the program has ended.
        """
        with self._laying:
            with self.changed:
                if not self.body.running:
                    raise ProgramError(
                        "ended", "the program has ended; lay everything inside its function", source=source
                    )
                first = len(self.records)
                laid = [ir.Laid(first + index, ir.bare(node)) for index, node in enumerate(nodes)]
                now = time.monotonic() - self.began
                self.records.update({first + i: _record(branch, node, source, now) for i, node in enumerate(nodes)})
                self.machine.objects.update({first + index: value for index, value in (objects or {}).items()})
                self.machine.feed(branch, laid)
                self._changed()
            try:
                self._session.lay(branch, laid)
            except BaseException as error:
                with self.changed:  # it never left: a reader must not wait for it
                    self.machine.fail_node(branch, first, "not_sent", f"{type(error).__name__}: {error}")
                    self._changed()
                raise
        return [item.id for item in laid]

    def start(self, template: ir.Template, arguments: Sequence[str]) -> None:
        """Begin as a whole: all nodes of a template, in one message. Nothing may have been laid, nor be laid later."""
        with self._laying:
            with self.changed:
                self._branches = template.branches
                now = time.monotonic() - self.began
                for branch, laid in ir.filled(template.nodes, arguments):
                    self.records[laid.id] = _record(branch, laid.node, template.sources[laid.id], now)
                    self.machine.feed(branch, (ir.Laid(laid.id, ir.bare(laid.node)),))
                self._changed()
            self._session.start(template, arguments)

    def cancel(self, branch: int | None = None) -> None:
        with self.changed:
            self.machine.cancel(branch, "cancelled", "it was cancelled before it was done")
            self._changed()
        self._session.cancel(branch)

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        """The user's function has returned, or raised: then everything stops."""
        with self.changed:
            self.body.running, self.body.value, self.body.error = False, value, error
            if error is not None:
                self.machine.close()
            self._changed()
            over = self.machine.idle
        if over:
            self._finalizer()

    # --- waiting

    def wait(self, ready: Callable[[], bool]) -> None:
        """Block this thread until `ready()`, which is asked under the lock after every change."""
        if loop.is_current():
            raise RuntimeError("a value cannot be waited for on the background loop's own thread")
        if os.getpid() != self._pid:
            raise ProgramError("forked", "this program belongs to the process that started it; run it anew in this one")
        with self.changed:
            self.changed.wait_for(ready)

    async def wait_async(self, ready: Callable[[], bool]) -> None:
        """The same for a task of any event loop."""
        here = asyncio.get_running_loop()
        while True:
            with self.changed:
                if ready():
                    return
                turn = here.create_future()
                self._watchers.append((here, turn))
            await turn

    def may_grow(self) -> bool:
        """More nodes may be laid without this thread doing it."""
        return self.body.running and self.body.thread != threading.get_ident()

    def error(self, failure: NodeFailed) -> ProgramError:
        """What to raise for a node that failed."""
        record = self.records.get(failure.node) or Record(failure.branch, ir.Seq(), "")
        root = self.records.get(failure.cause)
        cause = None
        code, message = failure.code, f"{record.describe()} failed: {failure.message}"
        if failure.cause != failure.node and root is not None:
            why = self.machine.branch(root.branch).failure or failure
            cause = ProgramError(
                why.code, f"{root.describe()} failed: {why.message}", node=failure.cause, source=root.source
            )
            if code == "branch_failed":
                message = f"{record.describe()} was not executed because {root.describe()} failed first"
        transcript = self.machine.branch(record.branch).text
        return ProgramError(code, message, node=failure.node, source=record.source, cause=cause, transcript=transcript)

    def read(self, node: int, name: str, value: Value) -> Any:
        """The value that a node gave to a variable, as its author wants it: typed where a type was asked for.

        Raises ProgramError (incomplete) for a text that was cut off before it was such a value.
        """
        record = self.records[node]
        if isinstance(record.node, ir.Join):
            nodes = self.machine.lineage.gathered[node][name]
            if record.node.name == name:  # the text that a majority agrees on
                return self.read(nodes[0], name, value)
            return [self.read(n, name, v) for n, v in zip(nodes, value)]
        if not isinstance(record.node, ir.Gen) or record.node.constraint is None:
            return value
        missing = name != record.node.name and name not in optional_captures(record.node.constraint)
        try:
            return _typed(value, record.node.readers.get(name), missing)
        except (ValueError, RecursionError) as error:
            raise self.incomplete(node, name, value, error) from error

    def incomplete(self, node: int, name: str, value: Value, error: Exception) -> ProgramError:
        """What to raise for a text that is no value of its variable's type, most often since it was cut off."""
        record = self.records[node]
        ends = ", ".join(dict.fromkeys(str(meta.get("finish_reason", "unknown")) for meta in record.meta))
        said = f"{record.describe()} ended (finish_reason: {ends or 'unknown'}) with {_shortened(value)}"
        text = self.machine.branch(record.branch).text
        message = f"{name!r} is not all there: {said}: {error}"
        return ProgramError("incomplete", message, node=node, source=record.source, transcript=text)

    # --- the backend's side

    def _receive(self, event: Event) -> None:
        with self.changed:
            match event:
                case Delta(node=node) if node in self.records:
                    self.records[node].chunks.append(Chunk(event.text, event.meta))
                case Done(node=node) if node in self.records:
                    call = self.machine.under_way(event.branch)
                    if call is not None and call.node == node:
                        record = self.records[node]
                        record.values, record.meta, record.captures = event.values, event.meta, event.captures
                        record.done_s = time.monotonic() - self.began
                        self.machine.reply(call.id, Reply(event.values, event.meta, event.captures))
                case Captured(node=node) if node in self.records:
                    call = self.machine.under_way(event.branch)
                    if call is not None and call.node == node:
                        self.machine.capture(call.id, event.name, event.value)
                case Failed(node=node) if node in self.records:
                    self.machine.fail_node(self.records[node].branch, node, event.code, event.message)
                case Lost(code=code, message=message):
                    self.machine.cancel(None, code, message)
            self._changed()
            over = not self.body.running and self.machine.idle
        if over:
            self._finalizer()

    def _changed(self) -> None:
        """Called with the lock held after anything that somebody may wait for."""
        self.machine.advance()
        self.version += 1
        self.changed.notify_all()
        watchers, self._watchers = self._watchers, []
        for their_loop, turn in watchers:
            if not their_loop.is_closed():
                their_loop.call_soon_threadsafe(_wake, turn)


def _typed(value: Value, read: Callable[[str], Any] | None, missing: bool) -> Any:
    """missing: whether None means that the text ended before it."""
    if isinstance(value, list):
        return [_typed(item, read, missing) for item in value]
    if value is None and missing:
        raise ValueError("the text ended before it")
    return value if value is None or read is None else read(value)


def _shortened(value: Value) -> str:
    """A value as an error may show it: its beginning and its end."""
    shown = repr(value)
    return shown if len(shown) <= 300 else f"{shown[:140]} ... {shown[-140:]}"


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


def _weak_sink(live: LiveProgram) -> Sink:
    """A sink that does not keep the program alive: sessions hold it, and dropping the program must end them."""
    method = weakref.WeakMethod(live._receive)

    def sink(event: Event) -> None:
        receive = method()
        if receive is not None:
            receive(event)

    return sink
