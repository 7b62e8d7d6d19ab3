"""Log-probabilities of given tokens, and the most likely alternatives, under the model's own distribution.

Knows: logits. Must not know: how a token was drawn, masks, penalties, temperature (scores ignore them all).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from branchwork.runtime.wire import TokenScore, TopToken


def known_scores(logits: torch.Tensor, token_ids: Sequence[int], top: int) -> list[TokenScore]:
    """The score of token_ids[i] under log_softmax(logits[i]) for each row of logits [M, V], with the `top` best tokens.

    Alternatives come most likely first, ties by id; top is cut to V. Computed in float32 whatever the logits' type.
    Raises ValueError when the numbers of rows and ids differ or an id lies outside the vocabulary.
    """
    count, vocab = logits.shape
    if len(token_ids) != count or not all(0 <= token < vocab for token in token_ids):
        raise ValueError(f"{len(token_ids)} token ids below {vocab} are needed for {count} rows of logits")
    if count == 0:
        return []
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    chosen = torch.tensor(token_ids, device=logits.device)[:, None]
    own = (logits.gather(1, chosen) - total)[:, 0].tolist()
    tops: list[tuple[TopToken, ...]] = [()] * count
    if top > 0:
        values, ids = logits.topk(min(top, vocab), sorted=True)
        tops = [
            tuple(TopToken(token, value) for value, token in sorted(zip(vs, ts, strict=True), key=_by_rank))
            for vs, ts in zip((values - total).tolist(), ids.tolist(), strict=True)
        ]
    return [TokenScore(token, score, best) for token, score, best in zip(token_ids, own, tops, strict=True)]


def _by_rank(entry: tuple[float, int]) -> tuple[float, int]:
    return -entry[0], entry[1]
