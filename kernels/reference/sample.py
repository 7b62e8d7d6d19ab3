"""Drawing tokens from logits: penalties, masks, filters and the draw, as plain torch. The definition.

Knows: logits, numbers per row. Must not know: requests, seeds' origin, hardware.

A row's tokens are ordered by logit after mask and penalties, highest first, ties by id. top_k, top_p and min_p each
keep a prefix of that order (at least one token); the draw is the first token whose cumulative weight in the prefix
exceeds uniform * weight of the prefix. One uniform a row, so a draw depends on nothing but its own row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

NOT_FINITE = -1  # the row holds NaN or +inf
ALL_MASKED = -2  # the row has no token that may be drawn


class Draws(NamedTuple):
    """One entry a row, each [N]. temperature 0: the first of the order; top_k <= 0, top_p >= 1, min_p 0: no filter."""

    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int32]
    top_p: npt.NDArray[np.float32]
    min_p: npt.NDArray[np.float32]
    uniform: npt.NDArray[np.float64]


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return x


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """u in [0, 1) per (seed, position): number `position` of the splitmix64 stream that starts at the mixed seed.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014. A pure function: no state.
    """
    seed = np.array([value & 0xFFFFFFFFFFFFFFFF for value in seeds], dtype=np.uint64)
    counter = np.array(positions, dtype=np.uint64) + np.uint64(1)
    bits = _mix(_mix(seed + _GOLDEN) + counter * _GOLDEN)
    u: npt.NDArray[np.float64] = (bits >> np.uint64(11)) * 2.0**-53
    return u


def penalise(
    logits: torch.Tensor,
    answer: Sequence[int],
    prompt: Sequence[int],
    frequency: float,
    presence: float,
    repetition: float,
) -> None:
    """Lower, in place, the logits [V] of tokens that occurred.

    First every token of prompt or answer: positive logits are divided by `repetition`, others multiplied (Keskar et
    al., CTRL, 2019); then tokens of the answer: minus frequency * count and minus presence. Ids >= V do not matter.
    """
    size = logits.shape[0]
    ids, counts = np.unique(np.asarray(answer, dtype=np.int64), return_counts=True)
    counts, ids = counts[ids < size], ids[ids < size]
    if repetition != 1.0:
        seen = np.concatenate((ids, np.asarray(prompt, dtype=np.int64)))  # repeats all write the same: no need to sort
        at = torch.from_numpy(seen[seen < size]).to(logits.device)
        values = logits[at]
        logits[at] = torch.where(values > 0, values / repetition, values * repetition)
    at = torch.from_numpy(ids).to(logits.device)
    logits[at] -= torch.from_numpy(counts * frequency + presence).to(logits)


def allowed(masks: torch.Tensor, vocab: int) -> torch.Tensor:
    """bool [N, vocab] of int32 bitmasks [N, >= ceil(vocab / 32)]: bit i % 32 of word i // 32 stands for token i."""
    bits = torch.arange(32, dtype=torch.int32, device=masks.device)
    return ((masks[:, :, None] >> bits) & 1).flatten(1)[:, :vocab].bool()


def apply_mask(logits: torch.Tensor, masks: torch.Tensor, mask_of: torch.Tensor) -> None:
    """Forbid, in place, what row r's bitmask masks[mask_of[r]] does not allow: logits [M, V] become -inf there.

    masks int32 [n, >= ceil(V / 32)]; mask_of int64 [M], -1 for a row without a mask.
    """
    held = mask_of >= 0
    free = allowed(masks[mask_of.clamp(min=0)], logits.shape[1]) | ~held[:, None]
    logits.masked_fill_(~free, -torch.inf)


def sample(
    logits: torch.Tensor,
    draws: Draws,
    rows: npt.NDArray[np.int64],
    masks: torch.Tensor | None = None,
    mask_of: npt.NDArray[np.int64] | None = None,
) -> torch.Tensor:
    """One token, int64 [N] where the logits are, for each of `rows`, indices into logits [M, V] float32, by that rule.

    masks: int32 bitmasks, bit = allowed; mask_of [N]: the mask's index for each draw, -1 for an unconstrained one.
    Instead of a token: NOT_FINITE or ALL_MASKED.
    """
    x = logits[torch.from_numpy(rows).to(logits.device)].float()  # a copy [N, V]
    if masks is not None and mask_of is not None:
        held = torch.from_numpy(np.flatnonzero(mask_of >= 0)).to(x.device)
        words = masks[torch.from_numpy(mask_of[mask_of >= 0]).to(masks.device)].to(x.device)
        x[held] = x[held].masked_fill(~allowed(words, x.shape[1]), -torch.inf)
    odd = (x.isnan() | (x == torch.inf)).any(-1)
    if not draws.temperature.any():
        token, best = x.argmax(-1), x.amax(-1)
    else:
        ordered, order = x.sort(stable=True, dim=-1, descending=True)
        best = ordered[:, 0]
        token = order.gather(1, _prefix_draw(ordered, draws)[:, None])[:, 0]
    return token.masked_fill(best == -torch.inf, ALL_MASKED).masked_fill(odd, NOT_FINITE)


def _prefix_draw(ordered: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Rank [N] of the drawn token in logits [N, V] that descend."""

    def column(values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(ordered.device)[:, None].double()

    size = ordered.shape[1]
    temperature, top_k = column(draws.temperature), column(draws.top_k)
    rank = torch.arange(size, device=ordered.device)[None]
    weight = ((ordered.double() - ordered[:, :1].double()) / temperature.where(temperature > 0, 1)).exp()
    weight = weight.masked_fill((top_k > 0) & (rank >= top_k), 0.0)
    total = weight.cumsum(-1)
    before = torch.nn.functional.pad(total[:, :-1], (1, 0))
    top_p = column(draws.top_p)
    keep = ((top_p >= 1) | (before < top_p * total[:, -1:])) & (weight >= column(draws.min_p)) & (weight > 0)
    keep[:, 0] = True
    kept = keep.sum(-1, keepdim=True)
    target = column(draws.uniform) * total.gather(1, kept - 1)
    rank_drawn = torch.minimum((total <= target).sum(-1, keepdim=True), kept - 1)
    return rank_drawn.masked_fill(temperature <= 0, 0)[:, 0]
