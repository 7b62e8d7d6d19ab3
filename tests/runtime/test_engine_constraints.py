"""The whole engine under constraints: what comes out obeys them, forced text is cheap, neighbours notice nothing."""

from __future__ import annotations

import json
import re
import time
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer

import branchwork.runtime.sapling
from branchwork.lang.constraint import Choice, Constraint, Free, JsonSchema, Literal, Regex
from branchwork.lang.constraint import Sequence as InOrder
from branchwork.runtime import wire
from branchwork.runtime.assembly import build
from branchwork.runtime.config import Config
from branchwork.runtime.engine import Engine
from branchwork.runtime.loading.tokenizer import eos_ids, load_tokenizer, token_bytes

SAPLING = Path(branchwork.runtime.sapling.__file__).parent
PERSON = JsonSchema(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "age": {"type": "integer", "maximum": 120, "minimum": 0},
            },
            "required": ["name", "age"],
            "additionalProperties": False,
        }
    )
)
SETTINGS = {
    "plain": Config(pages=4000, budget=1024),
    "pages of 16, chunks of 9": Config(pages=200, page_size=16, budget=9, max_running=9),
    "preempted": Config(pages=90, budget=64),
    "overlap": Config(pages=4000, budget=64, overlap="on"),
}


@cache
def tokens() -> list[bytes]:
    return token_bytes(SAPLING)


@cache
def ends() -> tuple[int, ...]:
    return eos_ids(SAPLING)


@cache
def encoder() -> Tokenizer:
    return load_tokenizer(SAPLING)


def encode(text: str) -> list[int]:
    return list(encoder().encode(text, add_special_tokens=False).ids)


def engine(config: Config = SETTINGS["plain"]) -> Engine:
    return build(msgspec.structs.replace(config, dtype="float32", threads=1), SAPLING, lambda *_: None).engine


def submit(number: int, prompt: str, constraint: Constraint | None, **rest: object) -> wire.Submit:
    shape = rest.pop("shape", wire.Shape(temperature=0.0))
    stops = rest.pop("stops", wire.Stops(max_tokens=60, ids=ends()))
    ids = array("i", encode(prompt)).tobytes()
    return wire.Submit(number, ids, shape, stops, constraint=constraint, **rest)  # type: ignore[arg-type]


class Answer(msgspec.Struct):
    ids: list[int]
    scores: list[wire.TokenScore]
    finished: wire.Finished

    @property
    def text(self) -> str:
        return b"".join(tokens()[i] for i in self.ids)[: self.finished.length].decode("utf-8", "replace")


def run(house: Engine, messages: Sequence[wire.ToEngine]) -> dict[int, Answer | wire.Failed]:
    """Everything that comes of the messages, given all at once; bounded in time."""
    inbox, wanted = list(messages), {m.id for m in messages if isinstance(m, wire.Submit)}
    found: dict[int, Answer | wire.Failed] = {}
    ids: dict[int, list[int]] = {}
    scores: dict[int, list[wire.TokenScore]] = {}
    late = time.monotonic() + 60

    def receive(wait: bool) -> list[wire.ToEngine]:
        given, inbox[:] = inbox[:], []
        assert time.monotonic() < late, f"{wanted - found.keys()} are not done"
        if wait and not given:
            time.sleep(0.001)
        return given or ([wire.Stop()] if wanted <= found.keys() else [])

    def send(events: list[wire.FromEngine]) -> None:
        for event in events:
            if isinstance(event, (wire.Tokens, wire.Finished)):
                ids.setdefault(event.id, []).extend(event.ids)
                scores.setdefault(event.id, []).extend(event.scores)
            if isinstance(event, wire.Finished):
                found[event.id] = Answer(ids[event.id], scores[event.id], event)
            elif isinstance(event, wire.Failed):
                found[event.id] = event

    house.run(receive, send)
    house._scheduler.check()
    assert house._scheduler.stats()["leases"] == 0
    return found


def answer(found: Answer | wire.Failed) -> Answer:
    assert isinstance(found, Answer), found
    return found


CONSTRAINTS: dict[str, Constraint] = {
    "regex": Regex(r"(The|A) (city|town) of [A-Z][a-z]{2,8} has [0-9]{1,3} (people|houses)\."),
    "choice": Choice(("positive", "negative", "neither good nor bad", "neither")),
    "json": PERSON,
    "sequence": InOrder(
        (Literal("Name: "), Free((",",), 20), Literal(", age "), Regex("[0-9]{1,3}"), Literal(" years.\n"))
    ),
}


