"""Texts that are not known yet: a program's arguments and variables while its body is traced.

Knows: which operations on text only put it somewhere, and which compute on it. Must not know: nodes, backends.
A symbol is a text with a marker in it for each unknown text, so that joining and formatting carry it along; what would
compute on the unknown text raises Untraceable at its line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from branchwork.lang.live import source_line

OPEN, CLOSE = "\ue0f0", "\ue0f1"  # around a marker; private use, so that no ordinary text has them
_EDGE = "\u2003"  # white space at both ends and letters of both cases inside: a marker that was altered is noticed
_HOME = os.path.dirname(os.path.abspath(__file__)) + os.sep
_OUTSIDE = (__file__, _HOME + "instrument.py")  # these call what they are given on the author's behalf


class Argument(NamedTuple):
    """Text number `number` among the arguments of a run."""

    number: int


class Variable(NamedTuple):
    """The text of a variable as read on `branch`, given to it by node `node`."""

    branch: int
    name: str
    node: int


Atom = Argument | Variable
Part = str | Argument | Variable


class Untraceable(BaseException):
    """The body needs to know what only a run can tell. Not an Exception, so that a body's own handlers let it pass."""

    def __init__(self, message: str, source: str) -> None:
        super().__init__(f"{message} [{source}]")
        self.message, self.source = message, source


class Naming:
    """The unknown texts of one trace and their markers. width: more makes the markers longer."""

    def __init__(self, width: int) -> None:
        self.why: Untraceable | None = None  # the first one raised, even where the body has swallowed it
        self._key = os.urandom(6).hex() + "x" * width
        self._atoms: list[tuple[Atom, str]] = []
        self._marker = re.compile(f"{_EDGE}{OPEN}Vq{self._key}[.]([0-9]+){CLOSE}{_EDGE}")

    def symbol(self, atom: Atom, described: str) -> Symbol:
        self._atoms.append((atom, described))
        return Symbol(f"{_EDGE}{OPEN}Vq{self._key}.{len(self._atoms) - 1}{CLOSE}{_EDGE}")

    def parts(self, text: str, source: str) -> tuple[Part, ...]:
        """Known texts and unknown ones in order. Raises Untraceable for a text whose markers were altered."""
        parts: list[Part] = []
        for index, piece in enumerate(self._marker.split(str.__str__(text))):
            if index % 2:
                parts.append(self._atoms[int(piece)][0])
            elif symbolic(piece):
                raise Untraceable("a text that is not known yet has been altered, or is of another run", source)
            elif piece:
                parts.append(piece)
        return tuple(parts)

    def describe(self, text: str) -> str:
        found = [self._atoms[int(number)][1] for number in self._marker.findall(str.__str__(text))]
        return " and ".join(dict.fromkeys(found)) or "a text"


current: ContextVar[Naming | None] = ContextVar("branchwork_trace", default=None)


def symbolic(text: str) -> bool:
    """Whether something unknown is in a text."""
    return str.__contains__(text, OPEN) or str.__contains__(text, CLOSE)


def refuse(message: str) -> NoReturn:
    """Give up tracing at the author's line. Raises Untraceable."""
    why = Untraceable(message, source_line())
    naming = current.get()
    if naming is not None and naming.why is None:
        naming.why = why
    raise why


def refuse_text(text: str, what: str) -> NoReturn:
    naming = current.get()
    unknown = "a text of another run" if naming is None else naming.describe(text)
    hint = "; give it to compile() to make it part of the template" if unknown.startswith("argument") else ""
    refuse(f"{what} needs to know {unknown}, which only a run can tell{hint}")


class Symbol(str):
    """A text with unknown texts in it. It can be placed, joined and formatted; anything else raises Untraceable."""

    __slots__ = ()

    def __add__(self, other: Any) -> Any:
        return Symbol(str.__add__(self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return Symbol(str.__add__(other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: Any) -> Any:
        return Symbol(str.__mul__(self, times))

    __rmul__ = __mul__

    def __rmod__(self, template: Any) -> Any:
        return modulo(template, self) if isinstance(template, str) else NotImplemented

    def __str__(self) -> Symbol:
        return self

    def __format__(self, spec: str) -> Symbol:
        if spec:
            refuse_text(self, f"the format {spec!r}")
        return self

    def join(self, texts: Iterable[str]) -> Symbol:
        return Symbol(str.join(self, texts))


def modulo(template: str, values: Any) -> Any:
    """template % values, where unknown texts may stand for plain %s only."""
    if symbolic(template):
        refuse_text(template, "%")
    for value in values if isinstance(values, tuple) else [values]:
        plain = re.sub("%(%|[(][^)]*[)]s|s)", "", template)
        if isinstance(value, Symbol | dict) and "%" in plain:
            refuse("a text that is not known yet can only stand for %s, without width or precision")
    done = str.__mod__(template, values)
    return Symbol(done) if symbolic(done) else done


def _ours(frame: FrameType | None) -> bool:
    """The language itself handles symbols as the texts that they are; what must not hold one is looked at later."""
    file = "" if frame is None else frame.f_code.co_filename
    return file.startswith(_HOME) and file not in _OUTSIDE


def _trap(name: str, plain: Callable[..., Any] | None) -> Callable[..., Any]:
    shown = _SHOWN.get(name, name if name.startswith("__") else f".{name}()")

    def method(self: Symbol, *args: Any, **named: Any) -> Any:
        if plain is not None and _ours(sys._getframe(1)):
            return plain(self, *args, **named)
        refuse_text(self, shown)

    method.__name__ = name
    return method


_SHOWN = {
    "__bool__": "a condition",
    "__eq__": "==",
    "__ne__": "!=",
    "__lt__": "<",
    "__le__": "<=",
    "__gt__": ">",
    "__ge__": ">=",
    "__contains__": "in",
    "__len__": "len()",
    "__iter__": "iterating",
    "__getitem__": "indexing",
    "__hash__": "a key or a set",
    "__repr__": "repr()",
    "__int__": "int()",
    "__float__": "float()",
    "__complex__": "complex()",
    "__mod__": "%",
}
_HARMLESS = frozenset(dir(object)) - {
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__hash__",
    "__repr__",
}


def _set_traps() -> None:
    for name in dir(str):
        if name not in _HARMLESS and name not in vars(Symbol) and callable(getattr(str, name)):
            setattr(Symbol, name, _trap(name, getattr(str, name)))
    setattr(Symbol, "__bool__", _trap("__bool__", lambda text: str.__len__(text) > 0))  # noqa: B010
    for name in ("__int__", "__float__", "__complex__"):
        setattr(Symbol, name, _trap(name, None))


_set_traps()  # __hash__ and __eq__ are among them: defining one in the class would take the other away
