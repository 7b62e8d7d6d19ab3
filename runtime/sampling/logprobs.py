"""Log-probabilities of given tokens, and the most likely alternatives, under the model's own distribution.

Knows: logits. Must not know: how a token was drawn, masks, penalties, temperature (scores ignore them all).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from branchwork.runtime.wire import TokenScore, TopToken


def known_scores(
    logits: torch.Tensor, token_ids: Sequence[int], top: int, rows: Sequence[int] | None = None
) -> list[TokenScore]:
    """The score of token_ids[i] under log_softmax(logits[rows[i]]), logits [M, V], with the `top` best tokens there.

    rows: None for one token a row, in order. Alternatives come most likely first, ties by id; top is cut to V.
    Computed in float32 whatever the logits' type.
    Raises ValueError when the numbers of rows and ids differ or an id lies outside the vocabulary.
    """
    count, vocab = logits.shape
    wanted = count if rows is None else len(rows)
    if len(token_ids) != wanted or not all(0 <= token < vocab for token in token_ids):
        raise ValueError(f"{len(token_ids)} token ids below {vocab} are needed for {wanted} places in {count} rows")
    if wanted == 0:
        return []
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    place = torch.tensor(range(count) if rows is None else rows, device=logits.device)
    chosen = torch.tensor(token_ids, device=logits.device)
    own = (logits[place, chosen] - total[place, 0]).tolist()
    tops: list[tuple[TopToken, ...]] = [()] * count
    if top > 0:
        values, ids = logits.topk(min(top, vocab), sorted=True)
        tops = [
            tuple(TopToken(token, value) for value, token in sorted(zip(vs, ts, strict=True), key=_by_rank))
            for vs, ts in zip((values - total).tolist(), ids.tolist(), strict=True)
        ]
    at = range(count) if rows is None else rows
    return [TokenScore(token, score, tops[row]) for token, score, row in zip(token_ids, own, at, strict=True)]


def _by_rank(entry: tuple[float, int]) -> tuple[float, int]:
    return -entry[0], entry[1]
