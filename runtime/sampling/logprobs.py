"""Log-probabilities of given tokens, and the most likely alternatives, under the model's own distribution.

Knows: logits. Must not know: how a token was drawn, masks, penalties, temperature (scores ignore them all).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from branchwork.runtime.sampling.readback import Readback
from branchwork.runtime.wire import TokenScore, TopToken


class Scores:
    """Scores of tokens [n] int64 under log_softmax(logits[rows[i]]), logits [M, V]: computed where the logits are, read
    when they are wanted.

    top: how many of the best tokens to name. Computed in float32.
    """

    def __init__(self, logits: Tensor, tokens: Tensor, top: int, rows: Sequence[int]) -> None:
        logits = logits.float()
        total = logits.logsumexp(-1, keepdim=True)
        place = torch.tensor(rows, dtype=torch.int64, device=logits.device)
        self._rows, self._tokens = rows, Readback(tokens)
        self._own = Readback(logits[place, tokens] - total[place, 0])
        self._best: tuple[Readback, Readback] | None = None
        if top > 0:
            values, ids = logits.topk(min(top, logits.shape[1]), sorted=True)
            self._best = Readback(values - total), Readback(ids)

    def read(self) -> list[TokenScore]:
        """Each token's score. Alternatives come most likely first, ties by id."""
        rows = self._rows
        tops: dict[int, tuple[TopToken, ...]] = {}
        if self._best is not None:
            values, ids = (part.read().tolist() for part in self._best)
            for row in set(rows):
                ranked = sorted(zip(values[row], ids[row], strict=True), key=_by_rank)
                tops[row] = tuple([TopToken(token, value) for value, token in ranked])
        own = zip(self._tokens.read().tolist(), self._own.read().tolist(), rows, strict=True)
        return [TokenScore(token, score, tops.get(row, ())) for token, score, row in own]


def scores_of(logits: Tensor, token_ids: Sequence[int], top: int, rows: Sequence[int] | None = None) -> Scores:
    """The score of token_ids[i] under log_softmax(logits[rows[i]]), logits [M, V], with the `top` best tokens there.

    rows: None for one token a row, in order; top is cut to V.
    Raises ValueError when the numbers of rows and ids differ or an id lies outside the vocabulary.
    """
    count, vocab = logits.shape
    wanted = count if rows is None else len(rows)
    if len(token_ids) != wanted or not all(0 <= token < vocab for token in token_ids):
        raise ValueError(f"{len(token_ids)} token ids below {vocab} are needed for {wanted} places in {count} rows")
    tokens = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    return Scores(logits, tokens, top, range(count) if rows is None else rows)


def known_scores(
    logits: Tensor, token_ids: Sequence[int], top: int, rows: Sequence[int] | None = None
) -> list[TokenScore]:
    """`scores_of`, read at once."""
    return scores_of(logits, token_ids, top, rows).read()


def _by_rank(entry: tuple[float, int]) -> tuple[float, int]:
    return -entry[0], entry[1]
