"""From a step's logits to one token a row: mask, penalties, temperature, filters, draw, in that order.

Knows: rows of a plan, logits, masks. Must not know: requests' lives, grammars, how logits were made.
A draw is a pure function of (logits, mask, Shape, Row.position): no generator has state, no row sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from branchwork import kernels
from branchwork.kernels.reference import sample as reference
from branchwork.runtime.plan import Row
from branchwork.runtime.sampling.logprobs import Scores
from branchwork.runtime.sampling.readback import Readback
from branchwork.runtime.wire import Shape, TokenScore

_REASONS = {
    reference.NOT_FINITE: "the model's logits hold NaN or infinity",
    reference.ALL_MASKED: "no token is allowed by the constraint's mask and the logits",
}


class Draw(NamedTuple):
    """One drawn token and, when asked for, its score; or -1 and why there is none."""

    token: int
    score: TokenScore | None = None
    fault: str = ""


class Drawing:
    """Draws under way. tokens: int64 on the logits' device, below 0 where there is no token."""

    def __init__(self, tokens: torch.Tensor, scored: Sequence[int], tops: Sequence[int], scores: Scores | None) -> None:
        self.tokens = tokens
        self._read = Readback(tokens)
        self._scored = scored  # draws with a score
        self._tops = tops  # how many alternatives each of them wants
        self._scores = scores

    def read(self) -> list[Draw]:
        """One Draw each; waits for the device."""
        tokens = self._read.read().tolist()
        draws = [Draw(token) if token >= 0 else Draw(-1, fault=_REASONS[token]) for token in tokens]
        if self._scores is not None:
            for i, top, score in zip(self._scored, self._tops, self._scores.read(), strict=True):
                if tokens[i] >= 0:
                    draws[i] = Draw(tokens[i], TokenScore(score.id, score.logprob, score.top[:top]))
        return draws


class Sampler:
    """Draws tokens 0 .. vocab-1; logits beyond (a padded output layer's) are never read."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def draw(
        self,
        logits: torch.Tensor,
        rows: Sequence[Row],
        masks: torch.Tensor | npt.NDArray[np.int32] | None = None,
        masked: Sequence[int] | None = None,
    ) -> list[Draw]:
        """`begin`, read at once."""
        return self.begin(logits, rows, masks, masked).read()

    def begin(
        self,
        logits: torch.Tensor,
        rows: Sequence[Row],
        masks: torch.Tensor | npt.NDArray[np.int32] | None = None,
        masked: Sequence[int] | None = None,
    ) -> Drawing:
        """One Draw for each of `rows` (all with a shape), in order; logits [N, >= vocab] float32 are left as they are.

        masks: int32 bitmasks [n, >= ceil(vocab / 32)], bit set = token allowed. masked: the n row indices they belong
        to (other rows are free and pay nothing); None when there is one for every row.

        A row whose logits are not finite, or whose mask allows nothing, draws no token and says so in its fault.
        Waits for no device.
        """
        if logits.shape[0] != len(rows) or logits.shape[1] < self.vocab:
            raise ValueError(f"logits {tuple(logits.shape)} do not fit {len(rows)} rows of {self.vocab} tokens")
        logits = logits[:, : self.vocab]
        shapes = [_shape(row) for row in rows]
        if not rows:
            return Drawing(torch.empty(0, dtype=torch.int64), (), (), None)
        tokens = self._tokens(logits, rows, shapes, *_masks_by_row(masks, masked, len(rows)))
        return Drawing(tokens, *_scores(logits, rows, tokens))

    def _tokens(
        self,
        logits: torch.Tensor,
        rows: Sequence[Row],
        shapes: list[Shape],
        masks: torch.Tensor | None,
        mask_of: npt.NDArray[np.int64] | None,
    ) -> torch.Tensor:
        draws = _draws(rows, shapes)
        sample = kernels.sample
        penalised = [i for i, shape in enumerate(shapes) if _has_penalties(shape) or shape.bias]
        if not penalised:
            return sample(logits, draws, np.arange(len(rows)), masks, mask_of)
        # a copy: scores want the logits as the model gave them
        changed = torch.stack([logits[i] for i in penalised])
        for x, i in zip(changed, penalised, strict=True):
            shape = shapes[i]
            penalties = shape.frequency_penalty, shape.presence_penalty, shape.repetition_penalty
            if _has_penalties(shape):
                kernels.penalise(x, rows[i].answer_history, rows[i].prompt_history, *penalties)
            if shape.bias:
                ids, biases = zip(*shape.bias, strict=True)
                x.index_add_(0, torch.tensor(ids, device=x.device), torch.tensor(biases, device=x.device))
        tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        free = np.setdiff1d(np.arange(len(rows)), penalised)
        for source, at, which in ((changed, np.arange(len(penalised)), np.array(penalised)), (logits, free, free)):
            part = reference.Draws(*[values[which] for values in draws])
            drawn = sample(source, part, at, masks, None if mask_of is None else mask_of[which])
            tokens[torch.from_numpy(which).to(tokens.device)] = drawn
        return tokens


def _shape(row: Row) -> Shape:
    if row.shape is None:
        raise ValueError(f"a row of request {row.request} has no shape to draw with")
    return row.shape


def _has_penalties(shape: Shape) -> bool:
    return shape.frequency_penalty != 0.0 or shape.presence_penalty != 0.0 or shape.repetition_penalty != 1.0


def _draws(rows: Sequence[Row], shapes: list[Shape]) -> reference.Draws:
    def column(values: list[Any], dtype: type[Any]) -> npt.NDArray[Any]:
        return np.array(values, dtype=dtype)

    if any(shape.temperature > 0.0 for shape in shapes):
        uniform = reference.uniforms([shape.seed for shape in shapes], [row.position for row in rows])
    else:
        uniform = np.zeros(len(rows))
    return reference.Draws(
        column([shape.temperature for shape in shapes], np.float32),
        column([min(shape.top_k, 1 << 30) for shape in shapes], np.int32),
        column([shape.top_p for shape in shapes], np.float32),
        column([shape.min_p for shape in shapes], np.float32),
        uniform,
    )


def _masks_by_row(
    masks: torch.Tensor | npt.NDArray[np.int32] | None, masked: Sequence[int] | None, count: int
) -> tuple[torch.Tensor | None, npt.NDArray[np.int64] | None]:
    """The masks as a tensor, and for each row the index of its mask or -1."""
    if masks is None:
        return None, None
    words = torch.from_numpy(masks) if isinstance(masks, np.ndarray) else masks
    if masked is None:
        masked = range(count)
    if len(masked) != words.shape[0]:
        raise ValueError(f"{words.shape[0]} masks for {len(masked)} rows")
    mask_of = np.full(count, -1, dtype=np.int64)
    mask_of[list(masked)] = np.arange(len(masked))
    return words, mask_of


def _scores(
    logits: torch.Tensor, rows: Sequence[Row], tokens: torch.Tensor
) -> tuple[Sequence[int], Sequence[int], Scores | None]:
    """Which drawn tokens want scores, with how many alternatives, and these scores."""
    wanted = [i for i, row in enumerate(rows) if row.logprobs >= 0]
    if not wanted:
        return (), (), None
    tops = [rows[i].logprobs for i in wanted]
    if len(wanted) < len(rows):
        at = torch.tensor(wanted, device=logits.device)
        logits, tokens = logits[at], tokens[at]
    return wanted, tops, Scores(logits, tokens.clamp(min=0), max(tops), range(len(wanted)))
