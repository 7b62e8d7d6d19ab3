"""Recordings: everything that was laid in a program and what came of it, as a file of JSON lines.

Knows: nodes, the records of a live program, JSON. Must not know: running anything again, backends, what ids mean.
A recording holds nodes and texts, no code: reading one runs nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from branchwork.lang import ir
from branchwork.lang.errors import BranchworkError
from branchwork.lang.live import LiveProgram, Record
from branchwork.lang.protocol import ChatFrames, ModelInfo

VERSION = 1  # of the file


class RecordingError(BranchworkError, ValueError):
    """A file is no recording that can be replayed as asked."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """cause: number of the node where it began."""

    code: str
    message: str
    cause: int


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node, where it stands, the "file:line" that laid it and what came of it. Its number is its place in the file.

    answer: of a gen or select that was done. winners: of the join of a race, indexes of the children it went on with.
    """

    branch: int
    node: ir.Sent
    source: str = ""
    answer: ir.Answered | None = None
    winners: tuple[int, ...] = ()
    failure: Failure | None = None


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """A program as it was saved. vocab: tokens of the model, 0 where that is not known. branches: how many there are.

    notes: what is not the same as it was, a sentence each.
    """

    version: int
    model: str
    vocab: int
    frames: ChatFrames
    branches: int
    notes: tuple[str, ...]
    nodes: tuple[Step, ...]


class _Header(msgspec.Struct):
    version: int


# --- saving


def save(live: LiveProgram, path: str | os.PathLike[str]) -> None:
    """Wait until nothing of the program is left to execute, then write it. A program that failed is kept too.

    Not kept: what the function returned, types of typed values (their texts are), objects set as variables (str() of
    them is). Raises OSError where the file cannot be written.
    """
    live.wait(lambda: not live.may_grow() and live.machine.idle)
    with live.changed:
        recording = _recording(live)
    head = msgspec.json.encode(msgspec.structs.replace(recording, nodes=()), enc_hook=str).removesuffix(b"[]}")
    nodes = b",\n".join(msgspec.json.encode(step, enc_hook=str) for step in recording.nodes)
    Path(path).write_bytes(head + b"[\n" + nodes + b"\n]}\n")


def _recording(live: LiveProgram) -> Recording:
    name, vocab = identity(live.backend.model)
    notes = list(live.notes)
    if live.body.error is not None:
        notes.append(f"the function raised {type(live.body.error).__name__}: {live.body.error}")
    for number, record in live.records.items():
        if number in live.machine.objects:
            kind = type(live.machine.objects[number]).__name__
            notes.append(f"{record.describe()} [{record.source}] was a {kind}; its text is kept")
        if isinstance(record.node, ir.Gen) and record.node.readers:
            notes.append(f"{', '.join(record.node.readers)} [{record.source}] had a type; the text is kept")
    branches = 1 + max((child for r in live.records.values() for child in _children(r.node)), default=0)
    steps = tuple(_step(live, number, live.records[number]) for number in sorted(live.records))
    return Recording(
        version=VERSION,
        model=name,
        vocab=vocab,
        frames=live.backend.frames,
        branches=branches,
        notes=tuple(dict.fromkeys(notes)),  # a line that runs often says the same each time
        nodes=steps,
    )


def _children(node: ir.Node) -> tuple[int, ...]:
    return node.children if isinstance(node, ir.Fork) else ()


def _step(live: LiveProgram, number: int, record: Record) -> Step:
    failed = live.machine.failure(number)
    node, answer = ir.bare(record.node), None
    if isinstance(node, (ir.Gen, ir.Select)):
        node = msgspec.structs.replace(node, given=None)
        if failed is None:
            answer = ir.Answered(record.values, record.meta, record.captures)
    elif isinstance(node, ir.Join):
        node = msgspec.structs.replace(node, given=())
    return Step(
        branch=record.branch,
        node=node,
        source=record.source,
        answer=answer,
        winners=tuple(live.machine.winners.get(number, ())),
        failure=None if failed is None else Failure(failed.code, failed.message, failed.cause),
    )


# --- replaying


# --- reading


def load(path: Path) -> Recording:
    """Raises RecordingError for what is no recording, or one of another version."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RecordingError(f"there is no file {path}; state.save(path) writes one") from None
    try:
        header = msgspec.json.decode(data, type=_Header)
    except msgspec.DecodeError as error:
        raise RecordingError(f"{path} is no recording of a program, as state.save(path) writes them: {error}") from None
    if header.version != VERSION:
        raise RecordingError(
            f"{path} is a recording of version {header.version}; this Branchwork reads version {VERSION}: save it anew"
        )
    try:
        recording = msgspec.json.decode(data, type=Recording)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RecordingError(f"{path} is damaged: {error}") from None
    for number, step in enumerate(recording.nodes):
        asked = isinstance(step.node, (ir.Gen, ir.Select))
        if asked and step.failure is None and (step.answer is None or not step.answer.values):
            raise RecordingError(
                f"{path} is damaged: node {number} [{step.source}] has neither an answer nor a failure"
            )
    return recording


def identity(model: Any) -> tuple[str, int]:
    """A model's name and its number of tokens, 0 where that is not known."""
    return (model.name, model.vocab) if isinstance(model, ModelInfo) else (str(model), 0)
