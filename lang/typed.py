"""Python types as constraints: what a text must look like to be a value of a type, and reading the value from it.

Knows: types, JSON, JSON Schema. Must not know: nodes, engines. pydantic models are known by their methods alone.
What is one number, word, date, time or id is written plainly; everything made of others is written as JSON.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from branchwork.lang import limits
from branchwork.lang.constraint import Choice, Constraint, JsonSchema, Regex
from branchwork.lang.forms import Forms, is_enum, literals, model_schema, name_of, taken_apart
from branchwork.lang.scalars import SCALARS, reader

__all__ = ["Typed", "converted", "model_schema", "typed"]

INT = "-?(0|[1-9][0-9]{0,17})"
EXPONENT = "-[0-9]{1,3}|[+]?([0-9]{1,2}|1[0-9]{2}|2[0-8][0-9])"  # never beyond what a float can hold
FLOAT = rf"{INT}(\.[0-9]{{1,20}})?([eE]({EXPONENT}))?"
TRUTH = {"true": True, "false": False, "True": True, "False": False}
T = TypeVar("T")


class Typed(NamedTuple):
    """constraint: None for any text. read: of a text that obeys it; raises ValueError for one that was cut off."""

    constraint: Constraint | None
    read: Callable[[str], Any]


def typed(kind: Any) -> Typed:
    """How a value of a type is written and read. Annotated[...] may set limits (see lang.limits).

    Raises TypeError, with where in it they stand, for a type not among lang.forms.SUPPORTED and a limit that cannot be
    enforced.
    """
    annotated, (kind, marks) = kind, taken_apart(kind)
    found = limits.found(marks)
    if kind is str and found:
        return Typed(Regex(limits.pattern(found)), limits.checked(str, found))
    return _json(annotated) if found else _plain(kind)


def converted(value: Any, kind: type[T]) -> T:
    """The value of a variable as what it is said to be: as it is when it is a `kind`, read from its text otherwise.

    Raises TypeError for a value that is neither, ValueError for a text that is no value of `kind`.
    """
    plain = dict if typing.is_typeddict(kind) else typing.get_origin(kind) or kind
    if isinstance(value, plain):
        return typing.cast("T", value)
    if isinstance(value, str):
        return typing.cast("T", typed(kind).read(value))
    raise TypeError(f"the value is a {type(value).__name__}, not a {name_of(kind)}: {value!r}")


def _plain(kind: Any) -> Typed:
    if kind is str:
        return Typed(None, str)
    if kind is int:
        return Typed(Regex(INT), int)
    if kind is float:
        return Typed(Regex(FLOAT), float)
    if kind is bool:
        return Typed(Choice(tuple(TRUTH)), _reader(TRUTH))
    if typing.get_origin(kind) is typing.Literal:
        return _words(literals(kind), kind)
    if is_enum(kind):
        return _words([(member.value, member) for member in kind], kind)
    if kind in SCALARS:
        return Typed(Regex(SCALARS[kind].pattern), reader(kind))
    return _json(kind)


def _json(kind: Any) -> Typed:
    forms = Forms()
    form = forms.of(kind)
    schema = {**form.schema, "$defs": forms.defs} if forms.defs else form.schema

    def read(text: str) -> Any:
        return form.build(json.loads(text))

    return Typed(JsonSchema(json.dumps(schema)), read)


def _words(values: Iterable[tuple[Any, Any]], kind: Any) -> Typed:
    """Literal and Enum: one of some texts, each standing for a value."""
    texts: dict[str, Any] = {}
    for plain, value in values:
        if not isinstance(plain, (str, int, float, bool, type(None))):
            raise TypeError(f"{plain!r} of {name_of(kind)} has no text; use texts, numbers, truth values or None")
        text = plain if isinstance(plain, str) else json.dumps(plain)
        if not text or text in texts:
            raise ValueError(
                f"two values of {name_of(kind)} are written {text!r}" if text else f"{kind} has an empty text"
            )
        texts[text] = value
    if not texts:
        raise TypeError(f"{name_of(kind)} has no values to choose from")
    return Typed(Choice(tuple(texts)), _reader(texts))


def _reader(texts: Mapping[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in texts:
            raise ValueError(f"{text!r} is none of {', '.join(texts)}")
        return texts[text]

    return read
