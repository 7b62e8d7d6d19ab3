"""Typed values: what a type's text looks like, and that the value written is the value read."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import typing
from typing import Any, Literal, Optional

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwork.lang.constraint import Choice, JsonSchema, Regex
from branchwork.lang.typed import typed


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Person:
    name: str
    age: int
    tall: bool = False
    nick: Optional[str] = None  # noqa: UP045  (both spellings are understood)
    colours: list[Colour] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Tree:
    word: str
    children: list[Tree]


class Place(typing.TypedDict):
    city: str
    size: float | None


class Half(typing.TypedDict, total=False):
    city: str


PEOPLE = st.builds(
    Person,
    name=st.text(),
    age=st.integers(-(10**17), 10**17),
    tall=st.booleans(),
    nick=st.none() | st.text(),
    colours=st.lists(st.sampled_from(Colour), max_size=3),
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TREES = st.recursive(
    st.builds(Tree, st.text(max_size=3), st.just([])),
    lambda inner: st.builds(Tree, st.text(max_size=3), st.lists(inner, max_size=2)),
    max_leaves=5,
)


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def obeys(constraint: Any, text: str) -> bool:
    match constraint:
        case Regex(pattern):
            return re.fullmatch(pattern, text) is not None
        case Choice(options):
            return text in options
        case JsonSchema(schema):
            return bool(jsonschema.Draft202012Validator(json.loads(schema)).is_valid(json.loads(text)))
    raise AssertionError(constraint)


@pytest.mark.parametrize(
    ("kind", "values", "write"),
    [
        (int, st.integers(-(10**18) + 1, 10**18 - 1), str),
        (float, st.floats(-1e15, 1e15) | st.floats(1e20, 1e289), repr),
        (bool, st.booleans(), str),
        (bool, st.booleans(), lambda value: str(value).lower()),
        (Literal["a", 2, True, None], st.sampled_from(["a", 2, True, None]), None),
        (Colour, st.sampled_from(Colour), lambda value: value.value),
        (Level, st.sampled_from(Level), lambda value: str(int(value))),
        (Person, PEOPLE, None),
        (Tree, TREES, None),
        (list[Person], st.lists(PEOPLE, max_size=2), None),
        (dict[str, list[int]], st.dictionaries(st.text(), st.lists(st.integers())), None),
        (dict, st.dictionaries(st.text(), st.integers() | st.text()), None),
        (tuple[int, str], st.tuples(st.integers(), st.text()), None),
        (tuple[float, ...], st.lists(FINITE).map(tuple), None),
        (int | str | None, st.integers() | st.text() | st.none(), None),
        (typing.Union[Colour, list[int]], st.sampled_from(Colour) | st.lists(st.integers()), None),  # noqa: UP007
        (Place, st.fixed_dictionaries({"city": st.text(), "size": st.none() | FINITE}), None),
        (Half, st.fixed_dictionaries({}, optional={"city": st.text()}), None),
        (Any, st.none() | st.booleans() | st.lists(st.text()), None),
    ],
)
def test_what_is_written_is_what_is_read(kind: Any, values: Any, write: Any) -> None:
    found = typed(kind)

    @given(values)
    def holds(value: Any) -> None:
        text = write(value) if write else json.dumps(plain(value))
        if kind == Literal["a", 2, True, None] and value == "a":
            text = "a"
        assert obeys(found.constraint, text)
        assert found.read(text) == value and type(found.read(text)) is type(value)

    holds()


@pytest.mark.parametrize("text", ["", "-", "1e", "007", "1.", "+1", " 1", "1_0", "0x1", "٣", "1" * 19])
def test_an_int_is_written_in_one_way(text: str) -> None:
    assert not obeys(typed(int).constraint, text)


@pytest.mark.parametrize("text", ["", ".5", "1.", "nan", "inf", "1e290", "1e999", "--1"])
def test_a_float_is_a_finite_json_number(text: str) -> None:
    assert not obeys(typed(float).constraint, text)
    assert obeys(typed(float).constraint, "-12.5e-3")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Person, '{"name": "Ann", "age"'),
        (Person, '{"name": "Ann", "age": 3}'),
        (Person, '{"name": "Ann", "age": "3", "tall": true, "colours": []}'),
        (Person, '{"name": "Ann", "age": 3, "tall": true, "colours": [], "more": 1}'),
        (Tree, '{"word": "a", "children": [{"word": "b"}]}'),
        (int | str, "[]"),
        (list[int], "[1, true]"),
        (tuple[int, int], "[1]"),
        (Literal[1, "x"], "y"),
        (bool, "tru"),
        (Colour, "gre"),
        (float | None, "1" + "0" * 400),
    ],
)
def test_a_text_that_is_no_value_of_the_type_is_a_value_error(kind: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        typed(kind).read(text)


def test_an_optional_field_with_a_default_may_be_left_out_and_no_other() -> None:
    found = typed(Person)
    assert isinstance(found.constraint, JsonSchema)
    schema = json.loads(found.constraint.schema)
    assert list(schema["properties"]) == ["name", "age", "tall", "nick", "colours"]
    assert schema["required"] == ["name", "age", "tall", "colours"]
    assert schema["additionalProperties"] is False
    assert found.read('{"name":"Ann","age":3,"tall":true,"colours":["red"]}') == Person(
        "Ann", 3, True, None, [Colour.RED]
    )


def test_a_class_that_contains_itself_is_a_definition() -> None:
    found = typed(list[Tree])
    assert isinstance(found.constraint, JsonSchema)
    schema = json.loads(found.constraint.schema)
    assert schema["items"] == {"$ref": "#/$defs/Tree"}
    assert list(schema["$defs"]) == ["Tree"]


def test_a_pydantic_model_is_written_closed_and_read_as_a_model() -> None:
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", size=(int, ...))
    model = pydantic.create_model("Model", inner=(inner, ...), words=(list[str], ...), note=(str, "none"))
    found = typed(list[model])
    assert isinstance(found.constraint, JsonSchema)
    value = [model(inner=inner(size=3), words=["a"])]
    assert obeys(found.constraint, json.dumps([item.model_dump() for item in value]))
    assert not obeys(found.constraint, '[{"inner": {"size": 3, "more": 1}, "words": []}]')
    assert found.read('[{"inner": {"size": 3}, "words": ["a"]}]') == value
    with pytest.raises(ValueError, match="size"):
        found.read('[{"inner": {}, "words": ["a"]}]')


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (complex, "complex"),
        (set[int], "set"),
        (dict[int, str], "keys"),
        (list[bytes], "bytes"),
        (Literal[b"x"], "has no text"),
        (int | bytes, "bytes"),
        (lambda: None, "cannot be generated"),
    ],
)
def test_types_without_a_text_are_refused(kind: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        typed(kind)


def test_values_that_are_written_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="written '1'"):
        typed(Literal["1", 1])
