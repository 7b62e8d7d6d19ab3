"""Which guesses came true: the rule by which drafted tokens become an answer.

Knows: token ids, what rows drew. Must not know: requests, pages, tensors.
A draw is a pure function of (logits, mask, seed, position), so the token drawn after a guess that was itself drawn is
the one that would have been drawn without guessing: keeping those is exact, for greedy and sampled answers alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from branchwork.runtime.plan import Drawn
from branchwork.runtime.speculative.draft import Draft, Limb


def verified(guesses: Sequence[int], drawn: Sequence[int]) -> int:
    """How many of the `drawn` tokens count: those after guesses that came true, and the first after them.

    drawn has one token more than guesses: drawn[i] was drawn with guesses[:i] before it.
    """
    count = 1
    for guess, token in zip(guesses, drawn):
        if guess != token:
            break
        count += 1
    return count


def followed(draft: Draft, limbs: Sequence[Limb], rows: Sequence[Drawn]) -> tuple[Drawn, list[int]]:
    """What a tree of guesses gives, as if it were one row, and the guesses that came true, from the root on.

    rows: what was drawn behind the trunk (from the last known token on), then behind each limb (from its first guess
    on), as `verified` leaves it. After a token that is none of its own guesses a row is left for the limb that grows
    there and begins with that token.
    """
    tokens: list[int] = []
    path: list[int] = []
    row, node = rows[0], -1
    scores = list(row.scores)
    while True:
        tokens += row.tokens
        true = len(row.tokens) - (not row.fault)  # the last token is no guess of the row, unless it could not be drawn
        path += range(node + 1, node + 1 + true)
        node += true
        turns = [] if row.fault else [n for n, limb in enumerate(limbs) if limb.parent == node]
        turn = next((n for n in turns if draft.ids[limbs[n].first] == tokens[-1]), -1)
        if turn < 0:
            return Drawn(tuple(tokens), tuple(scores), rows[0].known, row.fault), path
        row, node = rows[1 + turn], limbs[turn].first
        path.append(node)
        scores += row.scores
