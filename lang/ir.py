"""The language's nodes: what a program consists of, as frozen tagged structs.

Knows: text, names, parameters. Must not know: backends, tokens, how anything is executed.
An author's expression (`"a" + gen("x")`) is a node or a Seq of nodes; laying it on a branch flattens it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


class Ids(Node, frozen=True, tag="ids"):
    """Token ids as they are: int32, little-endian, packed. text: what they read as, for the transcript's readers."""

    ids: bytes
    text: str


class Ref(Node, frozen=True, tag="ref"):
    """The text of variable `name` of branch `branch` of the same program, when it is there (`s.ref`)."""

    branch: int
    name: str


class Fill(Node, frozen=True, tag="fill"):
    """Text with the arguments of a compiled program in it: literal texts, and numbers of arguments between them.

    Stands in templates only; starting a template puts the arguments' texts in its place.
    """

    parts: tuple[str | int, ...]


class Image(Node, frozen=True, tag="image"):
    """A picture in a turn, as the bytes of its file. media: its MIME type (image/png ...)."""

    data: bytes
    media: str


class Video(Node, frozen=True, tag="video"):
    """A film in a turn, of which `frames` pictures are looked at."""

    data: bytes
    media: str
    frames: int


class Reasoning(msgspec.Struct, frozen=True, array_like=True):
    """How a model sets its thinking apart from its answer. begun: its text starts inside the thinking."""

    begin: str
    end: str
    begun: bool = False


class Answered(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a gen or select has come to already, in an earlier run: it is taken as it is instead of asked for again.

    values, meta, captures: as in lang.calls.Reply. ids: token ids of the first value (int32, little-endian, packed),
    so that the transcript stays the very same; empty when they are not known.
    failed: code and message, when it came to nothing (no values then): it fails with them again.
    """

    values: tuple[str, ...]
    meta: tuple[dict[str, Any], ...] = ()
    captures: dict[str, Any] = {}
    ids: bytes = b""
    failed: tuple[str, str] | None = None


class Gen(Node, frozen=True, tag="gen", omit_defaults=True):
    """Generate text that obeys `constraint`; each of its captures becomes a variable too.

    `knobs` are what the author set; laying the node merges them into `params`. `readers` make typed values of the
    texts of variables; they stay with the author. reasoning: the thinking is kept apart, as variable
    `name`_reasoning_content, and leaves the transcript.
    """

    name: str | None = None
    knobs: dict[str, Any] = {}
    params: SamplingParams | None = None
    constraint: Constraint | None = None
    readers: dict[str, Any] = {}
    reasoning: Reasoning | None = None
    given: Answered | None = None


class Select(Node, frozen=True, tag="select", omit_defaults=True):
    """Choose one of `choices` by the model's own probabilities; `method` names one of the scorers in lang.choices.

    fills: in templates, the choices as parts of a Fill each, where an argument stands in one.
    """

    name: str | None
    choices: tuple[str, ...] = ()
    method: str = "token_length_normalized"
    given: Answered | None = None
    fills: tuple[tuple[str | int, ...], ...] = ()


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


class Join(Node, frozen=True, tag="join", omit_defaults=True):
    """Wait for `children`; mode gather_variable (lists of new variables) or concate_and_append (their new text).

    first: go on as soon as `count` children are done; the others are cancelled, lists are of those that are done.
    majority: go on as soon as no other text of variable `name` can overtake the commonest one; the others are
    cancelled, `name` is that text, lists are of the children that agree.
    given: indexes of the children that a race went on with in an earlier run; it goes on with them again.
    """

    children: tuple[int, ...]
    mode: str = "gather_variable"
    count: int = 0
    name: str | None = None
    given: tuple[int, ...] = ()


class Seq(Node, frozen=True, tag="seq"):
    """Author-side only: items in order. Never sent; `flatten` resolves it."""

    items: tuple[Any, ...] = ()


Said = Text | Ids | Ref | Gen | Select | Image | Video | Fill
Sent = Said | RoleBegin | RoleEnd | ScopeBegin | ScopeEnd | SetVar | Fork | Join


class Laid(msgspec.Struct, frozen=True, array_like=True):
    """A node with its number in the program (unique over all branches, in order of laying)."""

    id: int
    node: Sent


class Placed(msgspec.Struct, frozen=True, array_like=True):
    """A node of a template with the branch it stands on; its number is its place in the template."""

    branch: int
    node: Sent


class Template(msgspec.Struct, frozen=True):
    """A whole program with holes for its arguments. Node i is nodes[i]; branch 0 is the first, Fork nodes name others.

    arguments: names of the arguments, in the order that Fill counts them. sources: per node the "file:line" that laid
    it. branches: how many there are.
    """

    nodes: tuple[Placed, ...]
    arguments: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    branches: int = 1


def filled(nodes: Sequence[Placed], arguments: Sequence[str]) -> Iterator[tuple[int, Laid]]:
    """A template's nodes with the arguments' texts in their places, as (branch, node) in the order of laying.

    Raises IndexError for an argument that is not given.
    """
    for number, placed in enumerate(nodes):
        match placed.node:
            case Fill(parts):
                yield placed.branch, Laid(number, Text(_fill(parts, arguments)))
            case Select(fills=fills) as node if fills:
                choices = tuple(_fill(parts, arguments) for parts in fills)
                yield placed.branch, Laid(number, msgspec.structs.replace(node, choices=choices, fills=()))
            case node:
                yield placed.branch, Laid(number, node)


def _fill(parts: Sequence[str | int], arguments: Sequence[str]) -> str:
    return "".join([part if isinstance(part, str) else arguments[part] for part in parts])


def bare(node: Any) -> Any:
    """A node as it is sent: without what stays with its author."""
    return msgspec.structs.replace(node, readers={}) if isinstance(node, Gen) and node.readers else node


def _items(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Seq):
        return value.items
    if isinstance(value, Node):
        return (value,)
    if isinstance(value, str):
        return (Text(sendable(value)),) if value else ()
    raise TypeError(f"cannot put {type(value).__name__} into a program; use a string or a node such as gen(...)")


def sendable(text: str) -> str:
    """The text. Raises ValueError for one with half of a surrogate pair in it, which no encoding and no model has."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = text[max(error.start - 20, 0) : error.end + 20]
            raise ValueError(
                f"character {error.start} of the text is half of a surrogate pair, which is no character: {shown!r}; "
                'text.encode(errors="replace").decode() replaces it'
            ) from None
    return text


def flatten(value: Any) -> tuple[Node, ...]:
    """The nodes of an author's expression, empty text dropped.

    Raises TypeError for anything that is neither a string nor a node (also None).
    """
    return tuple(item for item in _items(value) if not (isinstance(item, Text) and not item.value))
