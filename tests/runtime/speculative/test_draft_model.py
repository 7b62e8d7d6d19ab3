"""A smaller model that guesses: it changes no answer, its keys and values are right wherever it looks."""

from __future__ import annotations

import random
import shutil
import time
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
import pytest
import torch

from branchwork.runtime import wire
from branchwork.runtime.assembly import build
from branchwork.runtime.config import Config, ConfigError, parse
from branchwork.runtime.engine import Engine
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.plan import Row
from branchwork.runtime.sapling.grow import DRAFT, export
from branchwork.runtime.sapling.network import Network
from branchwork.runtime.speculative.cost import StepCost
from branchwork.runtime.speculative.draft import Context
from branchwork.runtime.speculative.draft_model import Guess, ModelDrafter
from tests.checkpoints import checkpoint
from tests.runtime.speculative.test_exactness import CONSTRAINTS, PROMPTS, SAPLING, Answer, encoder, run, submit

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = [CHAT.format(text) for text in ("What is the capital of Peru?", "Give 3 tips for staying healthy.")]
SETTINGS = {
    "roomy": Config(pages=4000, budget=1024),
    "pages of 16, chunks of 9": Config(pages=200, page_size=16, budget=9, max_running=9),
    "preempted": Config(pages=110, budget=64),
}


@pytest.fixture(scope="module")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft with sapling's vocabulary and the weights that training starts from: hardly ever right."""
    torch.manual_seed(3)
    directory = tmp_path_factory.mktemp("draft")
    export(Network(DRAFT.shape), encoder(), directory, alone=False)
    return directory


def engine(draft: str | Path, setting: str = "roomy", speculative: str = "auto") -> Engine:
    """An engine that always asks its draft, as if guesses cost nothing."""
    config = msgspec.structs.replace(SETTINGS[setting], threads=1, speculative=speculative, draft_model=str(draft))
    house = build(config, SAPLING, lambda *_: None).engine
    if draft:
        speculator = house._scheduler._speculator
        speculator.cost = StepCost()
        drafter(house)._cost = StepCost()
    return house


def drafter(house: Engine) -> ModelDrafter:
    found = house._scheduler._speculator._model
    assert found is not None
    return found


@cache
def plain(setting: str) -> Engine:
    return engine("", setting, "off")


