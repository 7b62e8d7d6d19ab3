"""Captures: their extents are those of `re`'s named groups, and they close as soon as nothing can change them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.lang.constraint import (
    Capture,
    Choice,
    Constraint,
    Free,
    JsonSchema,
    Literal,
    Maybe,
    Regex,
    Repeat,
    Sequence,
    Tag,
    Tagged,
)
from branchwork.runtime.grammar.captures import MAX_THREADS, Program, Tracker
from branchwork.runtime.grammar.leaves import Json, Machine, Rows, Words


def run_of(allowed: str, least: int, most: int) -> Rows:
    """[allowed]{least,most} (most 0: no limit) as a byte DFA, made by hand."""
    last = most or max(least, 1)
    transitions = np.full((last + 1, 256), -1, np.int32)
    for state in range(last + 1):
        after = state + 1 if state < last else (-1 if most else state)
        transitions[state, list(allowed.encode())] = after
    return Rows(transitions, np.array([state >= least for state in range(last + 1)]))


RUN = re.compile(r"\[(\w+)\]\{(\d+),(\d*)\}")


def leaf(constraint: Constraint) -> Machine:
    if isinstance(constraint, JsonSchema):
        return Json()
    if isinstance(constraint, Choice):
        return Words([option.encode() for option in constraint.options])
    assert isinstance(constraint, Regex)
    found = RUN.fullmatch(constraint.pattern)
    assert found is not None, constraint
    return run_of(found[1], int(found[2]), int(found[3] or 0))


def follow(constraint: Constraint, text: str) -> Tracker:
    tracker = Tracker(Program(constraint, leaf))
    tracker.feed(text.encode())
    assert tracker.error == ""
    return tracker


def texts(constraint: Constraint, text: str) -> list[tuple[str, str]]:
    """Captures of a finished text, by name, in the order of their ends."""
    data = text.encode()
    return [(name, data[first:last].decode()) for name, first, last in as_tuples(follow(constraint, text).finish())]


def as_tuples(found: list) -> list[tuple[str, int, int]]:
    return [(closed.name, closed.first, closed.last) for closed in found]


WORD, DIGITS = Regex("[abcxyz]{1,}"), Regex("[0123456789]{1,}")
TURN = Sequence((Literal("Name: "), Capture("name", WORD), Literal(", age "), Capture("age", DIGITS), Literal(".")))


def test_a_turn_has_its_captures_by_name() -> None:
    assert texts(TURN, "Name: abba, age 42.") == [("name", "abba"), ("age", "42")]


def test_a_capture_closes_with_the_first_byte_that_cannot_be_in_it() -> None:
    tracker = follow(TURN, "Name: ab")
    assert tracker.closed() == []
    tracker.feed(b",")
    assert as_tuples(tracker.closed()) == [("name", 6, 8)]
    assert tracker.closed() == [], "each capture is told once"


def test_a_capture_that_cannot_go_on_closes_with_its_last_byte() -> None:
    bounded = Sequence((Capture("year", Regex("[0123456789]{4,4}")), Literal("-"), Capture("rest", WORD)))
    tracker = follow(bounded, "1984")
    assert as_tuples(tracker.closed()) == [("year", 0, 4)]


def test_a_capture_stays_open_while_readings_differ() -> None:
    # "ab" may be all of x, or x may end before the "b" of the literal.
    two = Sequence((Capture("x", WORD), Literal("b"), Capture("y", DIGITS)))
    tracker = follow(two, "ab")
    assert tracker.closed() == []
    tracker.feed(b"7")
    assert as_tuples(tracker.closed()) == [("x", 0, 1)]
    assert as_tuples(tracker.finish()) == [("x", 0, 1), ("y", 2, 3)]


def test_a_part_takes_as_much_as_the_rest_lets_it() -> None:
    greedy = Sequence((Capture("x", WORD), Capture("y", WORD)))
    assert texts(greedy, "abc") == [("x", "ab"), ("y", "c")]


def test_an_optional_part_left_out_has_no_capture() -> None:
    optional = Sequence((Capture("x", WORD), Maybe(Sequence((Literal(" "), Capture("y", DIGITS)))), Literal(".")))
    assert texts(optional, "ab.") == [("x", "ab")]
    assert texts(optional, "ab 1.") == [("x", "ab"), ("y", "1")]


def test_a_capture_in_a_repeat_comes_once_a_round() -> None:
    tracker = follow(Sequence((Repeat(Capture("item", WORD), 1, 0, ", "), Literal("."))), "ab, c, ")
    assert as_tuples(tracker.closed()) == [("item", 0, 2), ("item", 4, 5)]
    tracker.feed(b"xyz.")
    assert as_tuples(tracker.closed()) == [("item", 7, 10)]
    assert len(tracker.finish()) == 3


@pytest.mark.parametrize(("least", "most", "count"), [(2, 2, 2), (0, 3, 3), (3, 0, 4)])
def test_rounds_are_counted(least: int, most: int, count: int) -> None:
    pairs = Sequence((Repeat(Capture("a", Regex("[a]{1,2}")), least, most), Capture("rest", Regex("[ab]{0,}"))))
    found = texts(pairs, "aaaaaaa" + "b")
    assert [text for name, text in found if name == "a"] == (["aa"] * 3 + ["a"])[:count]


def test_an_empty_part_may_be_repeated_without_end() -> None:
    nothing = Sequence((Repeat(Capture("e", Regex("[a]{0,1}")), 3, 1_000_000), Literal("!")))
    assert [text for _, text in texts(nothing, "aa!")][:2] == ["a", "a"]


def test_nested_captures_close_from_the_inside() -> None:
    nested = Capture("all", Sequence((Literal("<"), Capture("in", WORD), Literal(">"))))
    assert texts(Sequence((nested, Literal("."))), "<ab>.") == [("in", "ab"), ("all", "<ab>")]


def test_free_text_ends_at_its_stop_and_nowhere_else() -> None:
    line = Sequence((Capture("thought", Free(("\n\n", "END"))), Literal("\n\n"), Capture("x", WORD)))
    assert texts(line, "a\nENb \n\nab") == [("thought", "a\nENb "), ("x", "ab")]
    assert texts(line, "müßig\n\nab")[0] == ("thought", "müßig")


def test_free_text_counts_characters_not_bytes() -> None:
    short = Sequence((Capture("x", Free((), 3)), Capture("y", Free())))
    assert texts(short, "üöäß") == [("x", "üöä"), ("y", "ß")]


JSON_TEXTS = ['{"a":[1,{"b":"}]\\""}]}', "[]", '"x\\\\"', "-12.5e+3", "0", "true", "null", '{"a": [ 1 , 2 ] }']


@pytest.mark.parametrize("value", JSON_TEXTS)
def test_a_json_value_ends_where_it_ends(value: str) -> None:
    around = Sequence((Literal("v="), Capture("v", JsonSchema("{}")), Literal(";"), Capture("x", WORD)))
    assert texts(around, f"v={value};ab") == [("v", value), ("x", "ab")]


def test_json_that_ends_by_itself_closes_at_once_and_a_number_does_not() -> None:
    value = Sequence((Capture("v", JsonSchema("{}")), Literal("1"), Literal(";")))
    assert as_tuples(follow(value, "[1]").closed()) == [("v", 0, 3)]
    assert follow(value, "21").closed() == []
    assert texts(value, "211;") == [("v", "21")]


def test_what_stands_in_a_tag_is_captured_and_what_stands_outside_or_exempt_is_not() -> None:
    call = Tag("<call>", Capture("name", WORD), "</call>")
    tagged = Tagged((call,), exempt=(("<think>", "</think>"),))
    text = "x <call>abc</call> <think><call>zz</call></think> < <call>xyz</call> y"
    assert texts(tagged, text) == [("name", "abc"), ("name", "xyz")]


def test_a_text_cut_off_ends_its_open_captures() -> None:
    assert texts(TURN, "Name: ab, age 4") == [("name", "ab"), ("age", "4")]
    assert texts(TURN, "Name: ab") == [("name", "ab")]
    assert texts(TURN, "Nam") == []


def test_a_copy_goes_its_own_way() -> None:
    tracker = follow(TURN, "Name: ab")
    other = tracker.copy()
    other.feed(b"c, age 1.")
    tracker.feed(b", age 2.")
    assert [last for _, _, last in as_tuples(tracker.finish())] == [8, 15]
    assert [last for _, _, last in as_tuples(other.finish())] == [9, 16]


def test_text_that_fits_nothing_is_an_error_and_not_a_wrong_capture() -> None:
    tracker = Tracker(Program(TURN, leaf))
    tracker.feed(b"Name: ab; ")
    assert "byte 8" in tracker.error
    assert tracker.closed() == []


def test_too_many_readings_are_an_error_with_the_figure() -> None:
    inner = Repeat(Capture("a", Regex("[a]{1,}")), 0, 100)
    tracker = Tracker(Program(Sequence((Repeat(inner, 0, 100), Literal("b"))), leaf))
    tracker.feed(b"a" * 200)
    assert f"at most {MAX_THREADS}" in tracker.error


def test_threads_do_not_grow_with_the_text() -> None:
    tracker = follow(Sequence((Capture("x", Free((";",))), Literal(";"), Capture("y", Free()))), "a" * 1000)
    assert len(tracker._threads) == 1  # in x
    assert len(tracker._leaving(-1)) == 2  # and where the literal would begin


# --- against re

CLASSES = ["a", "ab", "abc", "b", "bc", "c"]
leaves = st.builds(
    lambda allowed, least, more: Regex(f"[{allowed}]{{{least},{least + more if more else ''}}}"),
    st.sampled_from(CLASSES),
    st.integers(1, 2),
    st.integers(0, 2),
)
parts = st.recursive(
    st.one_of(leaves, st.sampled_from(["a", "b", "cb"]).map(Literal)),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda some: Sequence(tuple(some))),
        inner.map(Maybe),
        st.builds(Repeat, inner, st.integers(0, 2), st.just(3), st.sampled_from(["", ";"])),
        inner.map(lambda part: Capture("", part)),
    ),
    max_leaves=6,
)


def named(constraint: Constraint, count: list[int]) -> Constraint:
    """Every capture by a name of its own."""
    match constraint:
        case Capture(part=part):
            count[0] += 1
            return Capture(f"g{count[0]}", named(part, count))
        case Sequence(some):
            return Sequence(tuple(named(part, count) for part in some))
        case Maybe(part):
            return Maybe(named(part, count))
        case Repeat(part, least, most, separator):
            return Repeat(named(part, count), least, most, separator)
    return constraint


def pattern(constraint: Constraint, again: bool = False) -> str:
    """The same for `re`. again: a copy of what stands elsewhere already, so that groups have no name."""
    match constraint:
        case Regex(text):
            return text
        case Literal(text):
            return re.escape(text)
        case Sequence(some):
            return "".join(pattern(part, again) for part in some)
        case Capture(name, part):
            return f"(?:{pattern(part, again)})" if again else f"(?P<{name}>{pattern(part)})"
        case Maybe(part):
            return f"(?:{pattern(part, again)})?"
        case Repeat(part, least, most, separator):
            # The last round has the names: `re` tells a group's last text only.
            body, rounds = pattern(part, True), range(most, max(least, 1) - 1, -1)
            ways = [
                separator.join([body] * (number - 1) + [pattern(part, again or number != most)]) for number in rounds
            ]
            return f"(?:{'|'.join(ways + ([''] if least == 0 else []))})"
    raise AssertionError(constraint)


@given(parts, st.text("abc;", max_size=8))
@settings(max_examples=300, deadline=None)
def test_extents_are_those_of_named_groups(constraint: Constraint, text: str) -> None:
    constraint = named(Capture("", Sequence((constraint,))), [0])
    expected = re.fullmatch(pattern(constraint), text)
    tracker = Tracker(Program(constraint, leaf))
    tracker.feed(text.encode())
    ends = [thread for thread in tracker._leaving(-1) if thread.op == 0]
    assert (expected is not None) == (bool(ends) and not tracker.error)
    if expected is None:
        return
    found: dict[str, tuple[int, int]] = {}
    for name, first, last in as_tuples(tracker.finish()):
        found[name] = (first, last)
    assert found.get("g1") == (0, len(text))
    for name, extent in ((name, expected.span(name)) for name in expected.groupdict()):
        if extent != (-1, -1):
            assert found[name] == extent


@given(parts, st.text("abc;", max_size=8))
@settings(max_examples=100, deadline=None)
def test_what_closed_early_is_what_the_end_says(constraint: Constraint, text: str) -> None:
    tracker = Tracker(Program(named(Sequence((constraint,)), [0]), leaf))
    early = []
    for byte in text.encode():
        tracker.feed(bytes((byte,)))
        if tracker.error:
            return
        early += tracker.closed()
    final = tracker.finish()
    if any(thread.op == 0 for thread in tracker._threads):
        assert early == final[: len(early)]
