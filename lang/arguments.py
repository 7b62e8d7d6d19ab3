"""A program's arguments, told apart: texts, which are filled in, and the rest, for which a template is made.

Knows: values and when two of them are the same. Must not know: programs, symbols.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Callable
from typing import Any

import msgspec

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


class NoKey(Exception):
    """An argument whose value cannot be compared with that of another run."""


class Mark(enum.Enum):
    TEXT = "text"


TEXT = Mark.TEXT


def replaced(name: str, value: Any, text: Callable[[str, str], Any]) -> Any:
    if type(value) is str:
        return text(name, value)
    if type(value) in (list, tuple):
        return type(value)(text(f"{name}[{i}]", item) if type(item) is str else item for i, item in enumerate(value))
    return value


def frozen(value: Any) -> Any:
    """Equal for equal values of the same types. Raises NoKey."""
    if isinstance(value, _PLAIN) and type(value) in _PLAIN:
        return type(value), repr(value)
    if isinstance(value, (enum.Enum, type, types.FunctionType, types.BuiltinFunctionType)):
        return value
    if type(value) in (list, tuple):
        return type(value), tuple(map(frozen, value))
    if type(value) in (set, frozenset):
        return type(value), frozenset(map(frozen, value))
    if isinstance(value, dict):
        return type(value), tuple((frozen(key), frozen(item)) for key, item in value.items())
    if dataclasses.is_dataclass(value):
        return type(value), tuple(frozen(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, msgspec.Struct):
        return type(value), tuple(frozen(getattr(value, name)) for name in value.__struct_fields__)
    raise NoKey(type(value).__name__)
