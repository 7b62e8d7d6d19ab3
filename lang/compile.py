"""A program as a template: made once per combination of the arguments that are not text, run with texts alone.

Knows: traces, passes, states. Must not know: how a body is observed, sockets.
One message starts a whole run, so nothing is asked back between two gens; a body that computes on text is run as ever.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, ParamSpec, TypeVar, overload

from branchwork.lang import ir, passes
from branchwork.lang.arguments import TEXT, NoKey, frozen, replaced
from branchwork.lang.asked import options_of
from branchwork.lang.backend import Backend
from branchwork.lang.batch import Crew, finished, planned, run_rows
from branchwork.lang.default import default_backend
from branchwork.lang.live import LiveProgram
from branchwork.lang.machine import Program
from branchwork.lang.params import merge
from branchwork.lang.protocol import ChatFrames, ModelInfo
from branchwork.lang.state import ProgramState
from branchwork.lang.symbols import Argument, Part, Variable
from branchwork.lang.trace import Item, OnBranch, Spelled, Traced, rebuilt, trace

if TYPE_CHECKING:
    import inspect

    from branchwork.lang.function import Function, Invocation

P = ParamSpec("P")
R = TypeVar("R")
KEPT = 64  # templates of one program; further combinations of arguments run uncompiled
WIDTH = 256  # rows of a batch under way


class Specialised(NamedTuple):
    """One template and what belongs to it. template: None where the body could not be compiled, which `note` explains.

    position: where the nodes of the trace are in the template.
    """

    traced: Traced
    template: ir.Template | None
    position: Mapping[int, int]
    note: str = ""


class Compiled(Generic[P, R]):
    """A program that the backend runs as a whole, where that can be; otherwise exactly the program as it is.

    notes: the lines because of which runs so far were uncompiled after all, and before any run because of which one
    with every argument as text would be; empty when there are none. What goes wrong in a run is raised on reading, as
    with a body that reads nothing itself.
    """

    def __init__(
        self,
        function: Function[P, R],
        *,
        backend: Backend | None = None,
        drop_unread: bool = False,
        keep: frozenset[str] = frozenset(),
        tidy: bool = True,
    ) -> None:
        """The arguments are those of Function.compile; without `tidy` no pass is made over the templates."""
        self.function = function
        self._backend = backend
        self._drop_unread, self._keep, self._tidy = drop_unread, keep, tidy
        self._known: dict[Any, Specialised] = {}
        self._ran: dict[str, None] = {}  # notes of runs, "" for those that were compiled
        self._lock = threading.RLock()  # a body may compile, or run, another program
        self._first = self._of_signature()

    # --- looking

    @property
    def notes(self) -> tuple[str, ...]:
        notes = list(self._ran) or ([] if self._first is None else [self._first.note])
        return tuple(note for note in notes if note)

    @property
    def compiled(self) -> bool:
        """Whether `notes` is empty."""
        return not self.notes

    @property
    def template(self) -> ir.Template | None:
        """The template with every argument as text; None where the body cannot be compiled so."""
        return None if self._first is None else self._first.template

    @property
    def prefix(self) -> str:
        """The text that every run begins with, in the chat template of the backend given to compile()."""
        return self._prefix_on(self._backend)

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", "program")
        if self.notes:
            return f"<{name}: not compiled: " + "; ".join(self.notes) + ">"
        template = self.template
        size = "" if template is None else f"{len(template.nodes)} nodes on {template.branches} branches, "
        arguments = () if template is None else template.arguments
        return f"<{name}: compiled, {size}arguments {', '.join(arguments) or 'none'}>"

    # --- running

    @overload
    def run(self, *args: P.args, **options: P.kwargs) -> ProgramState[R]: ...
    @overload
    def run(self, *args: Any, **options: Any) -> ProgramState[R]: ...
    def run(self, *args: Any, **options: Any) -> ProgramState[R]:
        """Begin a run and return its state at once. Arguments and options are those of Function.run."""
        invocation = self.function.invoke(args, options)
        begin = self._beginning(invocation)
        return self._noting(self.function.run(*args, **options), invocation) if begin is None else begin()

    __call__ = run

    @overload
    def stream(self, *args: P.args, **options: P.kwargs) -> ProgramState[R]: ...
    @overload
    def stream(self, *args: Any, **options: Any) -> ProgramState[R]: ...
    def stream(self, *args: Any, **options: Any) -> ProgramState[R]:
        """run(stream=True): then read the state's text_iter or text_async_iter."""
        invocation = self.function.invoke(args, options)._replace(stream=True)
        begin = self._beginning(invocation)
        return self._noting(self.function.stream(*args, **options), invocation) if begin is None else begin()

    @overload
    async def arun(self, *args: P.args, **options: P.kwargs) -> ProgramState[R]: ...
    @overload
    async def arun(self, *args: Any, **options: Any) -> ProgramState[R]: ...
    async def arun(self, *args: Any, **options: Any) -> ProgramState[R]:
        """Run to the end of generation on the caller's loop. Cancelling the task cancels the run.

        Raises what went wrong on any branch that was not given up on.
        """
        invocation = await self.function.invoke(args, options).with_backend()
        begin = self._beginning(invocation)
        if begin is None:
            return self._noting(await self.function.arun(*args, **options), invocation)
        state = begin()
        try:
            await state.live.wait_async(lambda: state.live.machine.idle)
        except asyncio.CancelledError:
            state.live.cancel()
            raise
        finished(state)
        return state

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
        """Function.run_batch without a thread per row. num_threads: rows under way at once, "auto" is 256."""
        plan = planned(batch, num_threads, WIDTH, progress_bar, generator_style, return_exceptions)
        self.function.check_rows(batch, options)

        def begin(crew: Crew, row: Mapping[str, Any] | Sequence[Any]) -> Future[ProgramState[Any] | None]:
            invocation = self.function.invoke_row(row, options)
            beginning = self._beginning(invocation)
            if beginning is None:
                return crew.perform(lambda: self._noting(invocation.begin(), invocation), invocation.perform)
            return crew.watch(beginning)

        results = run_rows(batch, begin, plan)
        return results if generator_style else list(results)

    def warm(self, backend: Backend | None = None) -> str:
        """Let the runtime compute the text that every run begins with, and wait for it; that text.

        Costs one token. Only a runtime keeps KV, so on any other backend nothing is sent.
        """
        on = backend or self._backend or default_backend()
        text = self._prefix_on(on)
        if text and isinstance(on.model, ModelInfo):
            live = LiveProgram(on)
            last = merge({"max_tokens": 1, "temperature": 0.0, "ignore_eos": True})
            nodes = [*(item.node for item in self._shared()), ir.Gen(None, params=last)]
            live.lay(0, nodes, "warm()")
            live.end()
            live.wait(lambda: live.machine.idle)
            finished(ProgramState(live))
        return text

    # --- inside

    def _of_signature(self) -> Specialised | None:
        """The template with every argument without a value as text; None where an annotation says that one is not."""
        given = {}
        for name, parameter in self.function.parameters.items():
            if name not in self.function.bound and parameter.default is parameter.empty:
                if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    continue
                if parameter.annotation not in (parameter.empty, str, "str", Any, "Any"):
                    return None
                given[name] = ""
        return self._specialised(self.function.invoke((), given))[0]

    def _specialised(self, invocation: Invocation) -> tuple[Specialised, list[str]]:
        """The template for the arguments of one run, and the texts to fill in."""
        texts: list[str] = []
        names: list[str] = []

        def collect(name: str, text: str) -> Any:
            names.append(name)
            texts.append(text)
            return TEXT

        shape = self._with_texts(invocation.arguments, collect)
        try:
            key = (frozen(shape.arguments), frozen(invocation.knobs))
        except NoKey as no:
            return Specialised(
                Traced(()), None, {}, f"an argument is a {no}, of which nobody can tell if it is the same"
            ), texts
        with self._lock:
            if key not in self._known:
                if len(self._known) >= KEPT:
                    note = f"there are more than {KEPT} combinations of arguments that are not text"
                    return Specialised(Traced(()), None, {}, note), texts
                self._known[key] = self._made(invocation, names)
            return self._known[key], texts

    def _made(self, invocation: Invocation, names: Sequence[str]) -> Specialised:
        def make(symbol: Callable[[str], str]) -> tuple[Sequence[Any], Mapping[str, Any]]:
            arguments = self._with_texts(invocation.arguments, lambda name, text: symbol(name))
            return arguments.args[1:], arguments.kwargs

        traced = trace(invocation.body, make, invocation.knobs)
        if traced.note:
            return Specialised(traced, None, {}, traced.note)
        items: Sequence[Item] = traced.items
        if self._tidy:
            items = passes.with_joined_literals(passes.without_empty_text(items))
        if self._drop_unread:
            items = passes.without_unread(items, self._keep | _read(traced.returned))
        template, position = passes.assembled(items, names, traced.branches)
        return Specialised(traced, template, position)

    def _with_texts(self, arguments: inspect.BoundArguments, text: Callable[[str, str], Any]) -> inspect.BoundArguments:
        """The arguments with each text, and each of a list of texts, replaced; not those that are fixed."""
        made = copy.copy(arguments)
        made.arguments = dict(arguments.arguments)
        for name, value in list(made.arguments.items())[1:]:  # the first is the state
            parameter = self.function.parameters[name]
            if name in self.function.bound and self.function.bound[name] is value:
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                made.arguments[name] = {key: replaced(key, item, text) for key, item in value.items()}
            else:
                made.arguments[name] = replaced(name, value, text)
        return made

    def _beginning(self, invocation: Invocation) -> Callable[[], ProgramState[R]] | None:
        """What begins a run as a whole; None where it cannot be one."""
        invocation = invocation.settled()
        found, texts = self._specialised(invocation)
        template = found.template
        self._ran[found.note] = None
        if template is None:
            return None

        def begin() -> ProgramState[R]:
            backend = invocation.on_backend()
            for placed in template.nodes:
                backend.accept(placed.node)
            _check_texts(template, texts)
            live = LiveProgram(backend, invocation.stream, invocation.budget, invocation.speculate)
            for number, value in found.traced.objects.items():
                live.machine.objects[found.position[number]] = rebuilt(value, lambda leaf: leaf)
            live.start(template, texts)
            live.end()
            return _CompiledState(live, found, texts, invocation.knobs)

        return begin

    def _noting(self, state: ProgramState[R], invocation: Invocation) -> ProgramState[R]:
        """A state whose program was not compiled says why."""
        state.live.notes.append(f"not compiled: {self._specialised(invocation)[0].note}")
        return state

    def _shared(self) -> list[Item]:
        found = self._first or next(iter(self._known.values()), None)
        return [] if found is None else passes.prefix_of(passes.without_empty_text(found.traced.items))

    def _prefix_on(self, backend: Backend | None) -> str:
        program = Program(ChatFrames() if backend is None else backend.frames)
        program.feed(0, [ir.Laid(number, item.node) for number, item in enumerate(self._shared())])
        program.advance()
        return program.branch(0).text


