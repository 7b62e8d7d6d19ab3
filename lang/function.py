"""`@function`: a Python function as a program, and the ways to run it.

Knows: signatures, knobs as run-level defaults, worker threads for bodies. Must not know: sockets, nodes.
A body that waits for a value needs a thread; waiting for generation itself never does.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, overload

from branchwork.lang.backend import Backend
from branchwork.lang.batch import run_rows
from branchwork.lang.expr import KNOB_NAMES, knobs_of
from branchwork.lang.live import LiveProgram
from branchwork.lang.state import ProgramState

RUN_OPTIONS = frozenset({"backend", "stream", "use_thread"})  # use_thread: SGLang's, without effect
BODIES = min(64, 16 * (os.cpu_count() or 1))  # threads for the bodies of arun

_default: Backend | None = None
_default_lock = threading.Lock()


def set_default_backend(backend: Backend | None) -> None:
    """What programs run on when they are not told; None goes back to an embedded runtime started on first use."""
    global _default
    _default = backend


def default_backend() -> Backend:
    """The default backend. With none set, starts a Runtime of the model that ships inside the package."""
    global _default
    with _default_lock:
        if _default is None:
            from branchwork.lang.backends.runtime import Runtime

            _default = Runtime()
        return _default


@functools.lru_cache(maxsize=1)
def _bodies() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(BODIES, thread_name_prefix="branchwork-body")


os.register_at_fork(after_in_child=_bodies.cache_clear)


class Invocation(NamedTuple):
    """One run, its arguments sorted out: the body waits only for its state."""

    body: Callable[[ProgramState], Any]
    knobs: dict[str, Any]
    backend: Backend | None
    apart: bool  # stream=True: the body runs in a thread of its own, text comes piece by piece

    def begin(self) -> ProgramState:
        """Raises BackendError when the backend cannot take it."""
        return ProgramState(LiveProgram(self.backend or default_backend(), stream=self.apart), knobs=self.knobs)

    def perform(self, state: ProgramState) -> None:
        """Run the body in this thread. What it raises also stops the program."""
        live = state.live
        live.body.thread = threading.get_ident()
        try:
            value = self.body(state)
            if inspect.isawaitable(value):
                value = asyncio.run(_await(value))
        except BaseException as error:
            live.end(error=error)
            raise
        live.end(value)

    async def perform_async(self, state: ProgramState) -> None:
        """Run an `async def` body on the caller's loop."""
        try:
            value = await self.body(state)
        except BaseException as error:
            state.live.end(error=error)
            raise
        state.live.end(value)

    def perform_apart(self, state: ProgramState) -> None:
        """Start the body in a thread of its own; what it raises reaches whoever reads from the state."""
        started = threading.Event()

        def work() -> None:
            state.live.body.thread = threading.get_ident()
            started.set()
            with suppress(BaseException):  # kept in state.live.body.error
                self.perform(state)

        threading.Thread(target=work, name="branchwork-stream", daemon=True).start()
        started.wait()


async def _await(value: Awaitable[Any]) -> Any:
    return await value


