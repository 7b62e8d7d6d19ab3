"""Passes over a template in the making: each a pure function, each leaves the meaning of the program as it is.

Knows: nodes and the order that they stand in. Must not know: symbols, how a template is run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from branchwork.lang import ir
from branchwork.lang.constraint import capture_names
from branchwork.lang.reasoning import thoughts_of
from branchwork.lang.trace import Item

Items = Sequence[Item]


def without_empty_text(items: Items) -> list[Item]:
    """Text and fills of no text are left out; a fill without arguments becomes text."""
    kept: list[Item] = []
    for item in items:
        match item.node:
            case ir.Text("") | ir.Fill(()):
                continue
            case ir.Fill(parts) if not any(isinstance(part, int) for part in parts):
                item = item._replace(node=ir.Text("".join(map(str, parts))))
        if item.node != ir.Text(""):
            kept.append(item)
    return kept


def with_joined_literals(items: Items) -> list[Item]:
    """Literals that follow each other on a branch become one, where no join looks at the branch in between."""
    kept: list[Item] = []
    open_: dict[int, int] = {}  # by branch: where in `kept` its last literal stands, while more may be added to it
    for item in items:
        parts = _literal(item.node)
        if parts is None:
            open_.pop(item.branch, None)
            for child in item.node.children if isinstance(item.node, ir.Join) else ():
                open_.pop(child, None)
            kept.append(item)
        elif (at := open_.get(item.branch)) is not None:
            before = _literal(kept[at].node) or ()
            kept[at] = kept[at]._replace(node=_as_literal((*before, *parts)))
        else:
            open_[item.branch] = len(kept)
            kept.append(item)
    return kept


def without_unread(items: Items, read: Collection[str]) -> list[Item]:
    """Gens and selects go that come last on their branch, whose variables nobody reads and whose branch nobody joins.

    read: names of variables that are read after the run.
    """
    wanted = set(read) | {item.node.name for item in items if isinstance(item.node, ir.Ref)}
    joined = {child for item in items if isinstance(item.node, ir.Join) for child in item.node.children}
    needed: set[int] = set(joined)  # branches on which something later needs what came before
    kept: list[Item] = []
    for item in reversed(items):
        names = _names(item.node)
        if names is not None and item.branch not in needed and wanted.isdisjoint(names):
            continue
        if not isinstance(item.node, (ir.Text, ir.Fill, ir.RoleBegin, ir.RoleEnd)):
            needed.add(item.branch)
        kept.append(item)
    return kept[::-1]


def prefix_of(items: Items) -> list[Item]:
    """What every run has in common before its first argument and its first generated text."""
    kept: list[Item] = []
    for item in items:
        match item.node:
            case ir.Text() | ir.RoleBegin() | ir.RoleEnd() | ir.Image() | ir.Video() if item.branch == 0:
                kept.append(item)
            case ir.ScopeBegin() | ir.ScopeEnd() | ir.SetVar():
                continue
            case ir.Fill(parts) if item.branch == 0:
                if isinstance(parts[0], str):
                    kept.append(item._replace(node=ir.Text(parts[0])))
                break
            case _:
                break
    return kept


def assembled(items: Items, arguments: Sequence[str], branches: int) -> tuple[ir.Template, Mapping[int, int]]:
    """The template, and where in it the nodes of the trace are by their numbers there."""
    template = ir.Template(
        tuple(ir.Placed(item.branch, item.node) for item in items),
        tuple(arguments),
        tuple(item.source for item in items),
        branches,
    )
    return template, {item.number: index for index, item in enumerate(items) if item.number >= 0}


def _literal(node: ir.Sent) -> tuple[str | int, ...] | None:
    match node:
        case ir.Text(value):
            return (value,)
        case ir.Fill(parts):
            return parts
    return None


def _as_literal(parts: Sequence[str | int]) -> ir.Text | ir.Fill:
    joined: list[str | int] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, str) and isinstance(last, str):
            joined[-1] = last + part
        else:
            joined.append(part)
    if len(joined) == 1 and isinstance(joined[0], str):
        return ir.Text(joined[0])
    return ir.Fill(tuple(joined))


def _names(node: ir.Sent) -> set[str] | None:
    """The variables of a gen or select; None for any other node."""
    match node:
        case ir.Gen(name=name, constraint=constraint, reasoning=reasoning):
            names = {*capture_names(constraint)} | ({name} if name is not None else set())
            return names | ({thoughts_of(name)} if name is not None and reasoning is not None else set())
        case ir.Select(name=name):
            return {name} if name is not None else set()
    return None
