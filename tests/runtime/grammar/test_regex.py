"""The front of the regex front end: flags, sets, anchors, as `re` means them."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwork.lang.constraint import Invalid, Unsupported
from branchwork.lang.regex import (
    ANYTHING,
    EMPTY,
    VALID,
    Chars,
    Concat,
    Look,
    Many,
    Scope,
    Text,
    complement,
    disjoint,
    parse,
    singles,
    union,
)

SETS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)).map(lambda pair: (pair[0], sum(pair))), max_size=8)
EVERY = [
    chr(code) for code in [*range(0x3000), *range(0xD000, 0xD800), *range(0xE000, 0x12000), *range(0x1D400, 0x1D800)]
]


def characters(pattern: str, unicode: bool) -> set[str]:
    tree = parse(pattern, unicode)
    ranges = tree.ranges if isinstance(tree, Chars) else singles(tree.text) if isinstance(tree, Text) else ()
    codes = {code for first, last in ranges for code in range(first, last + 1)}
    return {char for char in EVERY if ord(char) in codes}


@pytest.mark.parametrize("unicode", [False, True])
@pytest.mark.parametrize(
    "pattern",
    [r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", ".", r"[^\n]", "(?s:.)", "(?i:k)", "(?i:ß)", "(?i:[^k-m])", "(?i:ſ)"]
    + [
        "(?i:[Z-a])",
        r"(?a:\w)",
        "(?i:İ)",
        r"(?i:\u01c5)",
        r"[\w-]",
        r"[^\W_]",
        r"[\s\d]",
        r"(?i:[α-ω])",
        r"[\x00-\x1f]",
        r"(?ai:k)",
        r"(?i:µ)",
    ],
)
def test_a_set_has_the_characters_that_re_gives_it(pattern: str, unicode: bool) -> None:
    compiled = re.compile(pattern, 0 if unicode else re.ASCII)
    assert characters(pattern, unicode) == {char for char in EVERY if compiled.fullmatch(char)}


@given(SETS, SETS)
def test_sets_are_algebra_over_characters(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    def members(ranges: list[tuple[int, int]]) -> set[int]:
        return {code for first, last in ranges for code in range(first, last + 1)}

    a, b = union(left), union(right)
    assert members([*a]) == members(left) and all(x[1] + 1 < y[0] for x, y in pairwise(a))
    assert members([*union(a, b)]) == members(left) | members(right)
    assert disjoint(a, b) == (not members(left) & members(right))
    assert complement(complement(a)) == a
    assert union(a, complement(a)) == VALID


def test_surrogates_are_in_no_set() -> None:
    assert complement(()) == VALID
    assert union([(0xD000, 0xE100)]) == ((0xD000, 0xD7FF), (0xE000, 0xE100))


def test_outer_anchors_say_nothing_and_a_look_ahead_says_all_that_follows() -> None:
    assert parse(r"^ab$") == parse(r"\Aab\Z") == parse("ab") == Text("ab")
    assert parse(r"a(?=b)") == Scope(Concat((Text("a"), Look(Concat((Text("b"), ANYTHING)), False))))
    assert parse(r"(?!b\Z)a") == Scope(Concat((Look(Text("b"), True), Text("a"))))
    assert parse(r"(?!b$)a") == Scope(Concat((Look(Concat((Text("b"), Many(Text("\n"), 0, 1))), True), Text("a"))))
    assert parse("") == EMPTY


@pytest.mark.parametrize("pattern", [r"a^", r"$a", r"a\Zb", r"(a^)", r"(?:a$)+b", r"(^a)+", r"(?=a$b)", r"(?=(a$)?)x"])
def test_anchors_that_could_matter_are_refused(pattern: str) -> None:
    with pytest.raises(Unsupported, match="anchor inside the pattern"):
        parse(pattern)


def test_errors_have_positions_beyond_escapes_and_classes() -> None:
    for pattern, position in [(r"\\[(?<=]\(?<=(?<=a)", 13), (r"[\b]\\b\b", 7), (r"(?#(?<=x)a(?<!b)", 10)]:
        with pytest.raises(Unsupported) as caught:
            parse(pattern)
        assert caught.value.position == position


def test_an_invalid_pattern_says_what_and_where() -> None:
    with pytest.raises(Invalid, match=r"unterminated character set at position 2 in 'ab\[z'"):
        parse("ab[z")
    with pytest.raises(Invalid, match=r"nested too deeply|recursion"):
        parse("(" * 3000 + ")" * 3000)
    with pytest.raises(Invalid):
        parse("a{99999999999999999999}")


def test_it_needs_nothing_of_the_runtime() -> None:
    code = "import sys, branchwork.lang.regex; print([m for m in sys.modules if m in ('numpy', 'branchwork.runtime')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
