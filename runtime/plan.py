"""A decision handed over: what one step computes (Plan, Row) and what came of it (Result).

Knows: ids and page numbers. Must not know: requests as objects, trees, tensors.

    known ids of a request   [ 0 .................. start | ids of this step | later ids ]
    its KV after the step    [ pages cover ................................ ]
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from branchwork.runtime.wire import Shape, TokenScore


class Row(msgspec.Struct, frozen=True):
    """Compute `ids` at positions start, start+1, ...; their KV goes into the slots that `pages` gives.

    pages: page numbers of positions 0 .. start+len(ids)-1, or more: position p is slot p % page_size of
        pages[p // page_size]. A live list: read it by value, in its own step.
    Pages before `start` may belong to rows of the same step: every layer writes all KV before it attends.
    shape: how to draw the token after the last of `ids`; None when more known ids follow (no draw).
    history: answer ids so far and prompt ids, given only when shape has penalties (frequency and presence count the
        answer, repetition both).
    logprobs: -1, or k for the drawn token's log-probability and the top k.
    draft: how many of the last `ids` are guesses at what will be drawn. A token is drawn after the last known id and
        after each guess; what follows the first guess that was not drawn is void. History and position are those of
        the first draw. masked: each of these draws has a mask (a bit per token, set = allowed).
    score_from: index into `ids` of the first token whose log-probability is wanted *as a known token*: for i in
        [max(score_from, 1), len(ids)) token ids[i] is scored from the logits at ids[i-1]. len(ids) for none.
    score_next: tokens that are scored, as known ones, from the logits at the last of `ids`.
    score_top: top-k wanted with known-token scores.
    state: which of the row's last normed hidden states are wanted: "" none, "first" or "last" that of its first or last
        id, "sum" the sum of all of them, see Drawn.
    after: the row's only id is not known yet: it is what draw number `after` of the step before gives, and `ids` holds
        a 0 for it. Draws are counted over the rows of that step. -1 for rows whose ids are known.
    """

    request: int
    start: int
    ids: Sequence[int]
    pages: Sequence[int]
    shape: Shape | None = None
    position: int = 0  # of the token to draw: number of known ids of the request (the draw's counter)
    prompt_history: Sequence[int] = ()
    answer_history: Sequence[int] = ()
    logprobs: int = -1
    score_from: int = 1 << 30
    score_next: tuple[int, ...] = ()
    score_top: int = 0
    draft: int = 0
    masked: bool = False
    state: str = ""
    after: int = -1


class Plan(msgspec.Struct, frozen=True):
    step: int
    rows: tuple[Row, ...]


class Drawn(msgspec.Struct, frozen=True):
    """What came of one row. tokens: as drawn, in order; several when guesses came true. scores: theirs, when asked.

    fault: why a row that should have drawn has no token; its request ends with that, the others go on.
    known: scores of known tokens in order, then score_next's.
    state: what Row.state asked for, float64 packed [C]. A sum is of states rounded to multiples of 2^-24, which floats
        of 64 bits add without error up to 2^29: it is the same in whatever order, and over whatever steps, it is made.
    """

    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    known: tuple[TokenScore, ...] = ()
    fault: str = ""
    state: bytes = b""


class Result(msgspec.Struct, frozen=True):
    """One Drawn per Plan row, same order."""

    step: int
    rows: tuple[Drawn, ...]