class Function:
    """A program. Its own parameters come first; names that are not among them are knobs or run options.

    Options of every way to run: arguments of the program by name; knobs (lang.params.SamplingParams) as defaults
    that each gen may override; backend=, what executes the program.
    """

    def __init__(self, body: Callable[..., Any], bound: Mapping[str, Any] | None = None) -> None:
        signature = inspect.signature(body)
        parameters = list(signature.parameters.values())
        if not parameters or parameters[0].name != "s":
            raise TypeError(f"the first parameter of program {body.__name__!r} must be named s (its state)")
        self.body = body
        self.bound = dict(bound or {})
        self.parameters = {p.name: p for p in parameters[1:]}
        self.signature = signature
        functools.update_wrapper(self, body)

    def bind(self, **arguments: Any) -> Function:
        """The same program with some arguments fixed."""
        unknown = [name for name in arguments if name not in self.parameters and not self._takes_any()]
        if unknown:
            raise TypeError(f"{self.body.__name__} has no parameters {unknown} to bind; it has {list(self.parameters)}")
        return Function(self.body, self.bound | arguments)

    def run(self, *args: Any, **options: Any) -> ProgramState:
        """Run the body in this thread and return its state; with stream=True in another one, returning at once.

        Generation may go on after the return: reading from the state waits, and raises what went wrong.
        """
        invocation = self._invoke(args, options)
        if inspect.iscoroutinefunction(self.body) and not invocation.apart and _loop_runs_here():
            raise RuntimeError(f"an event loop runs here; use `await {self.body.__name__}.arun(...)`")
        state = invocation.begin()
        if invocation.apart:
            invocation.perform_apart(state)
        else:
            invocation.perform(state)
        return state

    __call__ = run

    def stream(self, *args: Any, **options: Any) -> ProgramState:
        """run(stream=True): then read the state's text_iter or text_async_iter."""
        invocation = self._invoke(args, options)._replace(apart=True)
        state = invocation.begin()
        invocation.perform_apart(state)
        return state

    async def arun(self, *args: Any, **options: Any) -> ProgramState:
        """Run to the end of generation without blocking the caller's loop; `def` bodies run in a bounded pool.

        Cancelling the task cancels the program. What went wrong in a node is raised on reading, as with run.
        """
        here = asyncio.get_running_loop()
        invocation = self._invoke(args, options)
        state = await here.run_in_executor(_bodies(), invocation.begin)
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
        return state

    def run_batch(
        self,
        batch: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        return_exceptions: bool = False,
        **options: Any,
    ) -> Any:
        """Run one program per row (a dict of arguments, or a tuple of them); a list of finished states in input order.

        num_threads: rows under way at once; "auto" is max(96, 16 x cores). generator_style: an iterator that gives
        states as they are due. A row that fails raises its error and stops the rest; with return_exceptions the error
        stands in its place. Raises TypeError for a row that does not fit before anything runs.
        """
        if num_threads != "auto" and (not isinstance(num_threads, int) or num_threads < 1):
            raise ValueError(f"num_threads must be at least 1 or 'auto', got {num_threads!r}")
        width = max(96, 16 * (os.cpu_count() or 1)) if isinstance(num_threads, str) else num_threads
        invocations = [
            self._invoke((), {**options, **row}) if isinstance(row, Mapping) else self._invoke(tuple(row), options)
            for row in batch
        ]

        def start(index: int) -> tuple[ProgramState, Callable[[], object]]:
            state = invocations[index].begin()
            return state, functools.partial(invocations[index].perform, state)

        ahead = 2 * width if generator_style else len(invocations)
        results = run_rows(len(invocations), start, width, progress_bar, return_exceptions, ahead)
        return results if generator_style else list(results)

    def _takes_any(self) -> bool:
        return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self.parameters.values())

    def _invoke(self, args: Sequence[Any], options: Mapping[str, Any]) -> Invocation:
        """Sort out who gets which argument. Raises TypeError for one that nobody takes."""
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
                raise TypeError(f"program {self.body.__name__!r} takes no argument {name!r}; {known}")
        try:
            self.signature.bind(None, *args, **named)
        except TypeError as error:
            raise TypeError(f"program {self.body.__name__!r}: {error}") from None
        body = functools.partial(_call, self.body, tuple(args), named)
        return Invocation(body, knobs_of(knobs), run.get("backend"), bool(run.get("stream")))


def _call(body: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], s: ProgramState) -> Any:
    return body(s, *args, **named)


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@overload
def function(func: Callable[..., Any]) -> Function: ...
@overload
def function(*, num_api_spec_tokens: int | None = None) -> Callable[[Callable[..., Any]], Function]: ...


def function(
    func: Callable[..., Any] | None = None, *, num_api_spec_tokens: int | None = None
) -> Function | Callable[[Callable[..., Any]], Function]:
    """Make a program of a Python function whose first parameter is named s; bare or with arguments.

    num_api_spec_tokens is taken for the sake of programs written for SGLang; hosted APIs are not sped up by it here.
    """
    return Function if func is None else Function(func)
