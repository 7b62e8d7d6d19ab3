"""Running a recorded program again, from any of its gens.

Knows: recordings, nodes, states. Must not know: files, how anything is executed, what ids mean.
What the function's Python did with values (texts made of them, branches not taken) stays as it was.
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
from branchwork.lang.default import default_backend
from branchwork.lang.expr import knobs_of
from branchwork.lang.live import LiveProgram
from branchwork.lang.params import SamplingParams, merge
from branchwork.lang.reasoning import thoughts_of
from branchwork.lang.recording import Recording, RecordingError, Step, identity, load
from branchwork.lang.state import ProgramState
from branchwork.lang.transcript import Branch


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
    recording = load(Path(path))
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


def _differences(recording: Recording, backend: Backend) -> tuple[list[str], bool]:
    """What a reader should know, and whether the model is the one that was recorded."""
    name, vocab = identity(backend.model)
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
