"""The mixture: which skill makes the next sample, and the held-out cases per skill.

Knows: every skill module, the shares of the mixture, long samples.
Must not know: tokenization or training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from . import extract, judge, knowledge, lookup, react, sentiment, talk, tips, tooluse
from .sample import FINISH, STOP, Piece, Sample, Split

Maker = Callable[[Random, Split], Sample]


def long_table(rng: Random, split: Split) -> Sample:
    """A table of up to forty rows with many questions."""
    return lookup.completion(rng, split, rng.randint(16, 40), rng.randint(12, 24))


def long_few_shot(rng: Random, split: Split) -> Sample:
    """Thirty to ninety questions in a row."""
    return knowledge.few_shot(rng, split, rng.randint(25, 90))


def long_chat(rng: Random, split: Split) -> Sample:
    """Several chats in one context, so that late positions and changes of subject are met."""
    pieces: list[Piece] = []
    size = rng.randint(1500, 7000)
    while sum(len(piece.text) for piece in pieces) < size:
        maker = rng.choice(
            (knowledge.chat, lookup.chat, lookup.chat, sentiment.chat, extract.chat, tips.chat, talk.memory)
        )
        part = list(maker(rng, split).pieces)
        if pieces:
            part[0] = Piece("\n" + part[0].text)
        pieces += part
    return Sample("long", tuple(pieces))


def short_lookup(rng: Random, split: Split) -> Sample:
    """A table of one to three rows."""
    return lookup.chat(rng, split, rng.randint(1, 3))


# The first samples are short and full of copying: everything that is read out of a prompt grows from copying.
EARLY = 6_000
# name -> (share of samples, share among the first EARLY ones, maker)
MIXTURE: dict[str, tuple[float, float, Maker]] = {
    "facts": (15, 8, knowledge.chat),
    "few_shot": (6, 3, knowledge.few_shot),
    "lookup": (24, 6, lookup.chat),
    "lookup_few_shot": (10, 2, lookup.completion),
    "lookup_short": (6, 16, short_lookup),
    "echo": (5, 16, lookup.echo),
    "sentiment": (8, 4, sentiment.chat),
    "sentiment_few_shot": (2.5, 3, sentiment.completion),
    "extract": (13, 8, extract.chat),
    "extract_few_shot": (2, 1, extract.completion),
    "react": (10, 6, react.sample),
    "tips": (6, 3, tips.chat),
    "tips_plain": (2, 1, tips.completion),
    "judge": (12, 3, judge.chat),
    "judge_summary": (1, 0.5, judge.summary),
    "tools": (9, 3, tooluse.chat),
    "small_talk": (5, 2, talk.small_talk),
    "choose": (6, 1.5, talk.choose),
    "tool_choice": (1, 1, talk.tool_choice),
    "plan": (0.7, 1, talk.plan),
    "memory": (0.7, 10, talk.memory),
    "long_table": (1.5, 0, long_table),
    "long_few_shot": (0.5, 0, long_few_shot),
    "long_chat": (0.8, 0, long_chat),
}


def training_sample(seed: int, index: int) -> Sample:
    """Sample number `index` of the corpus of `seed`; the same two numbers always give the same sample."""
    rng = Random(f"sapling {seed} {index}")
    shares = [early if 0 <= index < EARLY else later for later, early, _ in MIXTURE.values()]
    (maker,) = rng.choices([maker for _, _, maker in MIXTURE.values()], shares)
    return maker(rng, "train")


class Case(NamedTuple):
    """A held-out question: the whole prompt, the text that training would show, and what must occur in the answer."""

    skill: str
    prompt: str
    expected: str
    keys: tuple[str, ...]

    def accepts(self, answer: str) -> bool:
        """Whether the answer has every key, as whole words and in order."""
        pattern = ".*?".join(rf"(?<!\w){re.escape(key)}(?!\w)" for key in self.keys)
        return re.search(pattern, answer, re.DOTALL) is not None

    @property
    def stop(self) -> str:
        """What a program would stop at."""
        body = self.expected.removesuffix(FINISH)
        for mark in (STOP, "Observation:", "\n\n"):
            if mark in body:
                return mark
        return "\n"


# What the benchmark prints -> the mixture's makers it draws from.
SKILLS: dict[str, tuple[str, ...]] = {
    "facts, closed book, chat": ("facts",),
    "facts, few-shot completion": ("few_shot",),
    "facts, given in the prompt, chat": ("lookup",),
    "facts, given in the prompt, few-shot": ("lookup_few_shot",),
    "facts, long table (to 2,000 tokens)": ("long_table",),
    "sentiment, chat": ("sentiment",),
    "sentiment, few-shot completion": ("sentiment_few_shot",),
    "extraction to JSON": ("extract", "extract_few_shot"),
    "calculator (ReAct trace)": ("react",),
    "tips and their expansion": ("tips", "tips_plain"),
    "essay judge": ("judge", "judge_summary"),
    "tool calls": ("tools",),
    "small talk": ("small_talk",),
    "choosing a category or tool": ("choose", "tool_choice"),
    "memory over turns": ("memory",),
    "plans": ("plan",),
    "repeating": ("echo",),
}


def cases_of(sample: Sample, skill: str) -> Iterator[Case]:
    """Every learned stretch of a held-out sample as a case, with the true text before it as its prompt."""
    before = ""
    for piece in sample.pieces:
        if piece.learn and piece.keys:
            yield Case(skill, before, piece.text, piece.keys)
        before += piece.text


LONGEST = 4200  # characters of a held-out prompt: within 2,000 tokens even where it is all made-up names


def held_out(skill: str, count: int, seed: int = 7) -> list[Case]:
    """`count` cases of a row of SKILLS, at most three from one sample."""
    rng = Random(f"held {skill} {seed}")
    found: list[Case] = []
    while len(found) < count:
        maker = MIXTURE[rng.choice(SKILLS[skill])][-1]
        cases = [case for case in cases_of(maker(rng, "held"), skill) if len(case.prompt) < LONGEST]
        found += rng.sample(cases, min(3, len(cases)))
    return found[:count]
