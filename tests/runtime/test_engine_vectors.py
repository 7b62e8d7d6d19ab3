"""The whole engine makes the vectors that transformers' states give, the same bits whatever else it computes."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from encoders import VOCAB as WORDS
from encoders import encoder, states, vector

from branchwork.runtime import wire
from branchwork.runtime.assembly import build
from branchwork.runtime.config import Config
from branchwork.runtime.engine import Engine
from tests.checkpoints import VOCAB, checkpoint

SETTINGS = {
    "whole": Config(pages=2000, budget=4096),
    "chunks of 7": Config(pages=2000, budget=7, max_running=7),
    "pages of 4, chunks of 33": Config(pages=400, page_size=4, budget=33),
    "overlap": Config(pages=2000, budget=33, overlap="on"),
    "preempted": Config(pages=150, budget=64),
}
Pooling = Literal["first", "last", "mean"]


def engine(directory: Path, config: Config) -> Engine:
    return build(config, directory, lambda stage, fraction: None).engine


def events(engine: Engine, messages: Sequence[wire.ToEngine]) -> list[wire.FromEngine]:
    """All that comes of messages that are there at once."""
    found: list[wire.FromEngine] = []
    inbox = [list(messages)]

    def receive(wait: bool) -> list[wire.ToEngine]:
        return inbox.pop() if inbox else [wire.Stop()] if wait else []

    engine.run(receive, found.extend)
    return found


def vectors(engine: Engine, texts: Sequence[Sequence[int]], pooling: Pooling, normalize: bool = True) -> list[bytes]:
    asked = [wire.Embed(n, array("i", ids).tobytes(), pooling, normalize) for n, ids in enumerate(texts)]
    found = {event.id: event.vector for event in events(engine, asked) if isinstance(event, wire.Embedded)}
    return [found[n] for n in range(len(texts))]


def texts(vocab: int, longest: int) -> list[list[int]]:
    """One token, long ones, several with a common beginning."""
    draw = random.Random(4)
    stem = [draw.randrange(3, vocab) for _ in range(20)]
    own = [[draw.randrange(3, vocab) for _ in range(min(length, longest))] for length in (1, 2, 33, 90, 17)]
    return [*own, *([*stem[:cut], *(draw.randrange(3, vocab) for _ in range(3))] for cut in (20, 20, 13)), stem]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "mixtral"])
def test_a_decoder_gives_the_pooled_states_of_transformers(name: str, pooling: Pooling) -> None:
    found = vectors(engine(checkpoint(name), SETTINGS["whole"]), texts(VOCAB, 90), pooling)
    for ids, ours in zip(texts(VOCAB, 90), found, strict=True):
        expected = vector(states(checkpoint(name), ids), pooling, normalize=True)
        torch.testing.assert_close(torch.tensor(array("f", ours)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_has_the_same_bits_alone_in_a_batch_and_in_chunks(pooling: Pooling, name: str) -> None:
    alone = [vectors(engine(checkpoint(name), SETTINGS["whole"]), [ids], pooling, False)[0] for ids in texts(VOCAB, 90)]
    for setting, config in SETTINGS.items():
        running = engine(checkpoint(name), config)
        for turn in ("first", "cached"):
            assert vectors(running, texts(VOCAB, 90), pooling, False) == alone, f"{setting}, {turn}"


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_an_encoder_gives_the_pooled_states_of_transformers(pooling: Pooling, tmp_path: Path) -> None:
    directory = encoder("bert", tmp_path)
    running = engine(directory, Config(budget=40))
    found = vectors(running, texts(WORDS, 60), pooling)
    for ids, ours in zip(texts(WORDS, 60), found, strict=True):
        expected = vector(states(directory, ids), pooling, normalize=True)
        torch.testing.assert_close(torch.tensor(array("f", ours)), expected, rtol=1e-5, atol=1e-5)
        assert vectors(running, [ids], pooling) == [ours]


def test_an_encoder_says_what_it_is_and_generates_nothing(tmp_path: Path) -> None:
    built = build(Config(), encoder("bert", tmp_path, longest=32), lambda stage, fraction: None)
    assert not built.ready.generates and built.ready.family == "bert"
    assert (built.ready.context, built.ready.kv_bytes) == (32, 0)
    submit = wire.Submit(1, array("i", [5]).tobytes(), wire.Shape(), wire.Stops(4))
    (failed,) = events(built.engine, [submit])
    assert isinstance(failed, wire.Failed) and failed.code == "unsupported"
    (answer,) = events(built.engine, [wire.Ask(1, "check")])
    assert isinstance(answer, wire.Answer) and "fault" not in answer.value


def test_a_step_that_fails_fails_its_texts_and_the_encoder_goes_on(tmp_path: Path) -> None:
    running = engine(encoder("bert", tmp_path), Config())
    good = running._hands.launch
    running._hands.launch = None  # type: ignore[assignment]
    (failed,) = events(running, [wire.Embed(1, array("i", [5]).tobytes())])
    assert isinstance(failed, wire.Failed) and failed.code == "engine_error"
    running._hands.launch = good  # type: ignore[method-assign]
    assert len(vectors(running, [[5]], "mean")) == 1
