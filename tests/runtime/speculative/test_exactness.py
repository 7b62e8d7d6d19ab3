"""What is guessed changes no answer: real engines with every drafter on and with all of them off, token for token."""

from __future__ import annotations

import json
import random
import time
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer

import branchwork.runtime.sapling
from branchwork.lang.constraint import Choice, Constraint, Free, JsonSchema, Literal, Regex, Tag, Tagged
from branchwork.lang.constraint import Sequence as InOrder
from branchwork.runtime import wire
from branchwork.runtime.assembly import build
from branchwork.runtime.config import Config, ConfigError, parse
from branchwork.runtime.engine import Engine
from branchwork.runtime.loading.tokenizer import eos_ids, load_tokenizer
from branchwork.runtime.speculative.draft import NOTHING, Draft
from tests.runtime.scheduler.test_trees import Planter, tree_of

SAPLING = Path(branchwork.runtime.sapling.__file__).parent
ROOMY = Config(pages=4000, budget=1024)
SETTINGS = {
    "roomy": ROOMY,
    "pages of 16, chunks of 9": Config(pages=200, page_size=16, budget=9, max_running=9),
    "preempted": Config(pages=110, budget=64),
    "overlap": Config(pages=4000, budget=64, overlap="on"),
}
PERSON = JsonSchema(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "age": {"type": "integer", "maximum": 120, "minimum": 0},
                "colour": {"enum": ["red", "green", "blue"]},
            },
            "required": ["name", "age", "colour"],
            "additionalProperties": False,
        }
    )
)
CONSTRAINTS: tuple[Constraint, ...] = (
    PERSON,
    Regex(r"(The|A) (city|town) of [A-Z][a-z]{2,8} has [0-9]{1,3} (people|houses)\."),
    Choice(("positive", "negative", "neither good nor bad", "neither")),
    InOrder((Literal("Name: "), Free((",",), 20), Literal(", age "), Regex("[0-9]{1,3}"), Literal(" years.\n"))),
)
PROMPTS = (
    "Tell me about the sea.\n",
    "Question: what is the capital of France?\nAnswer:",
    "One two three one two three one two three one",
    "Fill in the form for customer 7.\n",
)


@cache
def ends() -> tuple[int, ...]:
    return eos_ids(SAPLING)


@cache
def encoder() -> Tokenizer:
    return load_tokenizer(SAPLING)


def engine(speculative: str, config: Config = ROOMY) -> Engine:
    chosen = msgspec.structs.replace(config, threads=1, speculative=speculative)
    return build(chosen, SAPLING, lambda *_: None).engine


def submit(number: int, prompt: str, **rest: object) -> wire.Submit:
    ids = array("i", encoder().encode(prompt, add_special_tokens=False).ids).tobytes()
    rest.setdefault("shape", wire.Shape(temperature=0.0))
    rest.setdefault("stops", wire.Stops(max_tokens=40, ids=ends()))
    return wire.Submit(number, ids, **rest)  # type: ignore[arg-type]


class Answer(msgspec.Struct):
    ids: list[int]
    scores: list[wire.TokenScore]
    finished: wire.Finished

    @property
    def told(self) -> tuple[object, ...]:
        """Everything that may not depend on guesses."""
        done = self.finished
        enforced = None if done.enforced is None else (done.enforced.complete, done.enforced.approximations)
        ended = (done.reason, done.matched, done.length, done.kept, done.closed, enforced)
        return (self.ids, self.scores, done.prompt_scores, *ended)