def random_submit(rng: random.Random, number: int) -> wire.Submit:
    shape = wire.Shape(
        temperature=rng.choice([0.0, 0.0, 0.7, 1.3]),
        top_k=rng.choice([-1, 20]),
        top_p=rng.choice([1.0, 0.9]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        seed=rng.randrange(5),
    )
    return submit(
        number,
        rng.choice((*PROMPTS, *QUESTIONS)) + rng.choice(("", "So ", "The list of all ")),
        shape=shape,
        constraint=rng.choice((None, None, *CONSTRAINTS)),
        stops=wire.Stops(
            max_tokens=rng.randint(1, 40), strings=tuple(rng.sample([b"\n", b"the", b","], rng.randint(0, 1)))
        ),
        logprobs=rng.choice([-1, 2]),
    )


def told(found: dict[int, Answer]) -> dict[int, tuple[object, ...]]:
    return {number: answer.told for number, answer in found.items()}


@pytest.mark.parametrize("setting", SETTINGS)
def test_guesses_of_an_untaught_model_change_no_answer(setting: str, untaught: Path) -> None:
    rng = random.Random(setting)
    on = engine(untaught, setting)
    for first in range(0, 75, 25):
        messages = [random_submit(rng, number) for number in range(first, first + 25)]
        assert told(run(on, messages)) == told(run(plain(setting), messages))
    stats = on._scheduler.stats()
    assert int(stats["drafted_model"]) > int(stats["accepted_model"]), "guesses that never fail test nothing"


@pytest.mark.parametrize("setting", SETTINGS)
def test_guesses_of_the_shipped_draft_change_no_answer(setting: str) -> None:
    rng = random.Random(setting + "shipped")
    on = engine("sapling-draft", setting)
    for first in range(0, 50, 25):
        messages = [random_submit(rng, number) for number in range(first, first + 25)]
        assert told(run(on, messages)) == told(run(plain(setting), messages))
    least = 0 if setting == "preempted" else 100  # where pages are few, few are left for guesses
    assert int(on._scheduler.stats()["accepted_model"]) > least, "guesses that never come true test nothing"


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_drafts_for_itself_is_always_right(setting: str, temperature: float) -> None:
    """With its own keys and values wrong anywhere, in shared, evicted or replaced pages, it would not be."""
    house = engine(SAPLING, setting, "model")
    shared = "The harbour town has three boats, two mills and one very old clock. "
    for round_ in range(3):
        messages = [
            submit(
                n,
                shared * (n % 3) + PROMPTS[n % 4] + "again " * (n % 2),
                shape=wire.Shape(temperature=temperature, seed=n + round_),
                stops=wire.Stops(24),
            )
            for n in range(12)
        ]
        run(house, messages)
        messages = [msgspec.structs.replace(message, id=message.id + 12) for message in messages[::-1]]
        run(house, messages)
    drafted, accepted = (int(house._scheduler.stats()[f"{what}_model"]) for what in ("drafted", "accepted"))
    assert drafted > 300 and accepted > 0.98 * drafted, "only sums of other batches may round a near tie otherwise"
    assert setting != "preempted" or house._scheduler.stats()["preemptions"]


def test_rows_are_guessed_together() -> None:
    house = engine(SAPLING, speculative="model")
    sizes: list[int] = []
    model = drafter(house)._model

    class Counting:
        def guess(self, rows: Sequence[Row], count: int, least: float) -> list[Guess]:
            sizes.append(len(rows))
            return model.guess(rows, count, least)

    drafter(house)._model = Counting()
    run(house, [submit(n, PROMPTS[n % 4], stops=wire.Stops(30)) for n in range(8)])
    assert max(sizes) == 8


def test_cancelled_requests_leave_nothing_behind(untaught: Path) -> None:
    house = engine(untaught, "preempted")
    scheduler = house._scheduler
    rng = random.Random(5)
    late = time.monotonic() + 120
    for first in range(0, 200, 8):
        live = list(range(first, first + 8))
        for number in live:
            scheduler.add(submit(number, rng.choice(PROMPTS), stops=wire.Stops(30)))
        while live:
            assert time.monotonic() < late
            if rng.random() < 0.3:
                scheduler.cancel(live.pop(rng.randrange(len(live))))
            plan = scheduler.plan()
            if plan is None:
                break
            result = house._hands.launch(plan).sample(*(scheduler.masks(plan) or ())).collect()
            ended = {event.id for event in scheduler.commit(plan, result) if isinstance(event, wire.Finished)}
            live = [number for number in live if number not in ended]
            scheduler.check()
    assert drafter(house).tracked == 0 and scheduler.stats()["leases"] == 0


def test_its_keys_and_values_count_as_memory(untaught: Path) -> None:
    config = Config(memory=0.01, threads=1)

    def pages(config: Config) -> int:
        return build(config, SAPLING, lambda *_: None).ready.pages

    per_token = (6 * 3 * 32, 2 * 2 * 32)  # layers, key/value heads, width
    with_draft = pages(msgspec.structs.replace(config, draft_model=str(untaught)))
    assert with_draft / pages(config) == pytest.approx(per_token[0] / sum(per_token), rel=0.01)


def test_a_model_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(LoadError, match=r"another vocabulary.*draft_model='' for none"):
        engine(checkpoint("llama"))


def test_a_draft_whose_tokens_are_called_otherwise_is_refused(untaught: Path, tmp_path: Path) -> None:
    shutil.copytree(untaught, tmp_path / "draft", ignore=shutil.ignore_patterns("tokenizer.json"))
    text = (SAPLING / "tokenizer.json").read_text("utf-8")
    (tmp_path / "draft" / "tokenizer.json").write_text(text.replace('"<tool_call>"', '"<other_call>"'), "utf-8")
    with pytest.raises(LoadError, match=r"token \d+ is b'<other_call>' there and b'<tool_call>' here"):
        engine(tmp_path / "draft")


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs draft_model="):
        parse(["speculative=lookup,model"])
    with pytest.raises(ConfigError, match="is never asked"):
        parse(["speculative=lookup", "draft_model=x"])
    with pytest.raises(ConfigError, match=r"'lookup,maybe' must be one of auto, off, lookup, grammar, model"):
        parse(["speculative=lookup,maybe"])
    assert parse(["speculative=lookup,model", "draft_model=x"]).guessers == {"lookup", "model"}


def test_what_guessing_takes_is_no_part_of_a_step() -> None:
    cost = StepCost([(1, 1.0), (2, 1.1), (4, 1.2)])
    cost.begin(1)
    cost.aside = 5.0
    cost.observe(1, 2, 6.2)
    other = StepCost(cost.points)
    other.observe(1, 2, 1.2)
    assert cost.load(1) == other.load(1)


def test_guesses_that_cost_more_than_they_bring_are_not_worked_out() -> None:
    worth = StepCost([(1, 1.0), (2, 1.1), (4, 1.3)]).begin(1)

    def depth(rate: float, each: float) -> int:
        return worth.deepest([rate], each, 8)[0]

    assert depth(0.9, 0.1) >= 4
    assert 0 < depth(0.6, 0.1) < depth(0.9, 0.1)
    assert depth(0.9, 0.9) == 0 and depth(0.1, 0.1) == 0


def test_the_model_is_left_alone_where_free_guesses_are_nearly_as_good() -> None:
    small = ModelDrafter(Silent(), 10, 1, 100, StepCost([(1, 0.05), (32, 0.1)]))
    context = Context(0, array("i", [1, 2, 3]))
    main = StepCost([(1, 1.0), (2, 1.1), (4, 1.3)])
    small.begin(main.begin(1), main)
    assert small.outdoes(context, 0.2, 8, 8)
    assert not small.outdoes(context, 0.8, 8, 8)
    assert small.outdoes(context, 0.8, 1, 8), "one guess that is free is less than many that are not"


class Silent:
    def guess(self, rows: Sequence[Row], count: int, least: float) -> list[Guess]:
        return [Guess([], []) for _ in rows]


def test_a_context_that_the_draft_does_not_know_is_left_to_others(untaught: Path) -> None:
    house = engine(untaught, speculative="model")
    drafter(house)._context = len(encoder().encode(PROMPTS[2]).ids) + 20
    found = run(house, [submit(0, PROMPTS[2], stops=wire.Stops(60))])
    accepted = [last for _, last, _ in found[0].finished.accepted]
    assert len(found[0].ids) == 60 and max(accepted) <= 20
