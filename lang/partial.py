"""Values of a running program while they are still being written: objects field by field, lists and texts as they grow.

Knows: a live program's chunks and captures, how constraints are written, JSON by way of lang.growing. Must not know:
the user's syntax, backends. Like lang.follow: one generator without I/O, a blocking and an awaiting driver for it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any, NamedTuple

from branchwork.lang.constraint import JsonSchema, Sequence, capture_names
from branchwork.lang.follow import unknown
from branchwork.lang.growing import Growing, GrowingJson, GrowingText, Whole
from branchwork.lang.ir import Gen, Node, Reasoning
from branchwork.lang.live import LiveProgram
from branchwork.lang.transcript import NodeFailed, Value


class Now(NamedTuple):
    """What a variable has come to."""

    value: Any


Steps = Generator[Now | int, None, None]


def follow(live: LiveProgram, branch: int, name: str) -> Iterator[Any]:
    """A variable's value whenever more of it is certain, at last the whole value as reading the variable gives it.

    What is written as JSON comes as dicts, lists, texts so far, and numbers once they are complete; a key comes with
    the first of its value. Text comes as it is so far. A turn comes as a dict of those of its variables that are
    certain. Anything else, any part of a turn, and everything where nothing is streamed, comes once. Of several
    samples the first is followed, and the last value is the list of all. For json_schema= the last value is what the
    JSON says. Values may share their finished parts with later ones, so they are not to be changed.

    Raises ProgramError when the variable fails, is cut off, or is never laid.
    """
    for step in _steps(live, branch, name):
        if isinstance(step, Now):
            yield step.value
        else:
            seen = step
            live.wait(lambda: live.version != seen)  # noqa: B023  (called before `seen` changes)


async def follow_async(live: LiveProgram, branch: int, name: str) -> AsyncIterator[Any]:
    """The same for `async for`."""
    for step in _steps(live, branch, name):
        if isinstance(step, Now):
            yield step.value
        else:
            seen = step
            await live.wait_async(lambda: live.version != seen)  # noqa: B023


def _steps(live: LiveProgram, branch: int, name: str) -> Steps:
    """Now for every value, and the version of the program seen where it is to be resumed after a change."""
    node = yield from _definer(live, branch, name)
    record = live.records[node]
    author = record.node
    parts = capture_names(author.constraint) if isinstance(author, Gen) and author.name == name else ()
    growing = Whole() if parts else _growing(author, name)
    answer = _Answer(author.reasoning if isinstance(author, Gen) else None)
    taken, given = 0, growing.changes
    certain: dict[str, Value] = {}  # parts of a turn
    while True:
        with live.changed:
            seen = live.version
            settled = live.machine.settled(node, name)
            value = live.machine.value(node, name) if settled else None
            chunks = record.chunks[taken:]
            closed = {part: live.machine.value(node, part) for part in parts if live.machine.settled(node, part)}
        if isinstance(value, NodeFailed):
            raise live.error(value)
        if settled:
            last = _turn(live, node, closed) if parts else _finished(live, node, name, value)
            if not (isinstance(growing, GrowingText) and given and last == growing.value()):
                yield Now(last)
            return
        if closed != certain:
            certain = closed
            yield Now({part: live.read(node, part, closed[part]) for part in closed})
        for chunk in chunks:
            growing.feed(answer.take(chunk.text))
        taken += len(chunks)
        if growing.changes != given and not growing.complete:
            given = growing.changes
            yield Now(growing.value())
        yield seen


def _definer(live: LiveProgram, branch: int, name: str) -> Generator[int, None, int]:
    """The node that defines the variable, the latest one or else the first to come."""
    while True:
        with live.changed:
            seen = live.version
            node = live.machine.lineage.definer(branch, name)
            over = not live.may_grow()
        if node is not None:
            return node
        if over:
            raise unknown(live, branch, name)
        yield seen


def _growing(node: Node, name: str) -> Growing:
    if not isinstance(node, Gen) or node.name != name:
        return Whole()
    if _is_json(node):
        return GrowingJson()
    return Whole() if name in node.readers else GrowingText()


def _is_json(node: Gen) -> bool:
    shape = node.constraint
    if node.reasoning is not None and isinstance(shape, Sequence):  # thinking, then the answer
        shape = shape.parts[-1]
    return isinstance(shape, JsonSchema)


def _finished(live: LiveProgram, node: int, name: str, value: Value) -> Any:
    """As reading it gives it, but JSON that nobody gave a type as what it says."""
    last, record = live.read(node, name, value), live.records[node]
    author = record.node
    if not isinstance(author, Gen) or author.name != name or name in author.readers or not _is_json(author):
        return last
    try:
        return [json.loads(text) for text in last] if isinstance(last, list) else json.loads(last)
    except (ValueError, RecursionError) as error:
        raise live.incomplete(node, name, last, error) from error


def _turn(live: LiveProgram, node: int, closed: dict[str, Value]) -> Any:
    """All variables of a turn; for several samples a list of such dicts."""
    read = {part: live.read(node, part, value) for part, value in closed.items()}
    author = live.records[node].node
    samples = author.params.n if isinstance(author, Gen) and author.params is not None else 1
    if samples == 1:
        return read
    return [{part: values[index] for part, values in read.items()} for index in range(samples)]


class _Answer:
    """Of the text of a gen what comes after its thinking, where that is kept apart."""

    def __init__(self, how: Reasoning | None) -> None:
        self._how = how
        self._held = ""  # text of which it is not certain yet that it is not thinking
        self._begun = how is None  # what comes is answer, but for whitespace before it

    def take(self, text: str) -> str:
        """The part of the next piece of text, and of those held before, that belongs to the answer."""
        how = self._how
        if how is None:
            return text
        if not self._begun:
            old, self._held = self._held, self._held + text
            if not how.begun and not self._held.startswith(how.begin):
                if how.begin.startswith(self._held):
                    return ""
                text = self._held
            else:
                end = self._held.find(how.end, max(0, len(old) - len(how.end)))
                if end < 0:
                    return ""
                text = self._held[end + len(how.end) :].lstrip()
            self._begun = True
        else:
            text = text.lstrip()
        if text:
            self._how = None
        return text
