"""`@function`: a Python function as a program, and the ways to run it.

Knows: signatures, knobs as run-level defaults, worker threads for bodies. Must not know: sockets, nodes.
A `def` body that waits for a value needs a thread; an `async def` body, and waiting for generation itself, never does.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Concatenate, Generic, Literal, NamedTuple, ParamSpec, Protocol, TypeVar, cast, overload

from branchwork.lang import loop
from branchwork.lang.backend import Backend, meant
from branchwork.lang.batch import Crew, finished, planned, run_rows
from branchwork.lang.budget import checked
from branchwork.lang.compile import Compiled
from branchwork.lang.default import chosen, default_backend
from branchwork.lang.expr import KNOB_NAMES, knobs_of
from branchwork.lang.live import LiveProgram
from branchwork.lang.protocol import Budget, ModelInfo
from branchwork.lang.state import ProgramState
from branchwork.lang.symbols import current, refuse

P = ParamSpec("P")
R = TypeVar("R")
RUN_OPTIONS = frozenset({"backend", "stream", "budget", "use_thread"})  # use_thread: SGLang's, without effect
BODIES = min(64, 16 * (os.cpu_count() or 1))  # threads for the `def` bodies of arun

when_done: Callable[[ProgramState[Any]], object] | None = None  # hears of every run whose body has returned


@functools.lru_cache(maxsize=1)
def _bodies() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(BODIES, thread_name_prefix="branchwork-body")


os.register_at_fork(after_in_child=_bodies.cache_clear)


class Invocation(NamedTuple):
    """One run, its arguments sorted out: the body waits only for its state.

    arguments: by name, defaults not among them. stream: text comes piece by piece, the body runs in its own thread.
    """

    body: Callable[..., Any]
    arguments: inspect.BoundArguments
    knobs: dict[str, Any]
    backend: Backend | None
    stream: bool
    budget: Budget | None
    speculate: int | None

    def on_backend(self) -> Backend:
        return self.backend or default_backend()

    async def with_backend(self) -> Invocation:
        """With a backend to run on; only where the default one has yet to be started, a thread does that."""
        if self.backend is None and chosen() is None:
            return self._replace(backend=await asyncio.get_running_loop().run_in_executor(None, default_backend))
        return self._replace(backend=self.on_backend())

    def begin(self) -> ProgramState[Any]:
        """Raises BackendError when the backend cannot take it."""
        settled = self.settled()
        live = LiveProgram(settled.on_backend(), self.stream, self.budget, self.speculate)
        return ProgramState(live, knobs=settled.knobs)

    def settled(self) -> Invocation:
        """With the backend it runs on, whose model's own knobs hold where none were given."""
        backend = self.on_backend()
        model = backend.model
        defaults = model.knobs if isinstance(model, ModelInfo) else {}
        return self._replace(backend=backend, knobs={**defaults, **self.knobs})

    def perform(self, state: ProgramState[Any]) -> None:
        """Run the body in this thread. What it raises also stops the program."""
        live = state.live
        live.body.thread = threading.get_ident()
        try:
            value = self._value(state)
            if inspect.isawaitable(value):
                value = asyncio.run(_await(value))
        except BaseException as error:
            live.end(error=error)
            raise
        live.end(value)
        if when_done is not None:
            when_done(state)

    async def perform_async(self, state: ProgramState[Any]) -> None:
        """Run an `async def` body on the caller's loop."""
        try:
            value = await self._value(state)
        except BaseException as error:
            state.live.end(error=error)
            raise
        state.live.end(value)

    def perform_apart(self, state: ProgramState[Any]) -> None:
        """Start the body in a thread of its own; what it raises reaches whoever reads from the state."""
        started = threading.Event()

        def work() -> None:
            state.live.body.thread = threading.get_ident()
            started.set()
            with suppress(BaseException):  # kept in state.live.body.error
                self.perform(state)

        threading.Thread(target=work, name="branchwork-stream", daemon=True).start()
        started.wait()

    def _value(self, state: ProgramState[Any]) -> Any:
        return self.body(state, *self.arguments.args[1:], **self.arguments.kwargs)


async def _await(value: Awaitable[Any]) -> Any:
    return await value


