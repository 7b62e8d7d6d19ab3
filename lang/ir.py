"""The language's nodes: what a program consists of, as frozen tagged structs.

Knows: text, names, parameters. Must not know: backends, tokens, how anything is executed.
An author's expression (`"a" + gen("x")`) is a node or a Seq of nodes; laying it on a branch flattens it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from branchwork.lang.constraint import Constraint
from branchwork.lang.params import SamplingParams


class Node(msgspec.Struct, frozen=True, tag_field="k"):
    """Base of every node. Nodes and strings are joined with `+`."""

    def __add__(self, other: Any) -> Seq:
        return Seq((*_items(self), *_items(other)))

    def __radd__(self, other: Any) -> Seq:
        return Seq((*_items(other), *_items(self)))

    def __format__(self, spec: str) -> str:
        kind = type(self).__name__.lower()
        raise TypeError(f"a {kind} has no text yet, so it cannot stand in an f-string; join it with + instead")


class Text(Node, frozen=True, tag="text"):
    value: str


class Ref(Node, frozen=True, tag="ref"):
    """The text of variable `name` of branch `branch` of the same program, when it is there (`s.ref`)."""

    branch: int
    name: str


class Gen(Node, frozen=True, tag="gen", omit_defaults=True):
    """Generate text that obeys `constraint`; each of its captures becomes a variable too.

    `knobs` are what the author set; laying the node merges them into `params`. `readers` make typed values of the
    texts of variables; they stay with the author.
    """

    name: str | None = None
    knobs: dict[str, Any] = {}
    params: SamplingParams | None = None
    constraint: Constraint | None = None
    readers: dict[str, Any] = {}


class Select(Node, frozen=True, tag="select"):
    """Choose one of `choices` by the model's own probabilities; `method` names one of the scorers in lang.choices."""

    name: str | None
    choices: tuple[str, ...]
    method: str = "token_length_normalized"


class RoleBegin(Node, frozen=True, tag="role"):
    role: str


class RoleEnd(Node, frozen=True, tag="end_role"):
    role: str


class ScopeBegin(Node, frozen=True, tag="scope"):
    """From here to the matching ScopeEnd everything appended is also the text of variable `name`."""

    name: str


class ScopeEnd(Node, frozen=True, tag="end_scope"):
    name: str


class SetVar(Node, frozen=True, tag="set"):
    """`s["x"] = value`: the variable is set without appending text."""

    name: str
    value: str


class Fork(Node, frozen=True, tag="fork"):
    """From here on the branches `children` exist, each a copy of this one."""

    children: tuple[int, ...]


class Join(Node, frozen=True, tag="join"):
    """Wait for `children`; mode gather_variable (lists of new variables) or concate_and_append (their new text)."""

    children: tuple[int, ...]
    mode: str = "gather_variable"


class Seq(Node, frozen=True, tag="seq"):
    """Author-side only: items in order. Never sent; `flatten` resolves it."""

    items: tuple[Any, ...] = ()


class Laid(msgspec.Struct, frozen=True, array_like=True):
    """A node with its number in the program (unique over all branches, in order of laying)."""

    id: int
    node: Text | Ref | Gen | Select | RoleBegin | RoleEnd | ScopeBegin | ScopeEnd | SetVar | Fork | Join


def bare(node: Any) -> Any:
    """A node as it is sent: without what stays with its author."""
    return msgspec.structs.replace(node, readers={}) if isinstance(node, Gen) and node.readers else node


def _items(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Seq):
        return value.items
    if isinstance(value, Node):
        return (value,)
    if isinstance(value, str):
        return (Text(value),) if value else ()
    raise TypeError(f"cannot put {type(value).__name__} into a program; use a string or a node such as gen(...)")


def flatten(value: Any) -> tuple[Node, ...]:
    """The nodes of an author's expression, empty text dropped.

    Raises TypeError for anything that is neither a string nor a node (also None).
    """
    return tuple(item for item in _items(value) if not (isinstance(item, Text) and not item.value))