class _CompiledState(ProgramState[R]):
    """The state of a run of a template: what the body would return is put together when it is read."""

    def __init__(
        self, live: LiveProgram, found: Specialised, texts: Sequence[str], knobs: Mapping[str, Any], branch: int = 0
    ) -> None:
        super().__init__(live, branch, knobs)
        self._found, self._texts = found, texts
        self._last = len(live.records) - 1

    @property
    def ret_value(self) -> R:
        """What the program's function returns; waits for the variables in it, and raises what went wrong in them."""
        value: R = rebuilt(self._found.traced.returned, self._leaf)
        return value

    def _leaf(self, leaf: Any) -> Any:
        match leaf:
            case Spelled(parts):
                return "".join(map(self._spell, parts))
            case OnBranch(0):
                return self
            case OnBranch(branch):
                return _CompiledState(self.live, self._found, self._texts, self._knobs, branch)
        return leaf

    def _spell(self, part: Part) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Argument):
            return self._texts[part.number]
        node = self._found.position[part.node]
        return str(self._value_when_settled(node, part.name))

    def _value_when_settled(self, node: int, name: str) -> Any:
        self.live.wait(lambda: self.live.machine.settled(node, name))
        return self._value(node, name)


def _read(returned: Any) -> frozenset[str]:
    """Names of the variables in what a body returns."""
    names: set[str] = set()

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Spelled):
            names.update(part.name for part in leaf.parts if isinstance(part, Variable))
        return leaf

    rebuilt(returned, note)
    return frozenset(names)


def _check_texts(template: ir.Template, texts: Sequence[str]) -> None:
    """Raises ValueError for texts that cannot be sent, and choices that are empty or alike once they stand in them."""
    for text in texts:
        ir.sendable(text)
    if not any(isinstance(placed.node, ir.Select) and placed.node.fills for placed in template.nodes):
        return
    for _, laid in ir.filled(template.nodes, texts):
        if isinstance(laid.node, ir.Select):
            try:
                options_of(laid.node.choices)
            except ValueError as error:
                raise ValueError(f"{error} [{template.sources[laid.id]}]") from None
