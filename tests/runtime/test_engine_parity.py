"""The whole engine against transformers: greedy ids are equal whatever the chunking, paging, sharing or preemption."""

from __future__ import annotations

import random
from array import array
from functools import cache

import msgspec
import pytest
import torch

from branchwork.runtime import wire
from branchwork.runtime.assembly import build
from branchwork.runtime.config import Config
from branchwork.runtime.engine import Engine
from tests.checkpoints import VOCAB, checkpoint, reference

NAMES = (
    "llama",
    "llama-tied",
    "llama-biases",
    "llama-rope-llama3",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "mixtral",
    "qwen3-moe",
)
NEW = 10
SETTINGS = {
    "plain": Config(pages=4000, budget=4096),
    "chunks of 7": Config(pages=4000, budget=7, max_running=7),
    "pages of 4, chunks of 33": Config(pages=1000, page_size=4, budget=33),
    "pages of 16": Config(pages=300, page_size=16, budget=512),
    "overlap": Config(pages=4000, budget=33, overlap="on", speculative="off"),
    "overlap, pages of 4, guesses": Config(pages=1000, page_size=4, budget=512, overlap="on"),
    "overlap, preempted": Config(pages=150, budget=64, overlap="on", speculative="off"),
    "preempted": Config(pages=150, budget=64, speculative="off"),
    "preempted, pages of 4": Config(pages=40, page_size=4, budget=64, speculative="off"),
}


def prompts() -> list[list[int]]:
    """16 mixed prompts: one token, long ones, several with a common beginning."""
    draw = random.Random(3)
    stem = [draw.randrange(3, VOCAB) for _ in range(40)]
    own = [[draw.randrange(3, VOCAB) for _ in range(length)] for length in (1, 2, 9, 33, 60, 90, 17, 5)]
    shared = [[*stem[:cut], *(draw.randrange(3, VOCAB) for _ in range(3))] for cut in (40, 40, 40, 25, 25, 13, 40)]
    return [*own, *shared, stem]


@cache
def expected(name: str) -> list[list[int]]:
    model = reference(name)
    answers = []
    for ids in prompts():
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        answers.append(out[0, len(ids) :].tolist())
    return answers


def answers(engine: Engine, rounds: int = 1) -> list[list[list[int]]]:
    """Greedy answers of all prompts at once, `rounds` times (later rounds hit the tree)."""
    found: list[list[list[int]]] = []
    for round_ in range(rounds):
        events: list[wire.FromEngine] = []
        inbox = [
            wire.Submit(
                id=round_ * 100 + i,
                ids=array("i", ids).tobytes(),
                shape=wire.Shape(temperature=0.0),
                stops=wire.Stops(max_tokens=NEW),
            )
            for i, ids in enumerate(prompts())
        ]
        engine.run(Once([*inbox]), events.extend)
        done: dict[int, list[int]] = {i: [] for i in range(len(inbox))}
        for event in events:
            assert isinstance(event, (wire.Tokens, wire.Finished))
            done[event.id % 100] += event.ids
        found.append(list(done.values()))
    return found


class Once:
    """An inbox that holds its messages once and ends the engine when everything has been computed."""

    def __init__(self, messages: list[wire.ToEngine]) -> None:
        self._messages = messages

    def __call__(self, wait: bool) -> list[wire.ToEngine]:
        if self._messages:
            messages, self._messages = self._messages, []
            return messages
        return [wire.Stop()] if wait else []


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_greedy_ids_equal_transformers(name: str, setting: str) -> None:
    config = SETTINGS[setting]
    engine = build(
        msgspec.structs.replace(config, dtype="float32", threads=1),
        checkpoint(name),
        lambda stage, fraction: None,
    ).engine
    first, second = answers(engine, rounds=2)
    assert first == expected(name)
    assert second == expected(name)
    stats = engine._scheduler.stats()
    engine._scheduler.check()
    assert stats["reused_tokens"] > 0 and stats["leases"] == 0
    if "preempted" in setting:
        assert stats["preemptions"] > 0
