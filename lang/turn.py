"""A whole turn as one gen: literals, gens, selects, optional parts and repeats become one constraint with captures.

Knows: nodes, constraints, which text may follow which part. Must not know: engines, how captures are found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from branchwork.lang.asked import Read, grammar_of, regex_of, schema_of
from branchwork.lang.choices import token_length_normalized
from branchwork.lang.constraint import (
    Capture,
    Choice,
    Constraint,
    Free,
    Grammar,
    Invalid,
    JsonSchema,
    Leaf,
    Literal,
    Maybe,
    Regex,
    Repeat,
    Sequence,
    check,
)
from branchwork.lang.expr import check_name, knobs_of
from branchwork.lang.ir import Gen, Select, Seq, Text

Heads = frozenset[str] | None  # texts one of which comes next ("" for the end of the turn); None: could be any text
_END: Heads = frozenset({""})


@dataclass(frozen=True)
class Part:
    """A piece of a turn: what it must look like, and how its captures are read."""

    constraint: Constraint
    readers: dict[str, Read] = field(default_factory=dict)


def turn(*parts: Any, name: str | None = None, **knobs: Any) -> Gen:
    """Generate a whole turn in one request: texts are given, gens and selects are filled in, each under its own name.

    parts: texts, gen(...), select(...), optional(...), repeat(...), other turns, and constraints such as Regex(...).
    A gen without a constraint takes any text up to its `stop`, with which the text after it must begin; without a
    `stop` up to the text after it; at the end of the turn the model's end token ends it. Every other knob stands on
    the turn and holds for all of it. A select is drawn like the rest, not scored. `name` gets the whole text.

    Raises Invalid where the end of a part could not be told or a name is used twice, TypeError for what no turn can
    hold, and what gen raises for knobs.
    """
    check_name(name)
    checked = knobs_of(knobs)
    whole = _joined(parts)
    constraint = _ended(whole.constraint, _END)
    check(Capture(name, constraint) if name is not None else constraint)
    return Gen(name, checked, constraint=constraint, readers=dict(whole.readers))


def optional(*parts: Any) -> Part:
    """For a turn: these parts, or nothing. The variables of what is left out are None."""
    whole = _joined(parts)
    return Part(Maybe(whole.constraint), whole.readers)


def repeat(*parts: Any, least: int = 0, most: int | None = None, separator: str = "") -> Part:
    """For a turn: these parts `least` to `most` times (None: no limit). The variables inside are lists.

    Raises ValueError for impossible bounds, TypeError for what are none.
    """
    if not isinstance(least, int) or not (most is None or isinstance(most, int)):
        raise TypeError(f"least and most count repeats, so they are whole numbers, got {least!r} and {most!r}")
    if least < 0 or (most is not None and (most < 1 or most < least)):
        raise ValueError(f"least={least!r} and most={most!r} allow no number of repeats; most=None is no limit")
    if not isinstance(separator, str):
        raise TypeError(f"the separator of a repeat is a text, got {separator!r}")
    whole = _joined(parts)
    return Part(Repeat(whole.constraint, least, most or 0, separator), whole.readers)


# --- what stands in a turn


def _joined(items: Iterable[Any]) -> Part:
    constraints: list[Constraint] = []
    readers: dict[str, Read] = {}
    for item in items:
        for part in _parts(item):
            last = constraints[-1] if constraints else None
            if isinstance(last, Literal) and isinstance(part.constraint, Literal):
                constraints[-1] = Literal(last.text + part.constraint.text)
            else:
                constraints.append(part.constraint)
            readers |= part.readers
    if not constraints:
        raise ValueError("a turn, an optional part and a repeat need at least one part")
    return Part(Sequence(tuple(constraints)), readers)


def _parts(item: Any) -> list[Part]:
    match item:
        case str(text) | Text(text):
            return [Part(Literal(text))] if text else []
        case Seq(items):
            return [part for inner in items for part in _parts(inner)]
        case Part():
            return [item]
        case Gen():
            return [_of_gen(item)]
        case Select(name, choices, method):
            if method != token_length_normalized:
                raise TypeError(f"a select in a turn is drawn, not scored, so choices_method={method!r} has no meaning")
            return [_captured(name, Choice(choices), {})]
        case Leaf():
            return [Part(_checked(item))]
    kind = type(item).__name__
    raise TypeError(f"a turn holds texts, gen, select, optional, repeat and constraints, not {kind}")


def _of_gen(node: Gen) -> Part:
    what = f"gen {node.name!r}" if node.name else "a gen"
    others = [name for name in node.knobs if name != "stop"]
    if others:
        raise TypeError(f"{what} sets {', '.join(others)} inside a turn; put that on the turn, it holds for all of it")
    stop = tuple(node.knobs.get("stop", ()))
    if node.constraint is None:
        return _captured(node.name, Free(stop), {})
    if stop:
        raise TypeError(f"{what} inside a turn has a constraint, which says where it ends; leave out its stop")
    return _captured(node.name, node.constraint, node.readers)


def _captured(name: str | None, constraint: Constraint, readers: dict[str, Read]) -> Part:
    return Part(constraint if name is None else Capture(name, constraint), readers)


def _checked(leaf: Any) -> Constraint:
    match leaf:
        case Regex():
            return regex_of(leaf)
        case JsonSchema():
            return schema_of(leaf)
        case Grammar():
            return grammar_of(leaf)
    found: Constraint = leaf
    return found


# --- where free text ends


def _ended(constraint: Constraint, after: Heads, name: str = "") -> Constraint:
    """With the stops of free text that follow from the text after it. Raises Invalid where its end cannot be told."""
    match constraint:
        case Free(stop):
            return msgspec.structs.replace(constraint, stop=_stops(stop, after, name))
        case Sequence(parts):
            ended: list[Constraint] = []
            for part in reversed(parts):
                ended.append(_ended(part, after, name))
                after = _heads(part, after)
            return Sequence(tuple(reversed(ended)))
        case Capture(inner, part):
            return Capture(inner, _ended(part, after, inner))
        case Maybe(part):
            return Maybe(_ended(part, after, name))
        case Repeat(part, separator=separator):
            again = frozenset({separator}) if separator else _heads(part, after)
            return msgspec.structs.replace(constraint, part=_ended(part, _either(again, after), name))
    return constraint


def _stops(stop: tuple[str, ...], after: Heads, name: str) -> tuple[str, ...]:
    what = f"the text of {name!r}" if name else "free text"
    if after is None:
        raise Invalid(f"{what} has no end: what comes after it may begin with anything; put a text between the two")
    following = sorted(after - {""})
    if not stop:
        return tuple(following)
    for text in following:
        if not text.startswith(stop):
            raise Invalid(f"{what} stops at {' or '.join(map(repr, stop))}, but what comes after it begins {text!r}")
    return stop


def _heads(constraint: Constraint, after: Heads) -> Heads:
    """What comes first where `constraint` and then `after` stand."""
    match constraint:
        case Literal(text):
            return frozenset({text}) if text else after
        case Choice(options):
            return frozenset(options)
        case Capture(part=part):
            return _heads(part, after)
        case Maybe(part):
            return _either(_heads(part, after), after)
        case Repeat(part, least):
            return _heads(part, after) if least else _either(_heads(part, after), after)
        case Sequence(parts):
            for part in reversed(parts):
                after = _heads(part, after)
            return after
    return None


def _either(one: Heads, other: Heads) -> Heads:
    return None if one is None or other is None else one | other