class Function(Generic[P, R]):
    """A program. Its own parameters come first; names that are not among them are knobs or run options.

    Options of every way to run: arguments of the program by name; knobs (lang.params.SamplingParams) as defaults
    that each gen may override; backend=, what executes the program; budget=, what the whole program may use.
    num_api_spec_tokens: tokens of one call with which a hosted API may answer several gens of a turn; None for none.
    """

    def __init__(
        self,
        body: Callable[..., Any],
        bound: Mapping[str, Any] | None = None,
        num_api_spec_tokens: int | None = None,
    ) -> None:
        signature = inspect.signature(body)
        parameters = list(signature.parameters.values())
        if not parameters or parameters[0].name != "s":
            raise TypeError(f"the first parameter of program {_name(body)!r} must be named s (its state)")
        if num_api_spec_tokens is not None and num_api_spec_tokens < 1:
            raise ValueError(f"num_api_spec_tokens must be at least 1 or None, got {num_api_spec_tokens!r}")
        self.body = body
        self.bound = dict(bound or {})
        self.num_api_spec_tokens = num_api_spec_tokens
        self.parameters = {p.name: p for p in parameters[1:]}
        self.signature = signature
        functools.update_wrapper(self, body)

    def bind(self, **arguments: Any) -> Function[..., R]:
        """The same program with some arguments fixed."""
        unknown = [name for name in arguments if name not in self.parameters and not self._takes_any()]
        if unknown:
            raise TypeError(f"{_name(self.body)} has no parameters {unknown} to bind; it has {list(self.parameters)}")
        return Function(self.body, self.bound | arguments, self.num_api_spec_tokens)

    @overload
    def run(self, *args: P.args, **options: P.kwargs) -> ProgramState[R]: ...
    @overload
    def run(self, *args: Any, **options: Any) -> ProgramState[R]: ...
    def run(self, *args: Any, **options: Any) -> ProgramState[R]:
        """Run the body in this thread and return its state; with stream=True in another one, returning at once.

        Generation may go on after the return: reading from the state waits, and raises what went wrong.
        """
        invocation = self.invoke(args, options)
        if inspect.iscoroutinefunction(self.body) and not invocation.stream and loop.runs_here():
            raise RuntimeError(f"an event loop runs here; use `await {_name(self.body)}.arun(...)`")
        state = invocation.begin()
        if invocation.stream:
            invocation.perform_apart(state)
        else:
            invocation.perform(state)
        return state

    __call__ = run

    @overload
    def stream(self, *args: P.args, **options: P.kwargs) -> ProgramState[R]: ...
    @overload
    def stream(self, *args: Any, **options: Any) -> ProgramState[R]: ...
    def stream(self, *args: Any, **options: Any) -> ProgramState[R]:
        """run(stream=True): then read the state's text_iter or text_async_iter."""
        invocation = self.invoke(args, options)._replace(stream=True)
        state = invocation.begin()
        invocation.perform_apart(state)
        return state

    @overload
    async def arun(self, *args: P.args, **options: P.kwargs) -> ProgramState[R]: ...
    @overload
    async def arun(self, *args: Any, **options: Any) -> ProgramState[R]: ...
    async def arun(self, *args: Any, **options: Any) -> ProgramState[R]:
        """Run to the end of generation without blocking the caller's loop.

        An `async def` body runs on that loop, without any thread; `def` bodies run in a bounded pool of threads.
        Cancelling the task cancels the program. Raises what went wrong on any branch that was not given up on.
        """
        here = asyncio.get_running_loop()
        invocation = await self.invoke(args, options).with_backend()
        state = invocation.begin()
        try:
            if inspect.iscoroutinefunction(self.body):
                state.live.body.thread = threading.get_ident()
                await invocation.perform_async(state)
            else:
                await here.run_in_executor(_bodies(), invocation.perform, state)
            await state.live.wait_async(lambda: state.live.machine.idle)
        except asyncio.CancelledError:
            state.live.cancel()
            raise
        return finished(state)

    @overload
    def run_batch(
        self,
        batch: Iterable[Mapping[str, Any] | Sequence[Any]],
        *,
        generator_style: Literal[False] = ...,
        return_exceptions: Literal[False] = ...,
        **options: Any,
    ) -> list[ProgramState[R]]: ...
    @overload
    def run_batch(
        self,
        batch: Iterable[Mapping[str, Any] | Sequence[Any]],
        *,
        generator_style: Literal[True],
        return_exceptions: Literal[False] = ...,
        **options: Any,
    ) -> Iterator[ProgramState[R]]: ...
    @overload
    def run_batch(self, batch: Iterable[Mapping[str, Any] | Sequence[Any]], **options: Any) -> Any: ...
    def run_batch(
        self,
        batch: Iterable[Mapping[str, Any] | Sequence[Any]],
        *,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        return_exceptions: bool = False,
        **options: Any,
    ) -> Any:
        """Run one program per row (a dict of arguments, or a tuple of them); a list of finished states in input order.

        num_threads: rows under way at once, each with a thread for its body; "auto" is max(96, 16 x cores).
        generator_style: an iterator that gives states as they are due and takes rows as it goes, so that its memory
        does not depend on how many there are. A row that fails, on any branch that was not given up on, raises its
        error and stops the rest; with return_exceptions the error stands in its place.
        Raises TypeError for a row that does not fit: of a sequence of rows before anything runs.
        """
        auto = max(96, 16 * (os.cpu_count() or 1))
        plan = planned(batch, num_threads, auto, progress_bar, generator_style, return_exceptions)
        self.check_rows(batch, options)

        def begin(crew: Crew, row: Mapping[str, Any] | Sequence[Any]) -> Future[ProgramState[Any] | None]:
            invocation = self.invoke_row(row, options)
            return crew.perform(invocation.begin, invocation.perform)

        results = run_rows(batch, begin, plan)
        return results if generator_style else list(results)

    def compile(
        self,
        *,
        backend: Backend | None = None,
        drop_unread: bool = False,
        keep: Iterable[str] = (),
        **fixed: Any,
    ) -> Compiled[P, R]:
        """The program as a template that the runtime runs as a whole, without asking back between two gens.

        The body runs now, on symbols in place of texts, with all its side effects; nothing of it runs later. Arguments
        in `fixed` are part of the template, and so is every argument that is not text: there is a template for each
        combination of their values. Where the body computes on a text (a condition on it, len(), strip() ...) it is not
        compiled: it runs as before, and `notes` say which line forbids it.

        backend: what it is going to run on, for the chat template of `prefix`. drop_unread: gens at the end of a branch
        go whose variables are neither read by the program nor in `keep`.
        """
        bound = cast("Function[P, R]", self.bind(**fixed))
        return Compiled(bound, backend=backend, drop_unread=drop_unread, keep=frozenset(keep))

    def trace(self, *, backend: Backend | None = None, **fixed: Any) -> Compiled[P, R]:
        """The same with every node as it was laid: look at its `template` and its `notes`."""
        return Compiled(cast("Function[P, R]", self.bind(**fixed)), backend=backend, tidy=False)

    def cache(self, backend: Backend | None = None) -> str:
        """Send the text that every run begins with, so that the runtime holds its KV; that text. The body is traced."""
        return self.compile(backend=backend).warm()

    # --- arguments

    def check_rows(self, rows: Iterable[Any], options: Mapping[str, Any]) -> None:
        """Raises TypeError for a row that does not fit; rows that can be iterated only once are not looked at."""
        if isinstance(rows, (str, Mapping)):
            raise TypeError(f"a batch is a list of rows, got one {type(rows).__name__}: {rows!r}")
        for row in rows if isinstance(rows, Sequence) else ():
            self.invoke_row(row, options)

    def invoke_row(self, row: Mapping[str, Any] | Sequence[Any], options: Mapping[str, Any]) -> Invocation:
        if isinstance(row, Mapping):
            return self.invoke((), {**options, **row})
        if isinstance(row, str) or not isinstance(row, Iterable):
            raise TypeError(f"a row of a batch is a dict or a tuple of arguments, got {row!r}; write ({row!r},)")
        return self.invoke(tuple(row), options)

    def invoke(self, args: Sequence[Any], options: Mapping[str, Any]) -> Invocation:
        """Sort out who gets which argument. Raises TypeError for one that nobody takes, ValueError for a bad budget."""
        if current.get() is not None:
            refuse("a program runs inside the one that is traced")
        run: dict[str, Any] = {}
        knobs: dict[str, Any] = {}
        named = dict(self.bound)
        for name, value in options.items():
            if name in self.parameters:
                named[name] = value
            elif name in RUN_OPTIONS:
                run[name] = value
            elif name in KNOB_NAMES:
                knobs[name] = value
            elif self._takes_any():
                named[name] = value
            else:
                known = (
                    f"its own: {list(self.parameters)}; run options: {sorted(RUN_OPTIONS)}; knobs: {sorted(KNOB_NAMES)}"
                )
                raise TypeError(f"program {_name(self.body)!r} takes no argument {name!r}; {known}")
        try:
            arguments = self.signature.bind(None, *args, **named)
        except TypeError as error:
            raise TypeError(f"program {_name(self.body)!r}: {error}") from None
        budget = None if run.get("budget") is None else checked(run["budget"])
        stream, backend = bool(run.get("stream")), meant(run.get("backend"))
        return Invocation(self.body, arguments, knobs_of(knobs), backend, stream, budget, self.num_api_spec_tokens)

    def _takes_any(self) -> bool:
        return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self.parameters.values())


def _name(body: Callable[..., Any]) -> str:
    return str(getattr(body, "__name__", repr(body)))


class _Decorator(Protocol):
    """What @function(...) gives."""

    @overload
    def __call__(self, func: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Function[P, R]: ...
    @overload
    def __call__(self, func: Callable[Concatenate[Any, P], R]) -> Function[P, R]: ...


@overload
def function(func: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Function[P, R]: ...
@overload
def function(func: Callable[Concatenate[Any, P], R]) -> Function[P, R]: ...
@overload
def function(*, num_api_spec_tokens: int | None = None) -> _Decorator: ...


def function(func: Callable[..., Any] | None = None, *, num_api_spec_tokens: int | None = None) -> Any:
    """Make a program of a Python function whose first parameter is named s; bare or with arguments.

    num_api_spec_tokens: see Function. Type checkers know the program's own parameters and what its ret_value is.
    """

    def made(body: Callable[..., Any]) -> Function[..., Any]:
        return Function(body, num_api_spec_tokens=num_api_spec_tokens)

    return made if func is None else made(func)
