"""Values while they are still being written: what is shown is certain, grows, and ends as the value itself."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypedDict

import msgspec
import pydantic
import pytest

import branchwork as bw
from branchwork.lang.backend import Call, Chunk, Closed, LocalBackend, Reply
from branchwork.lang.ir import Reasoning
from branchwork.lang.transcript import Branch
from tests.lang.test_growing import grows, same


@dataclasses.dataclass
class Person:
    name: str
    age: int
    tags: list[str]


class Place(TypedDict):
    city: str
    size: float


class Order(pydantic.BaseModel):
    item: str
    count: int


class Stepwise:
    """A backend whose news comes in groups, the next one only when the value that the last one shows has been seen."""

    def __init__(self, groups: list[list[Chunk | Closed]], reply: Reply) -> None:
        self._groups, self._reply = groups, reply
        self._seen = threading.Semaphore(0)
        self.local = LocalBackend(self._answer, model="stepwise")

    async def _answer(self, call: Call, branch: Branch, emit: Callable[[Chunk | Closed], None]) -> Reply:
        for group in self._groups:
            for item in group:
                emit(item)
            await asyncio.to_thread(self._seen.acquire)
        return self._reply

    def shown(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            yield value
            self._seen.release()


def streamed(body: Any, script: Any, name: str) -> list[Any]:
    """The values of a program whose pieces come slowly enough to be seen one by one."""
    state = bw.function(body).run(backend=bw.ScriptedBackend(script, delay=0.002), stream=True)
    return list(state.partial_iter(name))


def one_gen(**knobs: Any) -> Any:
    def body(s: bw.ProgramState) -> None:
        s += "prompt "
        s += bw.gen("x", **knobs)

    return body


ANN = '{"name": "Ann Lee", "age": 37, "tags": ["a b", "c"]}'


def test_an_object_comes_field_by_field_and_at_last_as_what_was_asked_for() -> None:
    pieces = ['{"na', 'me": "Ann', " Lee", '", "age": 37, ', '"tags": [', '"a b", "', 'c"']
    backend = Stepwise([[Chunk(piece)] for piece in pieces], Reply((ANN,), ({},)))
    state = bw.function(one_gen(type=Person)).run(backend=backend.local, stream=True)
    values = list(backend.shown(state.partial_iter("x")))
    assert values == [
        {},
        {"name": "Ann"},
        {"name": "Ann Lee"},
        {"name": "Ann Lee", "age": 37},
        {"name": "Ann Lee", "age": 37, "tags": []},
        {"name": "Ann Lee", "age": 37, "tags": ["a b", ""]},
        {"name": "Ann Lee", "age": 37, "tags": ["a b", "c"]},
        Person("Ann Lee", 37, ["a b", "c"]),
    ]


@pytest.mark.parametrize(
    ("knobs", "text", "last"),
    [
        ({"type": Place}, '{"city": "Rome", "size": 1}', {"city": "Rome", "size": 1.0}),
        ({"type": Order}, '{"item": "green tea", "count": 2}', Order(item="green tea", count=2)),
        (
            {"type": list[datetime.date]},
            '["2024-02-29", "2024-03-01"]',
            [datetime.date(2024, 2, 29), datetime.date(2024, 3, 1)],
        ),
        ({"json_schema": {"type": "object"}}, '{"a": [1, 2]}', {"a": [1, 2]}),
        ({}, "three plain words", "three plain words"),
        ({"regex": "[a-z ]+"}, "three plain words", "three plain words"),
        ({"type": int}, "12", 12),
        ({"type": Literal["yes", "no"]}, "yes", "yes"),
        ({"type": datetime.date}, "2024-02-29", datetime.date(2024, 2, 29)),
    ],
)
def test_the_last_value_is_the_whole_one(knobs: Any, text: str, last: Any) -> None:
    values = streamed(one_gen(**knobs), {"x": text}, "x")
    assert same(values[-1], last)
    assert all(repr(old) != repr(new) for old, new in itertools.pairwise(values))
    if isinstance(last, str):
        assert all(last.startswith(value) for value in values)


def test_without_streaming_the_value_comes_in_one_piece() -> None:
    state = bw.function(one_gen(type=Person)).run(backend=bw.ScriptedBackend({"x": ANN}))
    assert list(state.partial_iter("x")) == [Person("Ann Lee", 37, ["a b", "c"])]


def test_of_several_samples_the_first_is_followed_and_all_are_the_end() -> None:
    values = streamed(one_gen(type=list[int], n=2), {"x": ("[1, 2, 3]", "[4]")}, "x")
    assert values[-1] == [[1, 2, 3], [4]]
    assert all(grows(value, [1, 2, 3]) for value in values[:-1])


def test_what_was_cut_off_is_an_error_after_what_was_there() -> None:
    state = bw.function(one_gen(type=Person)).run(
        backend=bw.ScriptedBackend({"x": '{"name": "Ann", "age": 3'}, delay=0.002), stream=True
    )
    values = state.partial_iter("x")
    seen: list[Any] = []
    with pytest.raises(bw.ProgramError, match=r"incomplete.*not all there"):
        while True:
            seen.append(next(values))
    assert all(list(value) in ([], ["name"]) for value in seen)
    with pytest.raises(bw.ProgramError, match="incomplete"):
        streamed(one_gen(json_schema={"type": "array"}), {"x": "[1, "}, "x")


def test_a_failure_is_a_program_error_where_the_value_is_followed() -> None:
    with pytest.raises(bw.ProgramError, match="boom"):
        streamed(one_gen(type=Person), {"x": RuntimeError("boom")}, "x")
    with pytest.raises(bw.ProgramError, match="unknown_variable"):
        streamed(one_gen(type=Person), {"x": ANN}, "y")

    def raises(s: bw.ProgramState) -> None:
        s += bw.gen("x", type=Person)
        raise ValueError("of the author")

    state = bw.function(raises).run(backend=bw.ScriptedBackend({"x": ANN}, delay=0.01), stream=True)
    with pytest.raises(ValueError, match="of the author"):
        list(state.partial_iter("x"))


def test_a_cancelled_branch_ends_what_is_followed() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x", type=list[int])

    backend = bw.ScriptedBackend({"x": json.dumps(list(range(10_000)))}, delay=0.001)
    state = bw.function(body).run(backend=backend, stream=True)
    values = state.partial_iter("x")
    assert isinstance(next(values), list)
    state.cancel()
    with pytest.raises(bw.ProgramError, match="cancelled"):
        list(values)


def test_variables_that_are_not_generated_come_once() -> None:
    def body(s: bw.ProgramState) -> None:
        s["note"] = {"any": "object"}
        s += "Pick " + bw.select("pick", ["a", "b"])
        forks = s.fork(2)
        for fork in forks:
            fork += bw.gen("n", type=int)
        forks.join()

    script = {"pick": "b", "n": ["1", "2"]}
    state = bw.function(body).run(backend=bw.ScriptedBackend(script), stream=True)
    assert list(state.partial_iter("note")) == [{"any": "object"}]
    assert list(state.partial_iter("pick")) == ["b"]
    assert list(state.partial_iter("n")) == [[1, 2]]


def test_branches_are_followed_side_by_side_without_waiting_for_each_other() -> None:
    def body(s: bw.ProgramState) -> Any:
        forks = s.fork(2)
        forks += bw.gen("x", type=list[int])
        return forks

    backend = bw.ScriptedBackend({"x": ["[1, 2]", "[3]"]}, delay=0.001)
    forks = bw.function(body).run(backend=backend, stream=True).ret_value
    first, second = (fork.partial_iter("x") for fork in forks)
    assert sorted([list(first)[-1], list(second)[-1]]) == [[1, 2], [3]]


def test_async_programs_follow_values_too() -> None:
    @bw.function
    async def body(s: bw.ProgramState) -> list[Any]:
        s += bw.gen("x", type=Person)
        return [value async for value in s.partial_async_iter("x")]

    async def main() -> Any:
        state = await body.arun(backend=bw.ScriptedBackend({"x": ANN}, delay=0.002), stream=True)
        return state.ret_value

    values = asyncio.run(main())
    assert values[-1] == Person("Ann Lee", 37, ["a b", "c"])
    assert all(isinstance(value, dict) for value in values[:-1])


# --- turns and thinking


def test_a_turn_comes_as_its_variables_one_by_one_and_each_of_them_once() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.turn(
            "Name: ",
            bw.gen("name", regex="[A-Z][a-z]+"),
            ", age ",
            bw.gen("age", type=int),
            bw.optional(" from ", bw.select("city", ["Rome"])),
            name="card",
        )

    captures = {"name": "Ann", "age": "37"}
    news: list[Any] = [
        [Chunk("Name: "), Chunk("Ann"), Closed("name", "Ann")],
        [Chunk(", age 37"), Closed("age", "37")],
    ]
    backend = Stepwise(news, Reply(("Name: Ann, age 37",), ({},), captures))
    state = bw.function(body).run(backend=backend.local, stream=True)
    values = backend.shown(state.partial_iter("card"))
    assert next(values) == {"name": "Ann"}
    assert list(state.partial_iter("name")) == ["Ann"]  # before the turn is done
    assert list(values) == [{"name": "Ann", "age": 37}, {"name": "Ann", "age": 37, "city": None}]
    assert list(state.partial_iter("age")) == [37]
    assert list(state.partial_iter("city")) == [None]


def test_samples_of_a_turn_are_as_many_dicts() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.turn(bw.gen("a", type=int), "-", bw.gen("b", regex="[a-z]"), name="pair", n=2)

    values = streamed(body, {"pair": [[{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]]}, "pair")
    assert values == [[{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]]


@pytest.mark.parametrize("begun", [True, False])
def test_thinking_is_not_part_of_the_value(begun: bool) -> None:
    def body(s: bw.ProgramState) -> None:
        node = bw.gen("x", json_schema={"type": "array"})
        s += msgspec.structs.replace(node, reasoning=Reasoning("<think>", "</think>", begun))

    thinking = ("" if begun else "<think>") + "[9] </think>"
    pieces = [thinking[at : at + 3] for at in range(0, len(thinking), 3)]
    news: list[Any] = [[*map(Chunk, pieces), Chunk("\n"), Chunk(" [1,")], [Chunk("2,")]]
    backend = Stepwise(news, Reply((f"{thinking}\n [1,2,3]",), ({},)))
    state = bw.function(body).run(backend=backend.local, stream=True)
    assert list(backend.shown(state.partial_iter("x"))) == [[1], [1, 2], [1, 2, 3]]
    assert list(state.partial_iter("x_reasoning_content")) == ["[9]"]


def test_an_answer_without_thinking_is_the_value_from_its_first_piece() -> None:
    def body(s: bw.ProgramState) -> None:
        s += msgspec.structs.replace(bw.gen("x"), reasoning=Reasoning("<think>", "</think>"))

    backend = Stepwise([[Chunk("<"), Chunk("b>")], [Chunk(" so")]], Reply(("<b> so",), ({},)))
    state = bw.function(body).run(backend=backend.local, stream=True)
    assert list(backend.shown(state.partial_iter("x"))) == ["<b>", "<b> so"]
