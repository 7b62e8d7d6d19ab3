"""Answers with guesses follow the same law as answers without: chi-square over independent seeds, small vocabulary.

The model is a table: the logits after a token. Guesses come from a source that is right about half of the time.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter

import numpy as np
import pytest
import torch

from branchwork.runtime.execution.runner import _outcome, _places
from branchwork.runtime.plan import Drawn, Row
from branchwork.runtime.sampling.sampler import Sampler
from branchwork.runtime.scheduler.limbs import placed, rows_of
from branchwork.runtime.speculative.draft import Draft
from branchwork.runtime.speculative.verify import followed, verified
from branchwork.runtime.wire import Shape

VOCAB = 6
LENGTH = 3
ANSWERS = 2000
TABLE = torch.from_numpy(np.random.default_rng(4).normal(0.0, 1.2, (VOCAB, VOCAB)).astype(np.float32))
SHAPES = {
    "temperature 1": Shape(),
    "temperature 0.6": Shape(temperature=0.6),
    "temperature 1.7, top_k 3": Shape(temperature=1.7, top_k=3),
    "top_p 0.8": Shape(top_p=0.8),
    "min_p 0.15": Shape(min_p=0.15),
    "frequency and presence": Shape(frequency_penalty=0.9, presence_penalty=0.5),
    "repetition, top_k, top_p": Shape(repetition_penalty=1.6, top_k=4, top_p=0.9),
}
MASK = np.array([[0b101101]], np.int32)


def answers(shape: Shape, guesses: int, masked: bool, first: int) -> Counter[tuple[int, ...]]:
    """How often each LENGTH tokens came after token 0, over ANSWERS seeds from `first` on.

    Each step draws behind the last known token of every answer and behind `guesses` guesses.
    """
    sampler = Sampler(VOCAB)
    values = {name: getattr(shape, name) for name in shape.__struct_fields__ if name != "seed"}
    shapes = [Shape(**values, seed=first + n) for n in range(ANSWERS)]
    texts = [[0] for _ in shapes]
    while short := [n for n, text in enumerate(texts) if len(text) <= LENGTH]:
        drafts = {n: [(texts[n][-1] + more + n % 2) % VOCAB for more in range(guesses)] for n in short}
        rows = [
            Row(
                n,
                0,
                [0],
                [0],
                shapes[n],
                position=len(texts[n]) + ahead,
                prompt_history=[0],
                answer_history=texts[n][1:] + drafts[n][:ahead],
            )
            for n in short
            for ahead in range(guesses + 1)
        ]
        logits = TABLE[[token for n in short for token in (texts[n][-1], *drafts[n])]]
        drawn = [one.token for one in sampler.draw(logits, rows, np.repeat(MASK, len(rows), 0) if masked else None)]
        for at, n in enumerate(short):
            tokens = drawn[at * (guesses + 1) : (at + 1) * (guesses + 1)]
            texts[n] += tokens[: verified(drafts[n], tokens)]
    return Counter(tuple(text[1 : LENGTH + 1]) for text in texts)


def planted(text: list[int], number: int) -> Draft:
    """Two guesses, another first one with two behind it, another second one."""
    last = text[-1] + number
    ids = [last % VOCAB, (last + 1) % VOCAB, (last + 2) % VOCAB, last % VOCAB, (last + 5) % VOCAB, (last + 3) % VOCAB]
    return Draft(tuple(ids), (-1, 0, -1, 2, 3, 0), ("x",) * 6, (0,) * 6)


def answers_with_trees(shape: Shape, masked: bool, first: int) -> Counter[tuple[int, ...]]:
    """`answers`, with a tree of guesses for every answer in every step, each side branch a row of its own."""
    sampler = Sampler(VOCAB)
    values = {name: getattr(shape, name) for name in shape.__struct_fields__ if name != "seed"}
    texts = [[0] for _ in range(ANSWERS)]
    while short := [n for n, text in enumerate(texts) if len(text) <= LENGTH]:
        drafts, rows = {}, []
        for n in short:
            drafts[n] = draft = planted(texts[n], n)
            known = array("i", texts[n])
            row = Row(
                n,
                len(known) - 1,
                [known[-1], *draft.ids[: draft.trunk]],
                list(range(99)),
                Shape(**values, seed=first + n),
                position=len(known),
                prompt_history=[0],
                answer_history=texts[n][1:],
                draft=draft.trunk,
            )
            rows += [row, *rows_of(row, draft, placed(draft, len(known), 1), known, 1)]
        logits = TABLE[[token for row in rows for token in row.ids[len(row.ids) - row.draft - 1 :]]]
        places = _places(rows)
        drawn = sampler.draw(logits, places, np.repeat(MASK, len(places), 0) if masked else None)
        outcomes: dict[int, list[Drawn]] = {}
        for row in rows:
            outcomes.setdefault(row.request, []).append(_outcome(row, drawn[: row.draft + 1], ()))
            del drawn[: row.draft + 1]
        for n in short:
            texts[n] += followed(drafts[n], drafts[n].limbs(), outcomes[n])[0].tokens
    return Counter(tuple(text[1 : LENGTH + 1]) for text in texts)


def improbability(one: Counter[tuple[int, ...]], other: Counter[tuple[int, ...]]) -> float:
    """Standard deviations by which two samples of equal size differ more than chance: chi-square of the cells that hold
    ten or more together (the rest as one), made normal by Wilson and Hilferty (1931)."""
    cells = [(one[key], other[key]) for key in one.keys() | other.keys()]
    large = [cell for cell in cells if sum(cell) >= 10]
    rest = [sum(column) for column in zip(*(cell for cell in cells if sum(cell) < 10))]
    large += [(rest[0], rest[1])] if rest else []
    square = sum((a - b) ** 2 / (a + b) for a, b in large)
    freedom = len(large) - 1
    return ((square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_law_of_answers_is_the_same_with_and_without_guesses(name: str, masked: bool) -> None:
    plain = answers(SHAPES[name], 0, masked, 0)
    guessed = answers(SHAPES[name], 2, masked, 1_000_000)
    assert improbability(plain, guessed) < 4.0
    assert answers(SHAPES[name], 2, masked, 0) == plain, "seed by seed they are even the same"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_law_of_answers_is_the_same_with_trees(name: str, masked: bool) -> None:
    plain = answers(SHAPES[name], 0, masked, 0)
    assert improbability(plain, answers_with_trees(SHAPES[name], masked, 1_000_000)) < 4.0
    assert answers_with_trees(SHAPES[name], masked, 0) == plain, "seed by seed they are even the same"


def test_the_measure_sees_a_slightly_different_law() -> None:
    plain = answers(SHAPES["temperature 1"], 0, False, 0)
    assert improbability(plain, answers(Shape(temperature=0.75), 2, False, 1_000_000)) > 4.0
