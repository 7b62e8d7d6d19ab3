"""Typed values on the real runtime: what is written can be read, and it can be seen while it is written."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import annotated_types as at
import msgspec
import pydantic
import pytest

import branchwork as bw

Word = Annotated[str, at.Len(1, 12)]


class Mood(enum.Enum):
    CALM = "calm"
    CROSS = "cross"


class Spot(NamedTuple):
    row: Annotated[int, at.Interval(ge=0, le=9)]
    seat: Literal["a", "b"]


@dataclasses.dataclass
class Guest:
    """Somebody who visits."""

    name: Word
    born: datetime.date
    mood: Annotated[Mood, "how they feel"]
    spots: Annotated[list[Spot], at.MaxLen(3)]
    paid: decimal.Decimal
    seen: datetime.datetime | None = None


@dataclasses.dataclass
class Twig:
    word: Word
    twigs: Annotated[list[Twig], at.MaxLen(2)]


class Ticket(TypedDict):
    id: uuid.UUID
    at: datetime.time


class Booking(pydantic.BaseModel):
    day: datetime.date
    nights: int = pydantic.Field(ge=1, le=30)
    rooms: list[Literal["single", "double"]] = pydantic.Field(min_length=1, max_length=3)


@bw.function
def written(s: Any, prompt: str, kind: Any, **knobs: Any) -> None:
    s += prompt
    s += bw.gen("out", type=kind, **knobs)


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (datetime.date, datetime.date),
        (datetime.datetime, datetime.datetime),
        (datetime.time, datetime.time),
        (decimal.Decimal, decimal.Decimal),
        (uuid.UUID, uuid.UUID),
        (Annotated[int, msgspec.Meta(ge=10, lt=20)], int),
        (Annotated[str, at.Len(3, 5)], str),
        (Annotated[str, bw.Regex("[A-Z][a-z]{2,5}")], str),
        (Spot, Spot),
        (Guest, Guest),
        (Ticket, dict),
        (Booking, Booking),
        (Annotated[list[Annotated[float, at.Interval(ge=0, le=9), at.MultipleOf(0.25)]], at.Len(2, 3)], list),
    ],
)
def test_what_is_written_is_a_value_of_the_type(runtime: bw.Runtime, kind: Any, made: type) -> None:
    states = [
        written.run("Value: ", kind, temperature=1.2, seed=seed, max_tokens=400, backend=runtime) for seed in range(4)
    ]
    for state in states:
        assert type(state["out"]) is made
        assert state.meta("out")["constraint"]["approximations"] == []


def test_fields_of_an_object_arrive_one_by_one(runtime: bw.Runtime) -> None:
    state = written.run("A guest: ", Guest, temperature=1.0, seed=5, max_tokens=400, backend=runtime, stream=True)
    values = list(state.partial_iter("out"))
    last = values.pop()
    assert isinstance(last, Guest) and last == state["out"]
    names = [field.name for field in dataclasses.fields(Guest)]
    assert all(list(value) == names[: len(value)] for value in values)
    lengths = [len(value) for value in values]
    assert lengths == sorted(lengths) and len(set(lengths)) >= 4
    assert values[-1]["name"] == last.name and values[-1]["mood"] == last.mood.value
    begun = [value["born"] for value in values if "born" in value]
    assert all(last.born.isoformat().startswith(text) for text in begun)


def test_items_of_a_list_and_of_a_model_arrive_one_by_one(runtime: bw.Runtime) -> None:
    numbers = Annotated[list[Annotated[int, at.Interval(ge=100, le=999)]], at.Len(12, 12)]
    state = written.run("Numbers: ", numbers, temperature=1.0, seed=1, max_tokens=400, backend=runtime, stream=True)
    values = list(state.partial_iter("out"))
    assert all(value == values[-1][: len(value)] for value in values)
    assert len(values[-1]) == 12 and len({len(value) for value in values}) >= 4
    state = written.run("Booking: ", Booking, temperature=1.0, seed=2, max_tokens=400, backend=runtime, stream=True)
    *partial, last = state.partial_iter("out")
    assert isinstance(last, Booking) and {"day": last.day.isoformat()} in [
        {name: value[name] for name in ("day",) if name in value} for value in partial
    ]


def test_a_class_that_contains_itself_is_written(runtime: bw.Runtime) -> None:
    grown = [written.run("A tree: ", Twig, temperature=2.0, seed=n, max_tokens=800, backend=runtime) for n in range(8)]
    for state in grown:
        state.sync()
    twigs = [state["out"] for state in grown if state.meta("out")["constraint"]["complete"]]
    assert twigs, "of eight trees grown at random, all had no end"
    while twigs:
        twig = twigs.pop()
        assert isinstance(twig, Twig) and 1 <= len(twig.word) <= 12
        twigs += twig.twigs


def test_variables_of_a_turn_arrive_before_it_is_done(runtime: bw.Runtime) -> None:
    @bw.function
    def card(s: Any) -> None:
        s += "A card.\n"
        s += bw.turn(
            "Day ",
            bw.gen("day", type=datetime.date),
            ", guests ",
            bw.gen("guests", type=Annotated[list[Spot], at.Len(1, 2)]),
            ", code ",
            bw.gen("code", regex="[a-z]{40}"),
            name="card",
            temperature=1.0,
            seed=8,
        )

    state = card.run(backend=runtime, stream=True)
    *partial, last = state.partial_iter("card")
    assert isinstance(last["day"], datetime.date) and isinstance(last["guests"][0], Spot)
    assert all(list(value) == ["day", "guests", "code"][: len(value)] for value in partial)
    assert {"day": last["day"]} in partial
    assert list(state.partial_iter("day")) == [last["day"]]


def test_a_value_that_is_cut_off_ends_in_an_error_after_its_first_fields(runtime: bw.Runtime) -> None:
    state = written.run("A guest: ", Guest, temperature=1.0, seed=5, max_tokens=12, backend=runtime, stream=True)
    values = state.partial_iter("out")
    assert next(values).keys() <= {"name"}
    with pytest.raises(bw.ProgramError, match=r"incomplete.*finish_reason: length"):
        list(values)


def test_many_async_programs_follow_their_values_at_once(runtime: bw.Runtime) -> None:
    @bw.function
    async def followed(s: Any, seed: int) -> Any:
        s += "A guest: "
        s += bw.gen("out", type=Guest, temperature=1.0, seed=seed, max_tokens=400)
        return [value async for value in s.partial_async_iter("out")]

    async def main() -> list[Any]:
        states = await asyncio.gather(*(followed.arun(seed, backend=runtime, stream=True) for seed in range(6)))
        return [state.ret_value for state in states]

    for values in asyncio.run(main()):
        assert isinstance(values[-1], Guest) and len(values) > 4
