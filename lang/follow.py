"""Text of a running program as it comes: generators without I/O, and a blocking and an awaiting driver for them.

Knows: a live program's segments and chunks. Must not know: the user's syntax, backends.
A generator yields a Chunk, or the version of the program it has seen: then it is to be resumed after a change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator

from branchwork.lang.backend import Chunk
from branchwork.lang.errors import ProgramError
from branchwork.lang.ir import Gen
from branchwork.lang.live import LiveProgram, Record
from branchwork.lang.transcript import NodeFailed, Value

Steps = Generator[Chunk | int, None, None]


def follow_text(live: LiveProgram, branch: int) -> Steps:
    """Everything appended to a branch, from its first segment until nobody can add to it.

    Raises ProgramError where the branch fails.
    """
    shown = 0  # segments given out
    node, taken, sent = -1, 0, 0  # the gen under way: its chunks and characters given out
    while True:
        with live.changed:
            seen = live.version
            view = live.machine.branch(branch)
            segments, failure = view.segments[shown:], view.failure
            call = live.machine.under_way(branch)
            chunks = list(live.records[call.node].chunks) if call else []
            over = not live.may_grow() and live.machine.caught_up(branch, len(live.records))
        for segment in segments:
            record = live.records[segment.node]
            meta = record.meta[0] if record.meta else {}
            text = segment.text[sent:] if segment.node == node else segment.text
            if text:
                yield Chunk(text, meta)
        shown += len(segments)
        if call is not None:
            if call.node != node:
                node, taken, sent = call.node, 0, 0
            for chunk in chunks[taken:]:
                sent += len(chunk.text)
                yield chunk
            taken = len(chunks)
        if failure is not None:
            raise live.error(failure)
        if over:
            return
        yield seen


def follow_variable(live: LiveProgram, branch: int, name: str) -> Steps:
    """One variable's text: piece by piece while it is generated, in one piece otherwise (a list: its first value).

    A part of a turn comes whole once it is certain; what a turn repeats, in as many pieces; what it left out, not.

    The latest definition that is laid when this begins is followed, or the first one to come.
    Raises ProgramError when it fails or when the program ends without laying it.
    """
    while True:
        with live.changed:
            seen = live.version
            node = live.machine.lineage.definer(branch, name)
            over = not live.may_grow()
        if node is not None:
            break
        if over:
            raise unknown(live, branch, name)
        yield seen
    record, taken, sent = live.records[node], 0, 0
    part = isinstance(record.node, Gen) and record.node.name != name
    while True:
        with live.changed:
            seen = live.version
            chunks = [] if part else list(record.chunks)
            settled = live.machine.settled(node, name)
            value = live.machine.value(node, name) if settled else None
        for chunk in chunks[taken:]:
            sent += len(chunk.text)
            yield chunk
        taken = len(chunks)
        if isinstance(value, NodeFailed):
            raise live.error(value)
        if settled:
            yield from _settled(value, sent if isinstance(record.node, Gen) else 0, record)
            return
        yield seen


def _settled(value: Value, sent: int, record: Record) -> Iterator[Chunk]:
    """What is left of a variable's text once it is there."""
    node, meta = record.node, record.meta[0] if record.meta else {}
    samples = not isinstance(node, Gen) or node.params is None or node.params.n > 1
    if samples and isinstance(value, list) and value:
        value = value[0]
    for text in value if isinstance(value, list) else [value]:
        if text is not None:
            yield Chunk(str(text)[sent:], meta)


def unknown(live: LiveProgram, branch: int, name: str) -> ProgramError:
    """The error for reading a variable that nobody has laid."""
    known = ", ".join(live.machine.lineage.names(branch)) or "none"
    return ProgramError("unknown_variable", f"no variable {name!r} has been laid on this branch; known: {known}")


def drive(live: LiveProgram, steps: Steps) -> Iterator[Chunk]:
    for step in steps:
        if isinstance(step, Chunk):
            yield step
        else:
            seen = step
            live.wait(lambda: live.version != seen)  # noqa: B023  (called before `seen` changes)


async def drive_async(live: LiveProgram, steps: Steps) -> AsyncIterator[Chunk]:
    for step in steps:
        if isinstance(step, Chunk):
            yield step
        else:
            seen = step
            await live.wait_async(lambda: live.version != seen)  # noqa: B023
