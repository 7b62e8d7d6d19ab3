"""Cases of what happens to logits: draws with every filter, bitmasks, penalties.

Knows: the rule of drawing, torch's own way. Must not know: how time is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_case import ONCE, Aim, Case, different, normal
from torch import Tensor

from branchwork.kernels.reference import sample as plain
from branchwork.kernels.reference.sample import Draws
from branchwork.kernels.triton import mask, sample

NEAR = 1e-5  # a float32 sum of weights may be off by so much of a uniform
FLOAT = (torch.float32,)


class Logits(NamedTuple):
    """packed: the draws as the device is given them."""

    logits: Tensor
    packed: Tensor
    masks: Tensor | None
    draws: Draws
    mask_of: np.ndarray


def draws(rows: int, temperature: Any, top_k: Any = -1, top_p: Any = 1.0, min_p: Any = 0.0) -> Draws:
    """Values repeat over the rows."""
    columns = zip((temperature, top_k, top_p, min_p), (np.float32, np.int32, np.float32, np.float32))
    filters = [np.resize(np.asarray(value, of), rows) for value, of in columns]
    return Draws(*filters, plain.uniforms(range(rows), [9] * rows))


def _masks(device: torch.device, rows: int, vocab: int) -> Tensor:
    """Half of the tokens allowed, and the first of each word."""
    generator = torch.Generator(device).manual_seed(5)
    size = (rows, -(-vocab // 32))
    return torch.randint(-(2**31), 2**31, size, generator=generator, device=device).int() | 1


def drawn(
    name: str,
    vocab: int,
    given: Draws,
    spread: float = 3.0,
    masked: bool = False,
    rivals: bool = False,
    aims: tuple[Aim, ...] = (),
) -> Case:
    """error: the share of rows that drew what the definition does not, not even with a uniform NEAR away."""
    rows = len(given.uniform)

    def make(device: torch.device, dtype: torch.dtype) -> Logits:
        words = _masks(device, rows, vocab) if masked else None
        of = np.arange(rows) if masked else np.full(rows, -1)
        packed = sample.packed_draws(given, np.arange(rows), of).to(device)
        return Logits(normal(device, dtype, rows, vocab, scale=spread), packed, words, given, of)

    return Case(
        f"sample {name}",
        make,
        lambda x: sample.draw_tokens(*x[:3]),
        _defined,
        lambda item: rows * vocab * (4 + masked / 8),
        dtypes=FLOAT,
        tolerance=0.0,
        error=_missed,
        rows=("sample.head", "sample.draw"),
        rivals={"softmax + sort + multinomial": _sorted, "softmax + multinomial": _multinomial} if rivals else {},
        aims=aims,
    )


def _defined(x: Logits) -> Tensor:
    """What the definition draws, and what it draws with uniforms a little lower and higher. [3, N]."""
    ways = []
    for step in (0.0, -NEAR, NEAR):
        near = x.draws._replace(uniform=np.clip(x.draws.uniform + step, 0, 1 - 2**-53))
        found = []
        for at in range(0, len(x.logits), 64):  # sorts of many rows of float64 take memory
            some = np.arange(at, min(at + 64, len(x.logits)))
            found.append(plain.sample(x.logits, Draws(*(c[some] for c in near)), some, x.masks, x.mask_of[some]))
        ways.append(np.concatenate(found))
    return torch.from_numpy(np.stack(ways))


def _missed(found: Any, exact: Any) -> float:
    return float(1 - (found.cpu() == exact).any(0).double().mean())


def _sorted(x: Logits) -> Callable[[], object]:
    """As most libraries draw: filters on sorted probabilities."""
    temperature, top_p = (
        torch.from_numpy(c).to(x.logits.device)[:, None] for c in (x.draws.temperature, x.draws.top_p)
    )

    def draw() -> Tensor:
        chances, order = (x.logits / temperature).softmax(-1).sort(descending=True)
        chances = chances.masked_fill(chances.cumsum(-1) - chances > top_p, 0.0)
        return order.gather(1, chances.multinomial(1))

    return draw


def _multinomial(x: Logits) -> Callable[[], object]:
    """Without any filter."""
    return lambda: x.logits.softmax(-1).multinomial(1)


def masked(rows: int, vocab: int) -> Case:
    """Every second row has a mask."""

    def make(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        which = torch.arange(rows, device=device)
        return normal(device, dtype, rows, vocab), _masks(device, rows, vocab), which.where(which % 2 == 0, -1)

    def call(x: tuple[Tensor, ...]) -> Tensor:
        mask.apply_mask(*x)
        return x[0]

    def exact(x: tuple[Tensor, ...]) -> Tensor:
        logits = x[0].clone()
        plain.apply_mask(logits, *x[1:])
        return logits

    return Case(
        f"apply_mask {rows} x {vocab}",
        make,
        call,
        exact,
        lambda item: rows / 2 * vocab * (1 / 8 + item / 2),
        dtypes=FLOAT,
        tolerance=0.0,
        error=different,
        rows=("mask",),
        rivals={"torch": lambda x: partial(plain.apply_mask, *x)},
    )


def penalised(vocab: int, tokens: int) -> Case:
    said = (np.arange(tokens) * 7 % (vocab // 2)).tolist()
    heard = (np.arange(2 * tokens) * 5 % vocab).tolist()
    numbers = (0.4, 0.3, 1.2)

    def call(x: Tensor) -> Tensor:
        sample.penalise(x, said, heard, *numbers)
        return x

    def exact(x: Tensor) -> Tensor:
        wide = x.double()
        plain.penalise(wide, said, heard, *numbers)
        return wide

    return Case(
        f"penalise {tokens} of {vocab}",
        lambda device, dtype: normal(device, dtype, vocab, scale=3.0),
        call,
        exact,
        lambda item: 3 * tokens * (2 * item + 8),
        dtypes=FLOAT,
        tolerance=ONCE,
        rows=("penalise",),
    )


def timed() -> list[Case]:
    vocab = 128256
    return [
        drawn("256 x 128k, top-p", vocab, draws(256, 0.8, top_p=0.95), rivals=True, aims=(Aim("microseconds", 150.0),)),
        drawn("256 x 128k, top-k and min-p", vocab, draws(256, 1.0, 50, 1.0, 0.05)),
        drawn("256 x 128k, no filter", vocab, draws(256, 1.0)),
        drawn("256 x 128k, greedy", vocab, draws(256, 0.0)),
        drawn("64 x 128k, masked", vocab, draws(64, 0.8, top_p=0.95), masked=True),
        masked(256, vocab),
    ]


def edges() -> list[Case]:
    mixed = draws(64, [0, 0.3, 1, 2], [-1, 0, 1, 5, 400], [1, 0.99, 0.9, 0.5, 0.01, 0], [0, 0, 0.01, 0.5, 1])
    return [
        *(drawn(f"64 x {vocab}, mixed", vocab, mixed, masked=True) for vocab in (1, 33, 1000, 40000)),
        drawn("64 x 40000, flat", 40000, mixed, spread=0.01),
        drawn("64 x 40000, steep", 40000, mixed, spread=20.0),
        masked(3, 1000),
        penalised(32000, 700),
    ]


def tiny() -> list[Case]:
    mixed = draws(4, [0, 0.5, 1, 2], [-1, 5], [1, 0.9, 0.5], [0, 0.05])
    return [drawn("4 x 70, mixed", 70, mixed, masked=True), masked(2, 70), penalised(64, 5)]
