"""What passes between a program's interpreter and whoever executes its calls.

Knows: parameters, constraints, texts. Must not know: branches, tokens, how a call is answered.
"""

from __future__ import annotations

from typing import Any

import msgspec

from branchwork.lang.constraint import Constraint, capture_names, listed_captures
from branchwork.lang.ir import Gen, Laid, Reasoning, Select
from branchwork.lang.params import SamplingParams


class Call(msgspec.Struct, frozen=True):
    """Work for the executor: continue the segments of `branch`. kind is gen (params set) or select (choices set).

    A machine that does not decide races (see lang.machine) also calls for the children that a Join is to go on with:
    kind join, whose Reply has their branch numbers as values.

    constraint: what the text of a gen must obey; its captures are to be reported with the reply.
    """

    id: int
    branch: int
    node: int
    kind: str
    name: str | None = None
    params: SamplingParams = SamplingParams()
    choices: tuple[str, ...] = ()
    method: str = ""
    constraint: Constraint | None = None
    reasoning: Reasoning | None = None


class Reply(msgspec.Struct, frozen=True):
    """What came of a call: one text and one meta dict per sample (a select has one sample, the chosen text).

    captures: by name the text of a capture, a list of texts for one inside a Repeat; with n > 1 a list of those, one
    per sample. A capture that was left out is None or missing.
    """

    values: tuple[str, ...]
    meta: tuple[dict[str, Any], ...] = ()
    captures: dict[str, Any] = {}


class Dropped(msgspec.Struct, frozen=True):
    """Calls that nobody waits for any more, since their branches have lost a race: cancel them."""

    calls: tuple[int, ...]


class NodeDone(msgspec.Struct, frozen=True):
    """A node has been executed. values, meta and captures are given for Gen and Select only."""

    branch: int
    node: int
    values: tuple[str, ...] = ()
    meta: tuple[dict[str, Any], ...] = ()
    captures: dict[str, Any] = {}


def call_of(number: int, branch: int, laid: Laid) -> Call:
    """The call that a Gen, a Select or a race's Join on a branch makes."""
    match laid.node:
        case Gen(name=name, constraint=constraint, reasoning=reasoning) as node:
            params = node.params or SamplingParams()
            return Call(number, branch, laid.id, "gen", name, params, constraint=constraint, reasoning=reasoning)
        case Select(name, choices, method):
            return Call(number, branch, laid.id, "select", name, choices=choices, method=method)
    return Call(number, branch, laid.id, "join")


def complete(call: Call, captures: dict[str, Any]) -> dict[str, Any]:
    """The captures of a call by name, those that were left out too: None, or no texts for one inside a Repeat."""
    if call.constraint is None:
        return {}
    listed, samples = listed_captures(call.constraint), call.params.n
    complete: dict[str, Any] = {}
    for name in capture_names(call.constraint):
        values = [captures.get(name)] if samples == 1 else captures.get(name) or [None] * samples
        values = [[] if value is None and name in listed else value for value in values]
        complete[name] = values[0] if samples == 1 else values
    return complete
