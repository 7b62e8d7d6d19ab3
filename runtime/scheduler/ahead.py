"""Planning a step while the one before is still being computed: which draws under way others may come after.

Knows: jobs of the step under way, who hopes to guess. Must not know: budgets, pages, what was drawn.

    step n      [ id | draw 0 ][ id | draw 1 ][ part of a prompt ]
    step n + 1  [ (0)| draw   ][ (1)| draw   ][ the next part    ]     (k): what draw k gives, known to the device alone
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from branchwork.runtime.scheduler.planner import ENDS, Job
from branchwork.runtime.speculative.draft import Context

_AWAKE = 8  # a step waits for what is drawn when one request in so many hopes for guesses after it


def following(jobs: Sequence[Job], hopeful: Callable[[Context], bool]) -> dict[int, int] | None:
    """For each request that draws in the step under way: its draw's number in that step, or ENDS.

    None where a draw decides what its request computes next: guesses that may come true, penalties for what was said,
    text that a grammar forces; or where so many requests hope to guess that waiting for the draws pays.
    """
    draws: dict[int, int] = {}
    count = awake = 0
    for job in jobs:
        row, answer = job.row, job.request.answer
        if row.draft or job.before:
            return None
        if row.shape is None or answer is None:
            continue
        count += 1
        if row.position < len(job.request.known):  # its grammar forced other text meanwhile: nothing comes of this draw
            continue
        if answer.penalised or answer.due:
            return None
        draws[job.request.key] = count - 1 if answer.room > 0 else ENDS
        awake += answer.context is not None and hopeful(answer.context)
    return None if awake * _AWAKE > len(draws) else draws
