"""The rows of a request: known tokens to compute, a token to draw after the last of them, guesses behind it.

Knows: requests, leases, drafts. Must not know: budgets, other requests, tensors.
"""

from __future__ import annotations

import msgspec

from branchwork.runtime.cache.prefix_cache import Lease
from branchwork.runtime.plan import Row
from branchwork.runtime.scheduler.request import Request
from branchwork.runtime.speculative.draft import NOTHING, Draft


def draw_row(request: Request, lease: Lease, start: int, ids: list[int], draft: Draft) -> Row:
    """A row whose last known token's logits give the next token, and those of each guess the one after it."""
    answer = request.answer
    assert answer is not None
    submit, known, penalised = answer.submit, request.known, answer.penalised
    trunk = 0 if draft is NOTHING else draft.trunk
    return Row(
        request.id,
        start,
        [*ids, *draft.ids[:trunk]],
        lease.pages,
        submit.shape,
        position=len(known),
        prompt_history=known[: request.prompt] if penalised else (),
        answer_history=known[request.prompt :] if penalised else (),
        logprobs=submit.logprobs,
        draft=trunk,
        masked=answer.matcher is not None,
    )


def after_row(request: Request, lease: Lease, draw: int) -> Row:
    """A row that draws after the token which draw number `draw` of the step under way gives its request."""
    row = draw_row(request, lease, len(request.known), [0], NOTHING)
    return msgspec.structs.replace(row, position=row.position + 1, after=draw)


def known_row(request: Request, lease: Lease, end: int, draft: Draft) -> Row:
    """The row that computes known tokens up to `end`, and the scores of prompt tokens that are wanted from it."""
    start, known, answer = request.computed, request.known, request.answer
    ids = known[start:end].tolist()
    if answer is None:
        state = "" if request.vector is None else request.vector.wanted(end == len(known))
        return Row(request.id, start, ids, lease.pages, state=state)
    drawing = end == len(known)
    row = draw_row(request, lease, start, ids, draft) if drawing else Row(request.id, start, ids, lease.pages)
    first = answer.next_score(request.prompt)
    if first is None or first > end:
        return row
    return msgspec.structs.replace(
        row,
        score_from=first - start,
        score_next=(known[end],) if end < request.prompt else (),
        score_top=answer.submit.prompt_logprobs,
    )