def obeys(name: str, text: str) -> bool:
    if name == "json":
        person = json.loads(text)
        return list(person) == ["name", "age"] and len(person["name"]) <= 12 and 0 <= person["age"] <= 120
    patterns = {
        "regex": CONSTRAINTS["regex"].pattern,  # type: ignore[union-attr]
        "choice": "positive|negative|neither good nor bad|neither",
        "sequence": r"Name: [^,]{0,20}, age [0-9]{1,3} years\.\n",
    }
    return re.fullmatch(patterns[name], text) is not None


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("setting", SETTINGS)
def test_answers_obey_and_forced_text_changes_no_token(setting: str, temperature: float) -> None:
    """jump="exact" gives the ids of jump="off", with fewer steps; jump="on" obeys too and never computes in vain."""
    house = engine(SETTINGS[setting])
    found: dict[str, dict[int, Answer]] = {}
    names = list(CONSTRAINTS) * 3
    steps: dict[str, int] = {}
    for jump in ("off", "exact", "on"):
        messages = [
            submit(
                n, f"Tell me about number {n}: ", CONSTRAINTS[name], jump=jump, shape=wire.Shape(temperature, seed=n)
            )
            for n, name in enumerate(names)
        ]
        before = house._scheduler.stats()["steps"]
        found[jump] = {number: answer(one) for number, one in run(house, messages).items()}
        steps[jump] = int(house._scheduler.stats()["steps"]) - int(before)
        for number, one in found[jump].items():
            assert one.finished.enforced is not None and one.finished.enforced.complete
            assert obeys(names[number], one.text), one.text
            assert not any(tokens()[i] == b"" for i in one.ids if i not in ends()), "a special token is no text"
    assert {n: one.ids for n, one in found["exact"].items()} == {n: one.ids for n, one in found["off"].items()}
    forced = {jump: sum(one.finished.enforced.forced for one in of.values()) for jump, of in found.items()}  # type: ignore[union-attr]
    assert forced["off"] == 0 < forced["exact"] and forced["on"] > 0
    if setting == "plain":  # elsewhere the order of admission blurs it
        assert steps["exact"] < steps["off"]
    for one in found["on"].values():
        usage = one.finished.usage
        if not usage.preempted:
            assert usage.reused + usage.computed < usage.prompt + len(one.ids), "something was computed in vain"


def test_unconstrained_neighbours_get_the_tokens_they_get_alone() -> None:
    house = engine()
    free = [submit(n, f"Question {n}: what", None, shape=wire.Shape(1.0, seed=n)) for n in range(4)]
    bound = [submit(10 + n, f"Number {n}: ", PERSON, shape=wire.Shape(1.0, seed=n)) for n in range(4)]
    alone = run(house, free)
    together = run(house, [message for pair in zip(free, bound) for message in pair])
    assert all(answer(together[n]).ids == answer(alone[n]).ids for n in range(4))
    assert all(obeys("json", answer(together[10 + n]).text) for n in range(4))


def test_a_constraint_that_cannot_be_kept_fails_its_own_request_with_a_code() -> None:
    house = engine()
    found = run(
        house,
        [
            submit(0, "a", Regex("(?<=x)y")),
            submit(1, "a", JsonSchema('{"type": "object", "properties": 3}')),
            submit(2, "a", Regex("[0-9]{4}")),
            submit(3, "a", Regex("((a{0,100}){0,100}){0,100}x(a|b)*a(a|b){30}(?=c)c")),
        ],
    )
    codes = {number: one.code for number, one in found.items() if isinstance(one, wire.Failed)}
    assert codes[0] == "unsupported_constraint" and "look-behind" in found[0].message  # type: ignore[union-attr]
    assert codes[1] == "invalid_constraint"
    assert set(codes) <= {0, 1, 3}
    assert re.fullmatch("[0-9]{4}", answer(found[2]).text)


def test_a_request_can_be_cancelled_while_its_grammar_is_compiled() -> None:
    house = engine()
    slow = Regex("(a|b)*a(a|b){17}")
    found = run(house, [submit(0, "a", slow), wire.Cancel(0), submit(1, "a", Regex("[0-9]{2}"))])
    assert answer(found[0]).finished.reason == "cancelled"
    assert len(answer(found[1]).text) == 2


def test_stops_lengths_and_scores_go_with_constraints() -> None:
    house = engine()
    digits = Regex("[0-9]+")
    found = run(
        house,
        [
            submit(0, "Count: ", digits, stops=wire.Stops(max_tokens=7, min_tokens=7, ids=ends())),
            submit(1, "Count: ", digits, stops=wire.Stops(max_tokens=9)),  # ignore_eos
            submit(2, "Say: ", Regex("[a-z]{3}x[a-z]{9}"), stops=wire.Stops(60, strings=(b"x",), ids=ends())),
            submit(3, "Count: ", Regex("(forced text, all of it) [0-9]"), logprobs=2, jump="exact"),
            submit(4, "Count: ", Regex("(forced text, all of it) [0-9]"), logprobs=2, jump="off"),
            submit(5, "Count: ", digits, stops=wire.Stops(max_tokens=3, ids=ends())),
            submit(6, "Count: ", Regex("(forced text, all of it) [0-9]"), logprobs=0, jump="on"),
        ],
    )
    assert len(answer(found[0]).ids) == 7 and answer(found[0]).finished.reason == "length"
    assert len(answer(found[1]).ids) == 9
    stopped = answer(found[2])
    assert stopped.finished.reason == "stop" and stopped.finished.matched == b"x" and len(stopped.text) == 3
    exact, off = answer(found[3]), answer(found[4])
    assert [score.id for score in exact.scores] == exact.ids == off.ids
    assert [s.logprob for s in exact.scores] == pytest.approx([s.logprob for s in off.scores], abs=1e-4)
    jumped = answer(found[6])
    assert jumped.finished.enforced is not None and jumped.finished.enforced.forced >= 4
    assert [score.id for score in jumped.scores] == jumped.ids == encode(jumped.text), "forced text is canonical"
    assert all(score.logprob < 0.0 for score in jumped.scores), "scores are the model's own, not the mask's"
    assert answer(found[5]).finished.reason in ("length", "eos")
