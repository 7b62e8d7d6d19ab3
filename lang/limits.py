"""Limits that Annotated[...] sets on a value: how JSON Schema says them, and whether a value keeps them.

Knows: the attributes by which annotated-types, pydantic's Field and msgspec's Meta name limits; JSON Schema's keywords.
Must not know: types made of others, nodes, engines. A mark without any of these attributes says nothing.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from branchwork.lang.constraint import Regex

Limits = list[tuple[str, Any]]  # (attribute, limit)


def _longer(value: Any, length: int) -> bool:
    return len(value) >= length


def _shorter(value: Any, length: int) -> bool:
    return len(value) <= length


def _multiple(value: Any, step: Any) -> bool:
    return Fraction(repr(value)) % Fraction(repr(step)) == 0  # of what is written, not of the nearest binary number


def _search(value: str, pattern: str) -> bool:
    return re.search(pattern, value) is not None


def _numeric(keyword: str) -> dict[str, str]:
    return {"integer": keyword, "number": keyword}


# by attribute: JSON Schema's keyword for each JSON type that has one, what it means, how a message says it
_KNOWN: dict[str, tuple[Mapping[str, str], Callable[[Any, Any], bool], str]] = {
    "ge": (_numeric("minimum"), operator.ge, "at least"),
    "gt": (_numeric("exclusiveMinimum"), operator.gt, "above"),
    "le": (_numeric("maximum"), operator.le, "at most"),
    "lt": (_numeric("exclusiveMaximum"), operator.lt, "below"),
    "multiple_of": (_numeric("multipleOf"), _multiple, "a multiple of"),
    "min_length": (
        {"string": "minLength", "array": "minItems", "object": "minProperties"},
        _longer,
        "of length at least",
    ),
    "max_length": (
        {"string": "maxLength", "array": "maxItems", "object": "maxProperties"},
        _shorter,
        "of length at most",
    ),
    "pattern": ({"string": "pattern"}, _search, "a text with a match of"),
}


def found(marks: Iterable[Any]) -> Limits:
    """The limits that marks set. Of a Regex the whole text is a match, of any other pattern some part of it."""
    limits: Limits = []
    for mark in _single(marks):
        if isinstance(mark, Regex):
            limits.append(("pattern", f"^(?:{mark.pattern})$"))
        else:
            values = [(name, getattr(mark, name, None)) for name in _KNOWN]
            limits += [(name, value) for name, value in values if value is not None]
    return limits


def description(marks: Iterable[Any]) -> str | None:
    """The first words about the value: a text by itself, a description or a Doc."""
    for mark in _single(marks):
        for text in (mark, getattr(mark, "description", None), getattr(mark, "documentation", None)):
            if isinstance(text, str):
                return text
    return None


def _single(marks: Iterable[Any]) -> Iterator[Any]:
    """Each mark, and those that pydantic's Field holds."""
    for mark in marks:
        yield mark
        inner = getattr(mark, "metadata", None)
        if isinstance(inner, list):
            yield from inner


def schema(plain: Mapping[str, Any], limits: Limits, kind: str) -> dict[str, Any]:
    """A JSON Schema with limits. Raises TypeError for a limit that it cannot express."""
    limited = dict(plain)
    for name, limit in limits:
        keyword = _KNOWN[name][0].get(limited.get("type", ""))
        usable = isinstance(limit, str) if name == "pattern" else isinstance(limit, (int, float))
        if keyword is None or not usable:
            raise TypeError(
                f"the limit {name}={limit!r} on {kind} cannot be enforced while it is generated; leave it out"
            )
        if keyword in limited:
            limited["allOf"] = [*limited.get("allOf", ()), {keyword: limit}]
        else:
            limited[keyword] = limit
    return limited


def checked(build: Callable[[Any], Any], limits: Limits) -> Callable[[Any], Any]:
    """`build` for values that keep the limits; raises ValueError for any other, whoever wrote it."""

    def limited(value: Any) -> Any:
        built = build(value)
        for name, limit in limits:
            _, holds, words = _KNOWN[name]
            if not holds(built, limit):
                raise ValueError(f"{built!r} is not {words} {limit!r}")
        return built

    return limited


def pattern(limits: Limits) -> str:
    """What a text by itself, outside JSON, has to match as a whole. Raises TypeError for limits it cannot express."""
    schema({"type": "string"}, limits, "str")
    given = dict(limits)
    if len(given) < len(limits) or ("pattern" in given and len(given) > 1):
        said = ", ".join(f"{name}={limit!r}" for name, limit in limits)
        raise TypeError(f"a text by itself takes one pattern or its lengths, not {said}; say it in one regex=")
    if "pattern" not in given:
        return f"[\\s\\S]{{{given.get('min_length', 0)},{given.get('max_length', '')}}}"
    inner = given["pattern"]
    before, after = not inner.startswith("^"), not re.search(r"(?<!\\)(\\\\)*\$$", inner)
    inner = inner[0 if before else 1 : None if after else -1]
    return ("[\\s\\S]*" if before else "") + f"(?:{inner})" + ("[\\s\\S]*" if after else "")
