"""The `s` object of a program: the author's view of one branch.

Knows: author's syntax, roles and scopes as laid. Must not know: backends, sockets, how anything is executed.
Laying (`s += ...`) returns at once; reading (`s["x"]`, text(), messages(), sync()) waits and raises ProgramError.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Generic

import msgspec

from branchwork.lang import expr as author
from branchwork.lang.errors import ProgramError
from branchwork.lang.expr import Expr
from branchwork.lang.follow import drive, drive_async, follow_text, follow_variable, unknown
from branchwork.lang.forks import ForkGroup
from branchwork.lang.ir import (
    Fork,
    Gen,
    Node,
    Ref,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    SetVar,
    flatten,
    sendable,
)
from branchwork.lang.live import LiveProgram, source_line
from branchwork.lang.params import merge
from branchwork.lang.transcript import NodeFailed
from branchwork.lang.typed import converted

if TYPE_CHECKING:
    import os

    from rich.console import Console, RenderableType
    from typing_extensions import TypeVar

    from branchwork.lang.explain import Explanation

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")  # what the program's function returns


T = TypeVar("T")


class ProgramState(Generic[R]):
    """One branch of a running program. knobs: defaults of every gen on it, each gen may override them."""

    def __init__(
        self, live: LiveProgram, branch: int = 0, knobs: Mapping[str, Any] | None = None, role: str | None = None
    ) -> None:
        self.live = live
        self._branch = branch
        self._knobs = dict(knobs or {})
        self._role = role
        self._scopes: list[str] = []
        self._last = -1  # the newest node laid here

    # --- laying

    def __iadd__(self, expr: Expr) -> ProgramState:
        self._lay(flatten(expr))
        return self

    def gen(self, name: str | None = None, **knobs: Any) -> None:
        """`s += gen(...)`."""
        self._lay((author.gen(name, **knobs),))

    def select(self, name: str | None = None, choices: Iterable[str] | None = None, **options: Any) -> None:
        """`s += select(...)`."""
        self._lay((author.select(name, choices, **options),))

    def system(self, expr: Expr | None = None) -> AbstractContextManager[None]:
        """A whole message, or `with s.system():` around what makes it up."""
        return self._message("system", expr)

    def user(self, expr: Expr | None = None) -> AbstractContextManager[None]:
        return self._message("user", expr)

    def assistant(self, expr: Expr | None = None) -> AbstractContextManager[None]:
        return self._message("assistant", expr)

    def system_begin(self) -> None:
        self._lay((RoleBegin("system"),))

    def system_end(self) -> None:
        self._lay((RoleEnd("system"),))

    def user_begin(self) -> None:
        self._lay((RoleBegin("user"),))

    def user_end(self) -> None:
        self._lay((RoleEnd("user"),))

    def assistant_begin(self) -> None:
        self._lay((RoleBegin("assistant"),))

    def assistant_end(self) -> None:
        self._lay((RoleEnd("assistant"),))

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """Everything appended inside is also the text of variable `name`."""
        author.check_name(name)
        self._lay((ScopeBegin(name),))
        try:
            yield
        finally:
            self._lay((ScopeEnd(name),))

    def set_var(self, name: str, value: Any) -> None:
        """Set a variable without appending text. It may be any object; other branches' refs see str(value)."""
        author.check_name(name)
        text = value if isinstance(value, str) else str(value)
        self._lay((SetVar(name, sendable(text)),), {} if text is value else {0: value})

    __setitem__ = set_var

    def ref(self, name: str) -> Ref:
        """The text of a variable, to be placed on any branch of this program without waiting for it here.

        Raises ProgramError when nobody has laid it.
        """
        self._definer(name)
        return Ref(self._branch, name)

    # --- branches

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> ForkGroup:
        """`size` copies of this branch, side by side with it from here. position_ids_offset: without effect."""
        if size < 1:
            raise ValueError(f"fork needs a size of at least 1, got {size!r}")
        children = self.live.new_branches(size)
        self._lay((Fork(children),))
        states = [ProgramState(self.live, child, self._knobs, self._role) for child in children]
        return ForkGroup(self, states)

    @contextmanager
    def copy(self) -> Iterator[ProgramState]:
        """A fork of one, joined at the end: its new variables reach this branch as one-element lists."""
        group = self.fork(1)
        yield group[0]
        group.join()

    def cancel(self) -> None:
        """Stop this branch and those forked from it; reading what was not done raises ProgramError (cancelled)."""
        self.live.cancel(self._branch)

    # --- reading

    def get_var(self, name: str) -> Any:
        """Wait for a variable: its text, a list of texts for n > 1, a list over the children for a joined one.

        Where a gen asks for a type, values instead of texts; of a turn, None for what it left out, a list for what it
        repeats, each as soon as it is certain. Raises ProgramError when nobody has laid it, when it failed, when its
        text was cut off before it was a value of the type, or inside its own var_scope.
        """
        node = self._await_definer(name)
        self.live.wait(lambda: self.live.machine.settled(node, name))
        return self._value(node, name)

    __getitem__ = get_var

    def value(self, name: str, kind: type[T]) -> T:
        """`s[name]` as a `kind`, which type checkers then know: as it is when it is one, read from its text otherwise.

        Raises what reading raises, TypeError for a value of another type, ValueError for a text that is none.
        """
        return converted(self[name], kind)

    async def get(self, name: str) -> Any:
        """The same, for `async def` bodies."""
        node = self._definer(name)
        await self.live.wait_async(lambda: self.live.machine.settled(node, name))
        return self._value(node, name)

    def __contains__(self, name: str) -> bool:
        """Whether the variable has been laid; it need not be there yet."""
        return self.live.machine.lineage.definer(self._branch, name) is not None

    def meta(self, name: str) -> Any:
        """What the backend said about the gen or select of a variable: one dict, or a list of them for n > 1."""
        node = self._await_definer(name)
        self.live.wait(lambda: self.live.machine.settled(node))
        self._text(node, name)
        record = self.live.records[node]
        if isinstance(record.node, Gen) and record.node.params is not None and record.node.params.n > 1:
            return list(record.meta)
        return record.meta[0] if record.meta else {}

    get_meta_info = meta

    def sync(self) -> ProgramState:
        """Wait until everything laid on this branch so far has been executed. Raises ProgramError if it failed.

        Outside a body that runs in another thread, that body is waited for first.
        """
        self.live.wait(lambda: not self.live.may_grow())
        last = self._last
        self.live.wait(lambda: self.live.machine.caught_up(self._branch, last))
        self._raise_if_failed()
        return self

    async def sync_async(self) -> ProgramState:
        last = self._last
        await self.live.wait_async(lambda: self.live.machine.caught_up(self._branch, last))
        self._raise_if_failed()
        return self

    def wait_idle(self) -> None:
        """Wait until the whole program has nothing left to execute, on any branch. Raises nothing."""
        self.live.wait(lambda: not self.live.may_grow() and self.live.machine.idle)

    def error(self) -> Exception | None:
        """Wait like sync, and return what it would raise."""
        try:
            self.sync()
        except Exception as error:
            return error
        return None

    def text(self) -> str:
        """The whole transcript of this branch, frames included."""
        self.sync()
        return self.live.machine.branch(self._branch).text

    def messages(self) -> list[dict[str, str]]:
        """Finished turns as {"role", "content"} dicts, contents stripped on the left."""
        self.sync()
        return self.live.machine.branch(self._branch).messages()

    @property
    def ret_value(self) -> R:
        """What the program's function returned; waits for it when it still runs elsewhere."""
        self.live.wait(lambda: not self.live.may_grow())
        self._raise_if_body_failed()
        value: R = self.live.body.value
        return value

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """Text as it comes, of one variable or of the whole branch until its program has ended.

        Pieces are as small as the backend makes them with stream=True; otherwise every gen comes in one.
        """
        with self._body_errors_first():
            for chunk in drive(self.live, self._follow(var_name)):
                if chunk.text:
                    yield chunk.text

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[str | tuple[str, dict[str, Any]]]:
        """The same for `async for`; with return_meta_data (text, meta) pairs, the last one with the final meta."""
        with self._body_errors_first():
            async for chunk in drive_async(self.live, self._follow(var_name)):
                if return_meta_data:
                    yield chunk.text, chunk.meta
                elif chunk.text:
                    yield chunk.text

    def partial_iter(self, name: str) -> Iterator[Any]:
        """The value of a typed or JSON variable as far as it has come, again and again while it grows.

        Objects come as dicts, field by field, the last value being the finished, typed one. Wants stream=True.
        """
        from branchwork.lang import partial

        with self._body_errors_first():
            yield from partial.follow(self.live, self._branch, name)

    async def partial_async_iter(self, name: str) -> AsyncIterator[Any]:
        """The same for `async for`."""
        from branchwork.lang import partial

        with self._body_errors_first():
            async for value in partial.follow_async(self.live, self._branch, name):
                yield value

    # --- keeping

    def save(self, path: str | os.PathLike[str]) -> None:
        """Wait, then write everything that was laid and what came of it, for bw.replay. JSON, safe to share."""
        from branchwork.lang import recording

        recording.save(self.live, path)

    # --- showing

    def explain(self) -> Explanation:
        """Wait, then say of each gen and select what was reused, what was computed and where it first diverged."""
        from branchwork.lang import explain

        return explain.explain(self.live)

    def timeline(self, path: str | os.PathLike[str]) -> None:
        """Wait, then write when each gen of each branch waited, was computed and was done, as a trace for Perfetto."""
        from branchwork.lang import timeline

        timeline.write(self.live, path)

    def show(self, console: Console | None = None) -> None:
        """Wait, then print this branch to the terminal: prompt, generated text, forks side by side."""
        from branchwork.lang import display

        display.show(self.live, self._branch, console)

    def _repr_html_(self) -> str:
        """What a notebook shows for a state: the branch as far as it has come."""
        from branchwork.lang import html

        return html.render(self.live, self._branch)

    def _ipython_display_(self) -> None:
        """A cell's value: shown at once, and kept up to date while it runs, without holding up the cell."""
        from branchwork.lang import display

        display.appear(self.live, self._branch, repr(self))

    def __rich__(self) -> RenderableType:
        from branchwork.lang import display

        return display.render(self.live, self._branch)

    def __str__(self) -> str:
        """The transcript after waiting; up to where it failed, if it did."""
        self.error()
        return self.live.machine.branch(self._branch).text

    def __reduce__(self) -> Any:
        raise TypeError(
            "a state belongs to its process and cannot be pickled or copied; s.save(path) keeps what it holds"
        )

    def __repr__(self) -> str:
        return f"ProgramState(branch={self._branch}, text={self.live.machine.branch(self._branch).text!r})"

    # --- inside

    def _lay(self, nodes: Sequence[Node], objects: Mapping[int, Any] | None = None) -> None:
        if not nodes:
            return
        source = source_line()
        role, scopes = self._role, list(self._scopes)
        ready: list[Node] = []
        for node in nodes:
            match node:
                case RoleBegin(name) if role is not None:
                    raise ProgramError("nested_role", f"role {name!r} begins inside role {role!r}", source=source)
                case RoleBegin(name):
                    role = name
                case RoleEnd(name) if role != name:
                    raise ProgramError(
                        "role_mismatch", f"role {name!r} ends, but the open one is {role!r}", source=source
                    )
                case RoleEnd():
                    role = None
                case ScopeBegin(name):
                    scopes.append(name)
                case ScopeEnd():
                    scopes.pop()
            prepared = self._with_params(node) if isinstance(node, Gen) else node
            self.live.backend.accept(prepared)
            ready.append(prepared)
        self._last = self.live.lay(self._branch, ready, source, objects)[-1]
        self._role, self._scopes = role, scopes

    def _with_params(self, node: Gen) -> Gen:
        return msgspec.structs.replace(node, knobs={}, params=merge(self._knobs, node.knobs))

    @contextmanager
    def _role_scope(self, role: str) -> Iterator[None]:
        self._lay((RoleBegin(role),))
        try:
            yield
        finally:
            self._lay((RoleEnd(role),))

    def _message(self, role: str, expr: Expr | None) -> AbstractContextManager[None]:
        if expr is None:
            return self._role_scope(role)
        self._lay(author.role(role, expr).items)
        return nullcontext()

    def _follow(self, name: str | None) -> Any:
        if name is None:
            return follow_text(self.live, self._branch)
        return follow_variable(self.live, self._branch, name)

    def _definer(self, name: str) -> int:
        with self.live.changed:
            node = self.live.machine.lineage.definer(self._branch, name)
        if node is None:
            self._raise_if_body_failed()
            if name in self._scopes:
                raise ProgramError(
                    "open_scope", f"{name!r} is the text of the var_scope around this line; read it after"
                )
            raise unknown(self.live, self._branch, name)
        return node

    def _await_definer(self, name: str) -> int:
        """The defining node; another thread than the body's may ask before it is laid."""
        lineage = self.live.machine.lineage
        if self.live.may_grow():
            self.live.wait(lambda: lineage.definer(self._branch, name) is not None or not self.live.may_grow())
        return self._definer(name)

    def _value(self, node: int, name: str) -> Any:
        return self.live.read(node, name, self._text(node, name))

    def _text(self, node: int, name: str) -> Any:
        with self.live.changed:
            value = self.live.machine.value(node, name)
        if isinstance(value, NodeFailed):
            self._raise_if_body_failed()
            error = self.live.error(value)
            raise error from error.cause
        return value

    def _raise_if_failed(self) -> None:
        self._raise_if_body_failed()
        failure = self.live.machine.branch(self._branch).failure
        if failure is not None:
            error = self.live.error(failure)
            raise error from error.cause

    @contextmanager
    def _body_errors_first(self) -> Iterator[None]:
        """When the body raised, that is the reason for whatever else went wrong."""
        try:
            yield
        except ProgramError:
            self._raise_if_body_failed()
            raise
        self._raise_if_body_failed()

    def _raise_if_body_failed(self) -> None:
        """A body that ran in another thread raised there; whoever reads here gets to know."""
        if self.live.body.error is not None:
            raise self.live.body.error


def show(state: ProgramState[Any], console: Console | None = None) -> None:
    """Show a state: in a notebook and in a terminal as it grows, elsewhere once it is done."""
    state.show(console)
