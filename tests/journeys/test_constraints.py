"""Programs whose text is constrained, on the real runtime: every way to say it, with all else that the language has."""

from __future__ import annotations

import inspect
import json
import re
import threading
import time
from typing import Any, Literal

import psutil
import pydantic
import pytest
from jsonschema import Draft202012Validator

import branchwork as bw

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "mood": {"enum": ["calm", "angry"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
ARITHMETIC = r"""
start: term (("+" | "-") term)*
term: NUMBER | "(" start ")"
NUMBER: /[0-9]{1,2}/
"""


class Order(pydantic.BaseModel):
    item: Literal["tea", "coffee"]
    count: int = pydantic.Field(ge=1, le=9)


@bw.function
def written(s: Any, prompt: str, **knobs: Any) -> None:
    s += prompt
    s += bw.gen("out", **knobs)


@bw.function
def card(s: Any, **knobs: Any) -> None:
    s += "Describe a visitor.\n"
    s += bw.turn(
        "Name: ",
        bw.gen("name", regex="[A-Z][a-z]{2,7}"),
        ", age ",
        bw.gen("age", type=int),
        bw.optional(", from ", bw.select("city", ["Paris", "Rome"])),
        ". Tags: ",
        bw.repeat(bw.gen("tag", regex="[a-z]{2,4}"), least=2, most=3, separator=", "),
        "\n",
        name="card",
        **knobs,
    )
    s += "Next."


def test_each_kind_of_constraint_is_kept(runtime: bw.Runtime) -> None:
    for seed in range(3):
        knobs: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_tokens": 200, "backend": runtime}
        assert re.fullmatch(r"\d{3}-\d{4}", written.run("Call ", regex=r"\d{3}-\d{4}", **knobs)["out"])
        assert written.run("I choose ", choices=["tea", "coffee", "te"], **knobs)["out"] in ("tea", "coffee", "te")
        person = json.loads(written.run("A person: ", json_schema=PERSON, **knobs)["out"])
        Draft202012Validator(PERSON).validate(person)
        sum_ = written.run("Sum: ", grammar=ARITHMETIC, stop=["\n"], **{**knobs, "max_tokens": 12})
        assert re.fullmatch(r"[0-9+()-]+", sum_["out"])
        assert written.run("How many? ", type=int, **knobs)["out"].__class__ is int
        assert isinstance(written.run("Order: ", type=Order, **knobs)["out"], Order)


def test_a_turn_is_one_request_whose_captures_are_variables(runtime: bw.Runtime) -> None:
    state = card.run(backend=runtime, temperature=1.0, seed=4)
    whole = state["card"]
    city = f", from {state['city']}" if state["city"] is not None else ""
    assert whole == f"Name: {state['name']}, age {state['age']}{city}. Tags: {', '.join(state['tag'])}\n"
    assert isinstance(state["age"], int) and 2 <= len(state["tag"]) <= 3
    assert state.text() == f"Describe a visitor.\n{whole}Next."
    meta = state.meta("card")["constraint"]
    assert meta["complete"] and meta["forced_tokens"] >= 5 and meta["approximations"] == []


def test_captures_can_be_read_while_the_turn_goes_on(runtime: bw.Runtime) -> None:
    """The value of the first gen is there long before the last one is written."""

    @bw.function
    def long_turn(s: Any) -> None:
        s += "A code: "
        s += bw.turn(bw.gen("code", regex="[A-Z]{3}"), " and a story: ", bw.gen("story", regex="[a-z ]{1500}"))

    written.run("warm ", regex="[A-Z]{3}", backend=runtime).text()
    state = long_turn.run(backend=runtime, temperature=1.0, seed=1, max_tokens=1900)
    began = time.monotonic()
    assert re.fullmatch("[A-Z]{3}", state["code"])
    early = time.monotonic() - began
    assert len(state["story"]) == 1500
    assert early < (time.monotonic() - began) / 2


def test_typed_values_and_samples(runtime: bw.Runtime) -> None:
    state = written.run("Numbers: ", type=Literal["one", "two"], n=4, temperature=1.5, seed=2, backend=runtime)
    assert len(state["out"]) == 4 and set(state["out"]) <= {"one", "two"}
    assert written.run("Is it so? ", type=bool, backend=runtime)["out"] in (True, False)
    cut = written.run("Value: ", json_schema=PERSON, max_tokens=3, backend=runtime)
    assert cut.get_meta_info("out")["constraint"]["complete"] is False
    with pytest.raises(bw.ProgramError, match="incomplete"):
        written.run("Value: ", type=Order, max_tokens=3, backend=runtime)["out"]


def test_constraints_go_with_roles_forks_streams_stops_and_logprobs(runtime: bw.Runtime) -> None:
    @bw.function
    def all_at_once(s: Any) -> None:
        s += bw.user("Give me a code and a vote.")
        with s.assistant():
            s += "Code "
            s += bw.gen("code", regex="[A-Z]{2}[0-9]{2}", logprobs=1)
            forks = s.fork(3)
            for n, branch in enumerate(forks):
                branch += f" vote {n}: "
                branch += bw.gen("vote", choices=["yes", "no"], temperature=1.0, seed=n)
            forks.join()

    state = all_at_once.run(backend=runtime, temperature=1.0, seed=3, stream=True)
    streamed = "".join(state.text_iter())
    assert streamed == state.text() and state["code"] in streamed
    assert len(state["vote"]) == 3 and set(state["vote"]) <= {"yes", "no"}
    meta = state.meta("code")
    assert len(meta["output_token_logprobs"]) == meta["completion_tokens"]
    stopped = written.run("Letters: ", regex="[a-z]{3}x[a-z]{20}", stop="x", backend=runtime)
    assert len(stopped["out"]) == 3 and stopped.meta("out")["matched"] == "x"


def test_jump_forward_exact_gives_the_ids_of_off(runtime: bw.Runtime) -> None:
    ids = {}
    for jump in ("off", "exact", "on"):
        state = written.run("A person: ", json_schema=PERSON, jump_forward=jump, seed=5, backend=runtime)
        json.loads(state["out"])
        meta = state.meta("out")
        ids[jump] = meta["output_ids"]
        assert (meta["constraint"]["forced_tokens"] > 0) == (jump != "off") or jump == "exact"
    assert ids["exact"] == ids["off"]


def test_the_exact_scorer_knows_where_an_option_ends(runtime: bw.Runtime) -> None:
    @bw.function
    def chosen(s: Any, options: list[str]) -> None:
        s += "Q: What is the capital of France?\nA: "
        s += bw.select("out", options, choices_method="exact")

    state = chosen.run(["Par", "Paris", "Rome", "Pa"], backend=runtime)
    meta = state.meta("out")
    assert state["out"] == "Paris"
    assert sum(meta["probabilities"]) == pytest.approx(1.0)
    assert meta["end_logprobs"][0] < -0.5, "after Par the model goes on to Paris"
    assert meta["end_logprobs"][1] == meta["end_logprobs"][2] == 0.0, "nothing goes on from these"


def test_tool_calls_are_constrained_where_they_begin(runtime: bw.Runtime) -> None:
    number = {"type": "integer", "minimum": 0, "maximum": 99}
    add = {"type": "object", "properties": {"name": {"const": "add"}, "a": number}, "required": ["name", "a"]}
    call = bw.tag("<tool_call>", json_schema={**add, "additionalProperties": False}, end="</tool_call>")
    knobs: dict[str, Any] = {"temperature": 1.0, "seed": 1, "max_tokens": 400, "backend": runtime}
    state = written.run("Call the tool: ", tags=[call], at_least_one=True, **knobs)
    meta = state.meta("out")
    calls = re.findall(r"<tool_call>(.*?)</tool_call>", state["out"], re.DOTALL)
    assert all(json.loads(text)["name"] == "add" for text in calls)
    assert calls or not meta["constraint"]["complete"]


@pytest.mark.parametrize(
    ("knobs", "error", "said"),
    [
        ({"regex": "(?<=a)b"}, bw.Unsupported, "look-behind"),
        ({"regex": "[z"}, bw.Invalid, "position"),
        ({"regex": "a", "json_schema": {}}, TypeError, "json_schema"),
        ({"json_schema": "{"}, bw.Invalid, "JSON"),
        ({"grammar": " "}, bw.Invalid, "grammar"),
    ],
)
def test_what_can_be_seen_early_is_raised_where_it_is_written(
    runtime: bw.Runtime, knobs: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        bw.gen("out", **knobs)


@pytest.mark.parametrize(
    ("knobs", "code"),
    [
        ({"json_schema": {"type": "object", "properties": 3}}, "invalid_constraint"),
        ({"json_schema": {"$ref": "https://example.com/x.json"}}, "unsupported_constraint"),
        ({"grammar": "start: missing"}, "invalid_constraint"),
        ({"json_schema": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, "invalid_constraint"),
    ],
)
def test_what_only_compiling_shows_names_the_line_that_wrote_it(
    runtime: bw.Runtime, knobs: dict[str, Any], code: str
) -> None:
    lines = []

    @bw.function
    def wrong(s: Any) -> None:
        s += "Text: "
        lines.append(inspect.currentframe().f_lineno + 1)  # type: ignore[union-attr]
        s += bw.gen("out", **knobs)

    with pytest.raises(bw.ProgramError) as caught:
        wrong.run(backend=runtime)["out"]
    assert caught.value.code == code
    assert caught.value.source == f"{__file__}:{lines[0]}"


def test_a_pathological_constraint_keeps_nobody_else_waiting(runtime: bw.Runtime) -> None:
    """While a worker chews on it (until it is killed), others are served."""
    slow = r"([a-z]{0,300}[0-9]{0,300}){0,300}(?!x)(a|b)*a(a|b){25}c"
    outcome: list[str] = []

    def suffer() -> None:
        try:
            outcome.append(written.run("x", regex=slow, max_tokens=5, backend=runtime)["out"])
        except bw.ProgramError as error:
            outcome.append(error.code)

    thread = threading.Thread(target=suffer)
    thread.start()
    served = 0
    while thread.is_alive():
        assert re.fullmatch("[0-9]{3}", written.run("Number ", regex="[0-9]{3}", backend=runtime)["out"])
        served += 1
    thread.join()
    assert outcome and served >= 1


def test_a_killed_engine_goes_on_with_a_constrained_answer_where_it_was() -> None:
    with bw.Runtime("sapling", threads=1, pages=10_000) as runtime:
        knobs: dict[str, Any] = {"regex": "[a-z ]{400}", "temperature": 1.0, "seed": 9, "max_tokens": 900}
        expected = written.run("Letters: ", **knobs, backend=runtime)["out"]
        state = written.run("Letters: ", **knobs, stream=True, backend=runtime)
        pieces = state.text_iter("out")
        got = next(pieces)
        children = psutil.Process(runtime.pid).children(recursive=True)
        next(child for child in children if "branchwork.runtime.assembly" in child.cmdline()).kill()
        assert got + "".join(pieces) == expected == state["out"]


@pytest.mark.soak
def test_ten_thousand_random_schemas_give_valid_json(runtime: bw.Runtime) -> None:
    from rich.console import Console

    from benchmarks.constrained import validity

    found = validity(runtime, 10_000, Console())
    assert found["complete"] == found["valid"] and found["refused"] == 0
