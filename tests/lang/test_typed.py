"""Typed values: what a type's text looks like, and that the value written is the value read."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import itertools
import json
import re
import sys
import typing
import uuid
from typing import Annotated, Any, Literal, Optional

import annotated_types as at
import jsonschema
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import branchwork as bw
from branchwork.lang.constraint import Choice, JsonSchema, Regex
from branchwork.lang.typed import converted, typed


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


class Point(typing.NamedTuple):
    x: int
    y: int = 0
    label: Optional[str] = None  # noqa: UP045


@dataclasses.dataclass
class Visit:
    day: datetime.date
    guests: list[uuid.UUID]
    at: datetime.datetime | None
    place: Place


@dataclasses.dataclass
class Basket:
    """What somebody buys."""

    count: Annotated[int, pydantic.Field(ge=1, le=9, description="how many")]
    code: Annotated[str, pydantic.Field(pattern="^[A-Z]{2}")]
    note: str = dataclasses.field(metadata={"description": "free words"})
    prices: Annotated[list[decimal.Decimal], at.Len(1, 3)]


PEOPLE = st.builds(
    Person,
    name=st.text(),
    age=st.integers(-(10**17), 10**17),
    tall=st.booleans(),
    nick=st.none() | st.text(),
    colours=st.lists(st.sampled_from(Colour), max_size=3),
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLACES = st.fixed_dictionaries({"city": st.text(), "size": st.none() | FINITE})
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes)))
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
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    if isinstance(value, Point):
        return plain(value._asdict())
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


@pytest.mark.parametrize(
    ("kind", "values", "write"),
    [
        (datetime.date, st.dates(), str),
        (datetime.datetime, st.datetimes(timezones=st.none() | OFFSETS), datetime.datetime.isoformat),
        (datetime.time, st.times(), datetime.time.isoformat),
        (decimal.Decimal, st.decimals(-(10**17), 10**17, allow_nan=False, places=7), lambda value: f"{value:f}"),
        (uuid.UUID, st.uuids(), str),
        (Point, st.builds(Point, st.integers(-99, 99), label=st.none() | st.text()), None),
        (Visit, st.builds(Visit, st.dates(), st.lists(st.uuids()), st.datetimes(), PLACES), None),
        (Literal[Colour.RED, 3], st.sampled_from([Colour.RED, 3]), lambda value: str(plain(value))),
        (Annotated[int, at.Interval(ge=-3, lt=9)], st.integers(-3, 8), str),
        (Annotated[float, at.MultipleOf(0.25)], st.sampled_from([0.25, -0.5, 12.75]), repr),
        (Annotated[str, at.Len(2, 4)], st.text(min_size=2, max_size=4), str),
        (Annotated[str, bw.Regex("[a-c]+|x")], st.from_regex("[a-c]+|x", fullmatch=True), str),
        (Annotated[list[Annotated[str, "a word"]], at.MinLen(1)], st.lists(st.text(), min_size=1), None),
        (Annotated[Optional[int], at.Gt(0)], st.none() | st.integers(1, 10**9), None),  # noqa: UP045
    ],
)
def test_dates_ids_named_tuples_and_limits_are_read_as_they_are_written(kind: Any, values: Any, write: Any) -> None:
    found = typed(kind)

    @given(values)
    def holds(value: Any) -> None:
        text = write(value) if write else json.dumps(plain(value))
        assert obeys(found.constraint, text), text
        assert found.read(text) == value and type(found.read(text)) is type(value)

    holds()


def test_only_days_that_were_or_will_be_are_dates() -> None:
    """Every day that any calendar year could have, in a century that is a leap year and one that is not."""
    pattern = typed(datetime.date).constraint
    assert isinstance(pattern, Regex)
    takes = re.compile(pattern.pattern).fullmatch
    years = [*range(5), 400, *range(1896, 1905), 1999, *range(2000, 2009), 2023, 2024, 2100, 2400, 9999]
    for year, month, day in itertools.product(years, range(14), range(33)):
        try:
            datetime.date(year, month, day)
            real = True
        except ValueError:
            real = False
        text = f"{year:04}-{month:02}-{day:02}"
        assert bool(takes(text)) is real, text
        assert bool(re.fullmatch(typed(datetime.datetime).constraint.pattern, f"{text}T10:00:00Z")) is real


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (datetime.date, "2023-02-29"),
        (datetime.date, "20240101"),
        (datetime.datetime, "2024-01-01 10:00:00"),
        (datetime.datetime, "2024-01-01T10:00:60"),
        (datetime.datetime, "2024-01-01T10:00:00+15:00"),
        (datetime.time, "24:00:00"),
        (datetime.time, "7:30"),
        (decimal.Decimal, "NaN"),
        (decimal.Decimal, "1_0"),
        (uuid.UUID, "{123e4567-e89b-12d3-a456-426614174000}"),
        (Annotated[int, at.Ge(0)], "-1"),
        (Annotated[str, at.MaxLen(2)], "abc"),
        (Annotated[str, bw.Regex("a|bc")], "bcd"),
    ],
)
def test_what_looks_nearly_like_one_is_refused_when_written_and_when_read(kind: Any, text: str) -> None:
    found = typed(kind)
    assert not obeys(found.constraint, text)
    with pytest.raises(ValueError, match=r"."):
        found.read(text)


def test_limits_reach_into_fields_and_hold_for_texts_that_nobody_constrained() -> None:
    found = typed(Basket)
    schema = json.loads(found.constraint.schema)
    assert schema["description"] == "What somebody buys."
    assert schema["properties"]["count"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 9,
        "description": "how many",
    }
    assert schema["properties"]["code"] == {"type": "string", "pattern": "^[A-Z]{2}"}
    assert schema["properties"]["note"]["description"] == "free words"
    good = {"count": 3, "code": "ABc", "note": "", "prices": ["1.50"]}
    assert found.read(json.dumps(good)) == Basket(3, "ABc", "", [decimal.Decimal("1.50")])
    for wrong in ({"count": 10}, {"code": "xAB"}, {"prices": []}, {"prices": ["free"]}, {"prices": [1.5]}):
        assert not obeys(found.constraint, json.dumps(good | wrong))
        with pytest.raises(ValueError, match=r"."):
            found.read(json.dumps(good | wrong))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Annotated[datetime.date, at.Ge(datetime.date(2020, 1, 1))], "date cannot be enforced"),
        (Annotated[bool, at.Ge(0)], "ge=0 on bool"),
        (Annotated[Point, at.MinLen(3)], "Point"),
        (Annotated[str, at.MinLen(3), bw.Regex("a*")], "regex="),
    ],
)
def test_a_limit_that_cannot_be_enforced_is_refused(kind: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        typed(kind)


def test_an_unsupported_type_is_named_with_the_way_to_it() -> None:
    item = dataclasses.make_dataclass("Item", [("price", complex)])
    order = dataclasses.make_dataclass("Order", [("items", dict[str, list[Optional[item]]])])  # noqa: UP045
    with pytest.raises(TypeError, match=re.escape("Order.items[][].price: values of type complex")):
        typed(list[order])
    with pytest.raises(TypeError, match=re.escape("Order.when: the limit ge=3 on date")):
        typed(dataclasses.make_dataclass("Order", [("when", Annotated[datetime.date, at.Ge(3)])]))


def test_an_alias_is_what_it_stands_for() -> None:
    extensions = pytest.importorskip("typing_extensions")
    assert typed(extensions.TypeAliasType("Age", int)).constraint == typed(int).constraint


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the statement is of Python 3.12")
def test_an_alias_may_contain_itself() -> None:
    names: dict[str, Any] = {}
    exec("type Nested = dict[str, Nested] | int", names)
    found = typed(names["Nested"])
    assert found.read('{"a": {"b": 1}}') == {"a": {"b": 1}}
    with pytest.raises(ValueError, match="none of"):
        found.read('{"a": "b"}')


def test_dates_of_a_pydantic_model_are_days_of_the_calendar() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", day=(datetime.date, ...), at=(list[datetime.datetime], ...))
    found = typed(model)
    good = {"day": "2024-02-29", "at": ["2024-02-29T10:00:00Z"]}
    assert obeys(found.constraint, json.dumps(good)) and found.read(json.dumps(good)).day == datetime.date(2024, 2, 29)
    assert not obeys(found.constraint, json.dumps(good | {"day": "2023-02-29"}))
    assert not obeys(found.constraint, json.dumps(good | {"at": ["2023-02-29T10:00:00Z"]}))


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("3", int, 3),
        (3, int, 3),
        ("2024-01-01", datetime.date, datetime.date(2024, 1, 1)),
        ([1], list[int], [1]),
        ('{"city": "Rome", "size": null}', Place, {"city": "Rome", "size": None}),
        ({"city": "Rome", "size": 1.0}, Place, {"city": "Rome", "size": 1.0}),
        ("text", str, "text"),
    ],
)
def test_a_value_is_converted_to_what_it_is_said_to_be(value: Any, kind: Any, expected: Any) -> None:
    assert converted(value, kind) == expected


def test_a_value_that_is_something_else_is_an_error() -> None:
    with pytest.raises(TypeError, match="the value is a list, not a int"):
        converted(["1", "2"], int)
    with pytest.raises(ValueError, match="invalid literal"):
        converted("three", int)
