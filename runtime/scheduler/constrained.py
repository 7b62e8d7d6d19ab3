"""Constraints of requests: waiting for their grammars, filling the masks of a step, what a finished answer reports.

Knows: grammars and matchers by their protocol, jobs. Must not know: which engine compiles, the tree, tensors.
A request whose grammar is still being compiled waits here: it has no lease, and the running ones do not notice it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from branchwork.lang.constraint import Constraint, ConstraintError
from branchwork.runtime.grammar.matcher import Grammar, Row
from branchwork.runtime.scheduler.planner import Job
from branchwork.runtime.scheduler.request import Answer
from branchwork.runtime.wire import Failed, Submit

Masks = tuple[NDArray[np.int32], list[int]]


class Grammars(Protocol):
    """Compiles off the loop (runtime/grammar/pool.py)."""

    def get(self, constraint: Constraint) -> Grammar | ConstraintError | None:
        """The grammar or why there is none; None: it is being compiled from now on."""

    def poll(self) -> list[tuple[Constraint, Grammar | ConstraintError]]:
        """What has been compiled since the last call."""


class NoGrammars:
    """For an engine that was built without constraints: refuses them all."""

    def get(self, constraint: Constraint) -> Grammar | ConstraintError | None:
        return ConstraintError("this runtime was started without constrained decoding")

    def poll(self) -> list[tuple[Constraint, Grammar | ConstraintError]]:
        return []


class Waiting:
    """Requests whose grammars are being compiled."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._parked: dict[Constraint, list[Submit]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parked.values()))

    def __contains__(self, number: int) -> bool:
        return any(message.id == number for messages in self._parked.values() for message in messages)

    def look(self, message: Submit) -> Grammar | Failed | None:
        """The grammar of a request's constraint, its refusal, or None: the request is parked here until `ready`."""
        constraint = message.constraint
        assert constraint is not None
        found = None if constraint in self._parked else self._grammars.get(constraint)
        if found is None:
            self._parked.setdefault(constraint, []).append(message)
            return None
        return _refused(message, found) if isinstance(found, ConstraintError) else found

    def ready(self) -> list[tuple[Submit, Grammar | Failed]]:
        """Parked requests whose grammars have come, or cannot."""
        found: list[tuple[Submit, Grammar | Failed]] = []
        for constraint, outcome in self._grammars.poll():
            for message in self._parked.pop(constraint, []):
                given = _refused(message, outcome) if isinstance(outcome, ConstraintError) else outcome
                found.append((message, given))
        return found

    def cancel(self, number: int) -> bool:
        """Forget a parked request; whether there was one. Its grammar goes on compiling, for the next who asks."""
        for constraint, messages in self._parked.items():
            left = [message for message in messages if message.id != number]
            if len(left) < len(messages):
                self._parked[constraint] = left
                return True
        return False

    def clear(self) -> list[int]:
        """Forget all parked requests; their numbers."""
        numbers = [message.id for messages in self._parked.values() for message in messages]
        self._parked = {constraint: [] for constraint in self._parked}
        return numbers


def _refused(message: Submit, error: ConstraintError) -> Failed:
    return Failed(message.id, error.code, str(error))


class MaskWriter:
    """Fills the masks of a step. vocab: ids are 0 .. vocab-1; eos: those that end an answer."""

    def __init__(self, vocab: int, eos: Iterable[int]) -> None:
        self._words = -(-vocab // 32)
        self._eos = frozenset(eos)
        ends = np.zeros(self._words, np.uint32)
        for token in self._eos:
            ends[token >> 5] |= np.uint32(1 << (token & 31))
        self._not_ends = ~ends.view(np.int32)

    def write(self, jobs: Sequence[Job]) -> Masks | None:
        """Masks int32 [n, words] and which draws of the step they are for; None when no row is constrained.

        Draws are counted over the rows that draw, a row with a draft of n guesses as n + 1. May run in another thread
        while the forward runs: it touches the matchers of these jobs and nothing else.
        """
        count = sum(job.row.draft + 1 for job in jobs if job.row.masked)
        if not count:
            return None
        words = np.zeros((count, self._words), np.int32)
        masked: list[int] = []
        draw = at = 0
        for job in jobs:
            row = job.row
            if row.shape is None:
                continue
            draws = row.draft + 1
            if row.masked and job.request.answer is not None:
                if job.request.lease is not None:  # else it has ended
                    guesses = (*job.before, *row.ids[len(row.ids) - row.draft :])
                    self._fill(job.request.answer, guesses, len(job.before), words[at : at + draws])
                masked += range(draw, draw + draws)
                at += draws
            draw += draws
        return words, masked

    def _fill(self, answer: Answer, guesses: Sequence[int], first: int, words: NDArray[np.int32]) -> None:
        """One mask per guess from guess `first` on, and one for what follows the last; where text is due and binding,
        of that alone."""
        matcher = answer.matcher
        assert matcher is not None
        due = answer.due if answer.binding else []
        taken = 0
        for n in range(len(guesses) + 1):
            if n >= first:  # another row draws before that
                word = words[n - first]
                if n < len(due):
                    word.view(np.uint32)[due[n] >> 5] = 1 << (due[n] & 31)
                else:
                    self._mask(answer, n, word)
            if n < len(guesses):
                taken += matcher.accept([guesses[n]])
        matcher.rollback(taken)

    def _mask(self, answer: Answer, ahead: int, row: Row) -> None:
        assert answer.matcher is not None
        answer.matcher.mask_into(row)
        stops = answer.submit.stops
        if self._eos.isdisjoint(stops.ids) or answer.stops.tokens + ahead < stops.min_tokens:
            others = row & self._not_ends
            if others.any():  # where nothing else may follow, the answer has to end
                row[:] = others
