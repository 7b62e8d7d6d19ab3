"""Set algebra on patterns agrees with `re` on every short text, and is bounded."""

from __future__ import annotations

import itertools
import re
import time

import pytest

from branchwork.lang.constraint import Invalid
from branchwork.lang.regex import NOTHING, looks, parse
from branchwork.runtime.grammar.algebra import disjoint, plain, remaining
from branchwork.runtime.grammar.frontend import rust, simplify

SHORT = ["".join(text) for size in range(6) for text in itertools.product("ab-é", repeat=size)]


def ours(tree) -> re.Pattern[str]:
    """A tree without look-ahead, as Python reads the Rust spelling of it."""
    spelled = re.sub(r"\\x\{([0-9A-F]+)\}", lambda found: f"\\U{int(found[1], 16):08x}", rust(simplify(tree)))
    return re.compile(spelled)


def ecma(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace("$", r"\Z"), re.ASCII)


CASES = [
    (("^a",), ()),
    (("a$", "^b"), ()),
    (("^[ab]*$",), ("aa",)),
    ((), ("^a-",)),
    ((), ("^(ab|ba)$", "é")),
    (("^a|b$",), ("--",)),
    (("a.b",), ("^a", "b$")),
    ((r"^\w+$",), ("^ab?$",)),
    ((r"^(?!aa)[ab]{2,4}$",), ()),
    (("(?i)A-B",), ("É",)),
    (("^(?:[ab]-)+$", "^.{2,4}$"), ("b-",)),
]


@pytest.mark.parametrize("patterns, nots", CASES)
def test_what_patterns_leave_is_what_re_finds(patterns, nots):
    tree = remaining(patterns, nots)
    assert tree is not None and not looks(tree)
    mine, must, never = ours(tree), [ecma(one) for one in patterns], [ecma(one) for one in nots]
    taken = {text for text in SHORT if mine.fullmatch(text)}
    assert taken == {t for t in SHORT if all(one.search(t) for one in must) and not any(one.search(t) for one in never)}


def test_lengths_are_of_characters():
    tree = remaining(("a",), (), 2, 3)
    assert tree is not None
    assert {t for t in SHORT if ours(tree).fullmatch(t)} == {t for t in SHORT if "a" in t and 2 <= len(t) <= 3}


@pytest.mark.parametrize(
    "left, right, apart",
    [
        ("^x-", "^y-", True),
        ("^x-", "-z$", False),
        ("^[0-9]+$", "^[a-z]+$", True),
        ("^[0-9]+$", "[a-z]", True),
        ("a", "b", False),
        ("^(a|b)$", "^(b|c)$", False),
        ("^é", "^è", True),
    ],
)
def test_disjoint(left, right, apart):
    assert disjoint(left, right) is apart


def test_patterns_that_contradict_each_other_leave_nothing():
    assert remaining(("^a$",), ("a",)) == NOTHING


@pytest.mark.parametrize("pattern", [r"(?!ab)[ab]{1,4}", r"(?=.*-)[ab-]*", r"(a(?!b)|b)*", "(?!a$)a*"])
def test_look_ahead_can_be_written_without(pattern):
    tree = plain(parse(pattern))
    assert tree is not None and not looks(tree)
    exact = re.compile(pattern)
    assert [t for t in SHORT if ours(tree).fullmatch(t)] == [t for t in SHORT if exact.fullmatch(t)]


@pytest.mark.parametrize(
    "patterns, nots",
    [
        (("(a|b)*a(a|b){12}c",), ()),
        (("^[a-z]{0,5000}$",), ()),
        (("^[ab]{0,200}$",), ("a[ab]{60}b", "b[ab]{60}a")),
        ((r"^(?=.*[0-9])(?=.*[a-z])(?=.*[A-Z]).{8,64}$",), ()),
        (("^((a{0,100}){0,100}){0,100}$",), ()),
    ],
)
def test_too_much_work_is_none_and_soon(patterns, nots):
    began = time.process_time()
    assert remaining(patterns, nots) is None
    assert time.process_time() - began < 3


def test_what_no_automaton_has_is_none_and_no_pattern_is_invalid():
    assert remaining((r"(a)\1",)) is None
    assert disjoint("(?<=a)b", "c") is None
    with pytest.raises(Invalid):
        remaining(("[z",))
