"""JSON in pieces: what is shown is certain, only grows, and ends as what json.loads makes of the whole."""

from __future__ import annotations

import itertools
import json
import random
import sys
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from branchwork.lang.growing import GrowingJson

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def pieces_of(text: str, cuts: random.Random) -> list[str]:
    ends = sorted(cuts.randrange(len(text) + 1) for _ in range(cuts.randrange(8)))
    return [text[first:last] for first, last in zip([0, *ends], [*ends, len(text)])]


def grown(pieces: list[str]) -> tuple[GrowingJson, list[Any]]:
    growing, shown, seen = GrowingJson(), [], 0
    for piece in pieces:
        growing.feed(piece)
        if growing.changes != seen:
            seen = growing.changes
            shown.append(growing.value())
    return growing, shown


def grows(old: Any, new: Any) -> bool:
    """Whether `new` only adds to `old`, at its end or, where that is unfinished, inside it."""
    match old, new:
        case dict(), dict():
            shared = list(new)[: len(old)] == list(old)
            return (
                shared
                and all(same(old[k], new[k]) for k in list(old)[:-1])
                and all(grows(old[k], new[k]) for k in list(old)[-1:])
            )
        case list(), list():
            return (
                len(new) >= len(old)
                and same(old[:-1], new[: len(old) - 1 if old else 0])
                and all(grows(a, b) for a, b in zip(old[-1:], new[len(old) - 1 :]))
            )
        case str(), str():
            return new.startswith(old)
    return same(old, new)


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # so that NaN is itself, and 1 is not 1.0 nor True


@settings(max_examples=400, deadline=None)
@given(
    JSON,
    st.booleans(),
    st.sampled_from([None, 1, "\t"]),
    st.randoms(use_true_random=False),
)
@example(
    {"": ["\ud83d\ude00", "\ud83d", "\ud83d\ud83d\ude00", '"\\/\b\f\n\r\t'], "n": [1.5, True, None, [], {}]},
    True,
    1,
    random.Random(0),
)
def test_any_json_in_any_pieces_grows_into_itself(value: Any, ascii_only: bool, indent: Any, cuts: Any) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent) + "\n"
    for pieces in (pieces_of(text, cuts), list(text)):
        growing, shown = grown(pieces)
        assert growing.complete and not growing.broken
        assert same(shown[-1], json.loads(text))
        assert all(grows(old, new) for old, new in itertools.pairwise(shown))
        for seen in shown:
            json.dumps(seen)


@settings(max_examples=300, deadline=None)
@given(JSON, st.text('{}[]",:\\ue1-.x \n', max_size=3), st.randoms(use_true_random=False))
def test_a_text_is_broken_exactly_where_it_is_no_json(value: Any, dirt: str, cuts: Any) -> None:
    whole = json.dumps(value)
    at = cuts.randrange(len(whole) + 1)
    text = whole[:at] + dirt + whole[at:] + "\n"
    growing, shown = grown(pieces_of(text, cuts))
    try:
        read = json.loads(text)
    except ValueError:
        assert growing.broken or not growing.complete
    else:
        assert growing.complete and same(shown[-1], read)


def test_every_step_of_an_object_that_is_written() -> None:
    growing, shown = grown(list('{"a": "x\\u00e9", "b": [12, {"c": true}], "d": null}'))
    assert growing.complete
    assert shown == [
        {},
        {"a": ""},
        {"a": "x"},
        {"a": "xé"},
        {"a": "xé", "b": []},
        {"a": "xé", "b": [12]},
        {"a": "xé", "b": [12, {}]},
        {"a": "xé", "b": [12, {"c": True}]},
        {"a": "xé", "b": [12, {"c": True}], "d": None},
    ]


def test_half_a_character_is_not_shown() -> None:
    growing = GrowingJson()
    growing.feed('["a\\ud83d')
    assert growing.value() == ["a"]
    growing.feed("\\ude0")
    assert growing.value() == ["a"]
    growing.feed("0")
    assert growing.value() == ["a\U0001f600"]


def test_values_that_were_shown_stay_as_they_were() -> None:
    _, shown = grown(list('[{"a": [1, 2, "xy"]}, [[3]]] '))
    copies = [json.dumps(value) for value in grown(list('[{"a": [1, 2, "xy"]}, [[3]]] '))[1]]
    assert [json.dumps(value) for value in shown] == copies
    assert len(set(copies)) == len(copies)


def test_depth_costs_no_recursion() -> None:
    growing = GrowingJson()
    growing.feed("[" * 50_000)
    growing.feed("]" * 50_000)
    assert growing.complete


def test_work_grows_with_the_text_and_not_with_its_square() -> None:
    """Counted in calls of the parser's own functions."""

    def calls(items: int) -> int:
        count = 0

        def counted(frame: Any, event: str, _: Any) -> None:
            nonlocal count
            count += event == "call" and frame.f_code.co_filename.endswith("growing.py")

        growing = GrowingJson()
        sys.setprofile(counted)
        try:
            for piece in ["[", *['"ab', 'c\\u00e9", ', "12, "] * items, "1]"]:
                growing.feed(piece)
        finally:
            sys.setprofile(None)
        assert growing.complete and len(growing.value()) == 2 * items + 1
        return count

    assert calls(2_000) < 2.1 * calls(1_000)
