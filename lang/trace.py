"""Running a program's body once on symbols: what it lays becomes a template, or the line that forbids that is named.

Knows: states, symbols, templates. Must not know: backends, how a template is run.
The body runs here, twice, with all its side effects; both runs must lay the same.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
import os
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec

from branchwork.lang import ir, race
from branchwork.lang.backend import Sink
from branchwork.lang.constraint import listed_captures, optional_captures
from branchwork.lang.forks import ForkGroup
from branchwork.lang.instrument import caught_here, holds_symbols, instrumented
from branchwork.lang.live import LiveProgram
from branchwork.lang.protocol import Budget, ChatFrames
from branchwork.lang.state import ProgramState
from branchwork.lang.symbols import (
    Argument,
    Naming,
    Part,
    Symbol,
    Untraceable,
    Variable,
    current,
    refuse,
    refuse_text,
    symbolic,
)

_HOME = os.path.dirname(os.path.abspath(__file__)) + os.sep
Make = Callable[[Callable[[str], str]], tuple[Sequence[Any], Mapping[str, Any]]]


class Item(NamedTuple):
    """A node of a template in the making. number: of the node in the trace, -1 for one that was added."""

    number: int
    branch: int
    node: ir.Sent
    source: str


class Spelled(NamedTuple):
    """A text in what the body returns. parts: known texts, arguments and variables."""

    parts: tuple[Part, ...]


class OnBranch(NamedTuple):
    """A state in what the body returns."""

    branch: int


class Traced(NamedTuple):
    """What a body lays. note: why it is no template (items are those up to that line), "" when it is one.

    objects: by node number in the trace, values of SetVar that are not text. returned: what the body returns, with
    Spelled and OnBranch in it (see `rebuilt`).
    """

    items: tuple[Item, ...]
    branches: int = 1
    objects: Mapping[int, Any] = types.MappingProxyType({})
    returned: Any = None
    note: str = ""


def trace(body: Callable[..., Any], make: Make, knobs: Mapping[str, Any]) -> Traced:
    """make: of a function from an argument's name to its symbol, the arguments of the body after its state.

    Never raises for what the body does: anything that it raises is the note.
    """
    first = _once(body, make, knobs, Naming(width=2))
    if first.note:
        return first
    second = _once(body, make, knobs, Naming(width=17))
    where = _difference(first, second)
    return first._replace(note=where) if where else first


def rebuilt(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A value with its containers made anew and `leaf` applied to everything else."""
    if isinstance(value, (Spelled, OnBranch)):
        return leaf(value)
    if isinstance(value, (list, set, frozenset, tuple)) and not hasattr(value, "_fields"):
        return type(value)(rebuilt(item, leaf) for item in value)
    if isinstance(value, tuple):
        return type(value)(*(rebuilt(item, leaf) for item in value))
    if isinstance(value, dict):
        return {rebuilt(key, leaf): rebuilt(item, leaf) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(made, field.name, rebuilt(getattr(value, field.name), leaf))
        return made
    return leaf(value)


# --- the state that a body is traced on


class _Nobody:
    """A backend on which nothing is ever executed."""

    frames = ChatFrames()
    model = "trace"

    def open(self, sink: Sink, stream: bool, budget: Budget | None = None, speculate: int | None = None) -> _Nobody:
        return self

    def accept(self, node: ir.Node) -> None: ...

    def lay(self, branch: int, nodes: Sequence[ir.Laid]) -> None: ...

    def start(self, template: ir.Template, arguments: Sequence[str]) -> None: ...

    def cancel(self, branch: int | None) -> None: ...

    def close(self) -> None: ...


class _Recording(LiveProgram):
    """Every way to learn how a run goes leads through here."""

    def wait(self, ready: Callable[[], bool]) -> NoReturn:
        refuse("this line waits for what only a run can tell")

    async def wait_async(self, ready: Callable[[], bool]) -> NoReturn:
        refuse("this line waits for what only a run can tell")

    def cancel(self, branch: int | None = None) -> NoReturn:
        refuse("cancelling depends on how far a run is")


class TracedState(ProgramState[Any]):
    """A branch of a program that is traced: its variables are symbols."""

    def __init__(self, live: LiveProgram, naming: Naming, branch: int = 0, **of_state: Any) -> None:
        super().__init__(live, branch, **of_state)
        self._naming = naming

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> ForkGroup:
        group = super().fork(size, position_ids_offset)
        states = [
            TracedState(self.live, self._naming, state._branch, knobs=self._knobs, role=self._role) for state in group
        ]
        return ForkGroup(self, states)

    def get_var(self, name: str) -> Any:
        if symbolic(name):
            refuse_text(name, "the name of a variable")
        if caught_here():
            refuse("an error of this line would be caught, so the body depends on how a run goes")
        return self._symbol(self._definer(name), name, self._branch)

    __getitem__ = get_var

    async def get(self, name: str) -> Any:
        return self.get_var(name)

    def value(self, name: str, kind: type[Any]) -> Any:
        if kind is not str:
            refuse(f"a {kind.__name__} is read from the text of {name!r}, which only a run can tell")
        return self.get_var(name)

    def text_iter(self, *which: Any, **named: Any) -> NoReturn:
        refuse("text comes piece by piece only in a run")

    text_async_iter = partial_iter = partial_async_iter = text_iter

    def __repr__(self) -> NoReturn:
        refuse("repr() of a state shows what only a run can tell")

    def _symbol(self, node: int, name: str, branch: int) -> Any:
        """The value of a variable; a text that is not known yet as its symbol."""
        record = self.live.records[node]
        match record.node:
            case ir.SetVar(value=value):
                value = self.live.machine.objects.get(node, value)
                if not isinstance(value, str) or not symbolic(value):
                    return value
                parts = self._naming.parts(value, record.source)
                if not any(isinstance(part, Variable) for part in parts):  # those may have another value by then
                    return Symbol(value)
            case ir.Gen(constraint=constraint, params=params, readers=readers) if (
                (params is not None and params.n > 1)
                or name in readers
                or (constraint is not None and name in listed_captures(constraint) | optional_captures(constraint))
            ):
                refuse(f"{name!r} is not a plain text")
            case ir.Join(mode="gather_variable"):
                nodes = self.live.machine.lineage.gathered[node][name]
                return [self._symbol(one, name, self.live.records[one].branch) for one in nodes]
            case ir.Join(name=agreed):
                of = self.live.machine.lineage.gathered[node][name]
                if agreed != name or any(name in getattr(self.live.records[one].node, "readers", ()) for one in of):
                    refuse(f"how many values {name!r} has, or of what type, only a run can tell")
        return self._naming.symbol(Variable(branch, name, node), f"variable {name!r}")


# --- one run of the body


def _once(body: Callable[..., Any], make: Make, knobs: Mapping[str, Any], naming: Naming) -> Traced:
    observed = instrumented(body) if isinstance(body, types.FunctionType) else None
    where = getattr(getattr(body, "__code__", None), "co_filename", "?")
    if observed is None:
        return Traced((), note=f"the source of {body!r} cannot be had, so nobody can tell what it computes [{where}]")
    live = _Recording(_Nobody())
    token = current.set(naming)
    returned, why = None, ""
    try:
        numbers = iter(range(1 << 30))
        args, named = make(lambda name: naming.symbol(Argument(next(numbers)), f"argument {name!r}"))
        value = observed(TracedState(live, naming, knobs=knobs), *args, **named)
        if inspect.iscoroutine(value):
            value = _driven(value)
        returned = rebuilt(value, lambda leaf: _returned(leaf, naming))
    except Untraceable as stop:
        why = str(stop)
    except Exception as error:
        why = f"on symbols it raises {type(error).__name__}: {error} [{_line_of(error)}]"
    finally:
        current.reset(token)
    why = str(naming.why) if naming.why is not None else why  # the body may have swallowed it
    try:
        traced = _spelled(live, naming)
    except Untraceable as stop:
        return Traced((), note=why or str(stop))
    return traced._replace(returned=returned, note=why)


def _driven(work: Any) -> Any:
    """Run a coroutine that never has to wait."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    refuse("the body awaits something other than this program")


def _line_of(error: BaseException) -> str:
    """The author's line nearest to where an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_HOME)]
    frame = (theirs or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _returned(leaf: Any, naming: Naming) -> Any:
    if isinstance(leaf, str):
        return Spelled(naming.parts(leaf, "the value that the body returns")) if symbolic(leaf) else leaf
    if leaf is None or isinstance(leaf, (bool, int, float, complex, bytes, enum.Enum, type)):
        return leaf
    if isinstance(leaf, ProgramState):
        return OnBranch(leaf._branch)
    refuse(f"the body returns a {type(leaf).__name__}, in which nobody can look for what only a run can tell")


# --- what was laid, with arguments and variables as nodes


def _spelled(live: LiveProgram, naming: Naming) -> Traced:
    items: list[Item] = []
    for number, record in live.records.items():
        items += _Spelling(live, naming, number, record.branch, record.source).items_of(record.node)
    objects = {}
    for number, value in live.machine.objects.items():
        if holds_symbols(value):
            source = live.records[number].source
            raise Untraceable("a variable is set to something that holds a text which is not known yet", source)
        objects[number] = rebuilt(value, lambda leaf: _returned(leaf, naming))
    return Traced(tuple(items), live.new_branches(1)[0], objects)


class _Spelling:
    """One node of the trace as the nodes of the template that mean the same."""

    def __init__(self, live: LiveProgram, naming: Naming, number: int, branch: int, source: str) -> None:
        self._live, self._naming = live, naming
        self._number, self._branch, self._source = number, branch, source

    def items_of(self, node: Any) -> Iterator[Item]:
        match node:
            case ir.Text(value) if symbolic(value):
                yield from self._text(value, self._branch)
            case ir.SetVar(name, value) if symbolic(value) and not symbolic(name):
                yield from self._variable(name, value)
            case ir.Select(choices=choices) if any(map(symbolic, choices)):
                fills = tuple(self._fill(choice) for choice in choices)
                self._check(msgspec.structs.replace(node, choices=()))
                yield self._item(msgspec.structs.replace(node, choices=(), fills=fills))
            case _:
                self._check(node)
                yield self._item(node)

    def _item(self, node: ir.Sent, branch: int | None = None, number: int | None = None) -> Item:
        return Item(
            self._number if number is None else number, self._branch if branch is None else branch, node, self._source
        )

    def _text(self, text: str, branch: int) -> Iterator[Item]:
        filling: list[str | int] = []
        for part in (*self._naming.parts(text, self._source), None):
            if isinstance(part, Argument):
                filling.append(part.number)
            elif isinstance(part, str):
                filling.append(part)
            else:
                if filling:
                    yield self._item(ir.Fill(tuple(filling)), branch)
                    filling = []
                if part is not None:
                    yield self._item(self._ref(part), branch)

    def _ref(self, wanted: Variable) -> ir.Ref:
        """Raises Untraceable where the variable has got another value since it was read."""
        lineage = self._live.machine.lineage
        for branch in (wanted.branch, self._live.records[wanted.node].branch):
            if lineage.definer(branch, wanted.name, self._number) == wanted.node:
                return ir.Ref(branch, wanted.name)
        raise Untraceable(f"an older value of variable {wanted.name!r} is placed here", self._source)

    def _variable(self, name: str, text: str) -> Iterator[Item]:
        """A variable's text is put together on a branch of its own; the join makes it a variable of this one."""
        (aside,) = self._live.new_branches(1)
        yield self._item(ir.Fork((aside,)), number=-1)
        yield self._item(ir.ScopeBegin(name), aside, -1)
        for item in self._text(text, aside):
            yield item._replace(number=-1)
        yield self._item(ir.ScopeEnd(name), aside, -1)
        yield self._item(ir.Join((aside,), race.MODES[1], 0, name))

    def _fill(self, choice: str) -> tuple[str | int, ...]:
        parts = self._naming.parts(choice, self._source)
        if any(isinstance(part, Variable) for part in parts):
            raise Untraceable("a choice depends on a variable", self._source)
        return tuple(part.number if isinstance(part, Argument) else str(part) for part in parts)

    def _check(self, node: Any) -> None:
        """Raises Untraceable where a symbol stands in what no template can fill in: names, constraints, knobs."""
        for text in _texts(msgspec.to_builtins(ir.bare(node), enc_hook=_plain)):
            if symbolic(text):
                kind = type(node).__name__.lower()
                what = self._naming.describe(text)
                raise Untraceable(f"{what} stands in a {kind}, where no argument can be filled in", self._source)


def _plain(value: Any) -> str:
    return str.__str__(value) if isinstance(value, str) else repr(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from (text for item in pair for text in _texts(item))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _difference(one: Traced, other: Traced) -> str:
    """Why two runs of one body are not the same program, "" when they are."""
    if other.note:
        return other.note
    for mine, theirs in zip(one.items, other.items):
        if (mine.branch, ir.bare(mine.node), mine.source) != (theirs.branch, ir.bare(theirs.node), theirs.source):
            return f"the body does something else each time it runs [{mine.source}]"
    same = len(one.items) == len(other.items) and one.returned == other.returned and one.objects == other.objects
    return "" if same else "the body lays or returns something else each time it runs"