def run(house: Engine, messages: Sequence[wire.ToEngine]) -> dict[int, Answer]:
    """Everything that comes of the messages, given all at once."""
    inbox, wanted = list(messages), {m.id for m in messages if isinstance(m, wire.Submit)}
    found: dict[int, Answer] = {}
    ids: dict[int, list[int]] = {}
    scores: dict[int, list[wire.TokenScore]] = {}
    late = time.monotonic() + 120

    def receive(wait: bool) -> list[wire.ToEngine]:
        given, inbox[:] = inbox[:], []
        assert time.monotonic() < late, f"{wanted - found.keys()} are not done"
        return given or ([wire.Stop()] if wanted <= found.keys() else [])

    def send(events: list[wire.FromEngine]) -> None:
        for event in events:
            assert isinstance(event, (wire.Tokens, wire.Finished)), event
            ids.setdefault(event.id, []).extend(event.ids)
            scores.setdefault(event.id, []).extend(event.scores)
            if isinstance(event, wire.Finished):
                found[event.id] = Answer(ids[event.id], scores[event.id], event)
        house._scheduler.check()

    house.run(receive, send)
    assert house._scheduler.stats()["leases"] == 0
    return found


def random_submit(rng: random.Random, number: int) -> wire.Submit:
    """Any of the things that a request may ask for, together."""
    shape = wire.Shape(
        temperature=rng.choice([0.0, 0.0, 0.7, 1.3]),
        top_k=rng.choice([-1, -1, 20]),
        top_p=rng.choice([1.0, 0.9]),
        min_p=rng.choice([0.0, 0.05]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.4]),
        presence_penalty=rng.choice([0.0, 0.0, 0.3]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        seed=rng.randrange(3),
    )
    stops = wire.Stops(
        rng.choice([1, 7, 40]),
        min_tokens=rng.choice([0, 0, 5]),
        strings=rng.choice([(), (b"\n",), (b"ea", b". T")]),
        regexes=rng.choice([(), (), (b"[0-9]{2}",)]),
        ids=rng.choice([(), ends()]),
    )
    return submit(
        number,
        rng.choice(PROMPTS) * rng.choice([1, 1, 2]),
        shape=shape,
        stops=stops,
        constraint=rng.choice([None, None, *CONSTRAINTS]),
        jump=rng.choice(["on", "exact", "off"]),
        logprobs=rng.choice([-1, -1, 0, 3]),
        prompt_logprobs=rng.choice([-1, -1, -1, 1]),
        logprob_start=rng.randrange(6),
        stream=rng.random() < 0.5,
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_hundred_random_requests_are_answered_alike_with_and_without_guesses(setting: str) -> None:
    on, off = engine("auto", SETTINGS[setting]), engine("off", SETTINGS[setting])
    rng = random.Random(setting)
    messages = [random_submit(rng, number) for number in range(200)]
    different = []
    for first in range(0, 200, 25):
        batch = messages[first : first + 25]
        found, plain = run(on, batch), run(off, batch)
        different += [message for message in batch if found[message.id].told != plain[message.id].told]
    assert not different, f"{len(different)} differ, such as {different[0]}"
    stats = on._scheduler.stats()
    assert int(stats["accepted_lookup"]) > 100, "guesses that never come true test nothing"
    assert int(stats["drafted_tokens"]) > int(stats["accepted_tokens"]), "guesses that never fail test nothing"
    if setting == "preempted":
        assert stats["preemptions"], "nobody was preempted"


def tree_of_answers(rng: random.Random, texts: list[list[int]]) -> Callable[[list[int], int], Draft]:
    """Trees of what others wrote after the same ids, here and there with nonsense."""

    def tree(known: list[int], room: int) -> Draft:
        count = len(known)
        found = [text[count:] for text in texts if len(text) > count and text[:count] == known]
        nodes: dict[tuple[int, ...], int] = {(): -1}
        ids: list[int] = []
        parents: list[int] = []
        for text in rng.sample(found, min(len(found), 4)):
            wanted = text[: min(rng.randrange(1, 9), room)]
            wrong = [*wanted[: rng.randrange(len(wanted))], rng.randrange(3000)]
            for path in (wrong, wanted) if rng.random() < 0.7 else (wanted,):
                for n in range(1, len(path) + 1):
                    if tuple(path[:n]) not in nodes:
                        nodes[tuple(path[:n])] = len(ids)
                        ids.append(path[n - 1])
                        parents.append(nodes[tuple(path[: n - 1])])
        return tree_of(ids, parents) if ids else NOTHING

    return tree


TREES = {
    "pages of 1": ROOMY,
    "pages of 4": Config(pages=1000, page_size=4, budget=1024),
    "pages of 16, chunks of 40": Config(pages=200, page_size=16, budget=40, max_running=9),
    "preempted": Config(pages=150, budget=64),
}


@pytest.mark.parametrize("setting", TREES)
def test_a_hundred_random_requests_are_answered_alike_with_random_trees(setting: str) -> None:
    on, off = engine("auto", TREES[setting]), engine("off", TREES[setting])
    rng = random.Random(setting)
    messages = [random_submit(rng, number) for number in range(100)]
    plain: dict[int, Answer] = {}
    for first in range(0, 100, 25):
        plain |= run(off, messages[first : first + 25])
    texts = [array("i", message.ids).tolist() + plain[message.id].ids for message in messages]
    planter = Planter(tree_of_answers(rng, texts))
    on._scheduler._speculator = on._scheduler._planner._speculator = planter
    different = []
    for first in range(0, 100, 25):
        batch = messages[first : first + 25]
        found = run(on, batch)
        different += [message for message in batch if found[message.id].told != plain[message.id].told]
    assert not different, f"{len(different)} differ, such as {different[0]}"
    assert planter.turned > (4 if setting == "preempted" else 40), "side branches that never come true test nothing"
    if setting != "preempted":  # there, few side branches find pages, and grammars come when their workers are done
        assert planter.constrained > 4, "no grammar followed a side branch"
    if setting == "preempted":
        assert on._scheduler.stats()["preemptions"], "nobody was preempted"


@pytest.mark.parametrize("jump", ["on", "exact", "off"])
def test_a_tagged_grammar_is_answered_alike(jump: str) -> None:
    call = Tagged((Tag("sea", Regex(r" of [A-Z][a-z]{2,6} [0-9]{2}"), ". "), Tag("{", PERSON, "}")), at_least_one=True)
    messages = [
        submit(n, PROMPTS[n % 4], constraint=call, jump=jump, shape=wire.Shape(temperature=1.0, seed=n % 3))
        for n in range(12)
    ]
    on, off = engine("auto"), engine("off")
    for _ in range(2):
        found, plain = run(on, messages), run(off, messages)
        assert [found[n].told for n in range(12)] == [plain[n].told for n in range(12)]


@pytest.mark.parametrize(
    ("mode", "sources"),
    [("off", set()), ("lookup", {"lookup"}), ("grammar", {"grammar"}), ("auto", {"lookup", "grammar"})],
)
def test_the_option_chooses_who_guesses(mode: str, sources: set[str]) -> None:
    house = engine(mode)
    free = [submit(n, PROMPTS[2], stops=wire.Stops(30)) for n in range(2)]
    forced = [submit(n, PROMPTS[3], constraint=Regex("(forced text, all of it) [0-9]"), jump="exact") for n in (2, 3)]
    found = {**run(house, free), **run(house, forced)}
    guessed = {source for one in found.values() for source, _, _ in one.finished.usage.drafts}
    assert guessed == sources
    kept = sum(last - first for one in found.values() for first, last, _ in one.finished.accepted)
    assert kept == sum(count for one in found.values() for _, _, count in one.finished.usage.drafts)
    for one in found.values():
        drawn = len(one.ids) - sum(last - first for first, last, _ in one.finished.accepted)
        assert one.finished.usage.forwards >= drawn, "each forward gives one token that was not guessed"


def test_an_unknown_choice_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"speculative='maybe'.*auto, off, lookup, grammar"):
        parse(["speculative=maybe"])
