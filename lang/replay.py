"""Programs kept in a file: what was laid and what came of it, and running it again from any of its gens.

Knows: nodes, the records of a live program, JSON. Must not know: how anything is executed, what ids mean.
A recording holds nodes and texts, no code: reading one runs nothing, and what the function's Python did with values
(texts made of them, branches not taken) stays as it was.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from branchwork.lang import ir
from branchwork.lang.backend import Backend, CallFailed, Emit, LocalBackend
from branchwork.lang.calls import Call, Reply
from branchwork.lang.constraint import capture_names
from branchwork.lang.errors import BranchworkError
from branchwork.lang.expr import knobs_of
from branchwork.lang.function import default_backend
from branchwork.lang.live import LiveProgram, Record
from branchwork.lang.params import SamplingParams, merge
from branchwork.lang.protocol import ChatFrames, ModelInfo
from branchwork.lang.reasoning import thoughts_of
from branchwork.lang.state import ProgramState
from branchwork.lang.transcript import Branch

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
    name, vocab = _identity(live.backend.model)
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
        notes=tuple(notes),
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


def replay(
    path: str | os.PathLike[str],
    *,
    from_: str | tuple[str, int] | None = None,
    backend: Backend | None = None,
    stream: bool = False,
    **knobs: Any,
) -> ProgramState:
    """Lay a saved program again; answers before gen or select `from_` are taken as they were, the rest is generated.

    from_: the name of a variable that a gen or select defines: its first definition, or with ("x", 2) its third. What
    was laid after it is generated anew on every branch, with the recorded seeds: the same model gives the same text,
    and finds the text before it in its cache. None: nothing is generated, and no backend is needed; the state shows
    what was.
    knobs: sampling parameters for what is generated anew; seed=None draws fresh seeds.
    Texts that the function made of values are the recorded ones. state.live.notes says what differs from the run.
    Raises RecordingError for a file that is no recording and a from_ that is not in it, TypeError and ValueError for
    knobs, CapabilityError for a node that the backend cannot execute.
    """
    recording = _load(Path(path))
    first = _place(recording, from_, path)
    if from_ is None and knobs:
        raise TypeError(f"{', '.join(knobs)} would change what is generated, but from_=None generates nothing")
    changes: dict[str, Any] = knobs_of(knobs)
    if "seed" in knobs and knobs["seed"] is None:
        changes["seed"] = None
    if backend is None:
        backend = _nobody(recording) if from_ is None else default_backend()
    notes, same = _differences(recording, backend)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    again = [
        _again(step, same) if number < first else _anew(step, changes) for number, step in enumerate(recording.nodes)
    ]
    for node in again[first:]:
        backend.accept(node)
    return _lay(LiveProgram(backend, stream), recording, again, notes)


def _lay(live: LiveProgram, recording: Recording, again: list[ir.Sent], notes: list[str]) -> ProgramState:
    live.notes += [*recording.notes, *notes]
    live.new_branches(recording.branches - 1)
    state = ProgramState(live)
    try:
        for (branch, source), steps in groupby(
            zip(recording.nodes, again), lambda pair: (pair[0].branch, pair[0].source)
        ):
            last = live.lay(branch, [node for _, node in steps], source)[-1]
            if branch == 0:
                state._last = last
    except BaseException as error:
        live.end(error=error)
        raise
    live.end()
    return state


def _again(step: Step, same: bool) -> ir.Sent:
    """A node that is not to be executed anew: with its answer, failure or winners."""
    node = step.node
    if isinstance(node, ir.Join):
        return msgspec.structs.replace(node, given=step.winners)
    if not isinstance(node, (ir.Gen, ir.Select)):
        return node
    if step.answer is None:
        assert step.failure is not None
        return msgspec.structs.replace(node, given=ir.Answered((), failed=(step.failure.code, step.failure.message)))
    meta = step.answer.meta[0] if same and step.answer.meta else {}
    ids = meta.get("output_ids", ())[: meta.get("kept_tokens")]  # those after a stop are no part of the transcript
    packed = struct.pack(f"<{len(ids)}i", *ids)
    return msgspec.structs.replace(node, given=msgspec.structs.replace(step.answer, ids=packed))


def _anew(step: Step, changes: Mapping[str, Any]) -> ir.Sent:
    """A node to be executed again: a gen with its recorded seed and the caller's knobs."""
    if not isinstance(step.node, ir.Gen):
        return step.node
    params = step.node.params or SamplingParams()
    knobs = {name: getattr(params, name) for name in params.__struct_fields__}
    seed = step.answer.meta[0].get("seed") if step.answer is not None and step.answer.meta else None
    return msgspec.structs.replace(
        step.node, params=merge({**knobs, **({} if seed is None else {"seed": seed}), **changes})
    )


def _load(path: Path) -> Recording:
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


def _place(recording: Recording, from_: str | tuple[str, int] | None, path: str | os.PathLike[str]) -> int:
    """Number of the first node that is executed anew; one past the last for none."""
    if from_ is None:
        return len(recording.nodes)
    match from_:
        case str(name):
            which = 0
        case (str(name), int(which)):
            pass
        case _:
            raise TypeError(f"from_ is the name of a variable, or (name, number), got {from_!r}")
    places: dict[str, list[int]] = {}
    for number, step in enumerate(recording.nodes):
        for defined in _defined(step.node):
            places.setdefault(defined, []).append(number)
    if name not in places:
        raise RecordingError(
            f"no gen or select of {path} defines {name!r}; defined are: {', '.join(map(repr, places)) or 'none'}"
        )
    if not 0 <= which < len(places[name]):
        raise RecordingError(
            f"{path} defines {name!r} {len(places[name])} times, so from_=({name!r}, {which}) is none of them; "
            f"the number is 0 to {len(places[name]) - 1}"
        )
    return places[name][which]


def _defined(node: ir.Sent) -> tuple[str, ...]:
    """The variables that a gen or select gives values."""
    match node:
        case ir.Gen(name=name, constraint=constraint, reasoning=reasoning):
            own = () if name is None else (name,) if reasoning is None else (name, thoughts_of(name))
            return tuple(dict.fromkeys((*own, *capture_names(constraint))))
        case ir.Select(name=str(name)):
            return (name,)
    return ()


def _identity(model: Any) -> tuple[str, int]:
    return (model.name, model.vocab) if isinstance(model, ModelInfo) else (str(model), 0)


def _differences(recording: Recording, backend: Backend) -> tuple[list[str], bool]:
    """What a reader should know, and whether the model is the one that was recorded."""
    name, vocab = _identity(backend.model)
    same = name == recording.model and (vocab == recording.vocab or not vocab or not recording.vocab)
    notes = []
    if not same:
        notes.append(
            f"recorded on model {recording.model!r}, replayed on {name!r}: texts are the recorded ones, their tokens "
            "this model's own, and seeds lead to other texts"
        )
    if backend.frames != recording.frames:
        notes.append("the chat template differs from the recorded one: roles stand in other frames")
    return notes, same


def _nobody(recording: Recording) -> Backend:
    """A backend for programs that are only looked at: no call ever reaches it."""

    async def refuse(call: Call, branch: Branch, emit: Emit) -> Reply:
        raise CallFailed("recorded", f"node {call.node} has no recorded answer; give replay(from_=...) to generate it")

    return LocalBackend(refuse, model=recording.model, frames=recording.frames)
