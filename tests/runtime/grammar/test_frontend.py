"""Constraints as patterns: the text for other engines, sizes, and free text that must have an end."""

from __future__ import annotations

import re
import time

import pytest

from branchwork.lang.constraint import (
    Capture,
    Choice,
    Constraint,
    Free,
    Grammar,
    Invalid,
    JsonSchema,
    Literal,
    Maybe,
    Regex,
    Repeat,
    Sequence,
    TooBig,
    Unsupported,
)
from branchwork.lang.regex import parse
from branchwork.runtime.grammar import dfa
from branchwork.runtime.grammar.frontend import free_regex, regex_text, regular, rust, table


def pattern(constraint: Constraint) -> str:
    found = regular(constraint)
    assert found is not None and found.rust
    return found.pattern


def test_patterns_are_plain_rust_without_flags_or_slashes() -> None:
    assert pattern(Regex(r"a/b\.c\d+")) == r"a\x{2F}b\.c[0-9]+"
    assert pattern(Regex(r"(?i)ab?")) == r"[Aa][Bb]?"
    assert pattern(Regex(r"[^\n]{2,}?x{3}")) == r"[^\x{A}]{2,}x{3}"
    assert pattern(Regex("é[à-ü]", True)) == r"é[\x{E0}-\x{FC}]"
    assert pattern(Regex("(a|bc)*d|")) == "(?:a|bc)*d|"
    assert regex_text(Regex("^a/$")) == r"a\x{2F}"


def test_the_text_for_other_engines_compiles_to_the_same_automaton() -> None:
    for source in (
        r"[\]\-\\^]+",
        r"[/'\"`~#&-]{1,3}",
        r"\{\}\[\]\(\)\|\*\+\?\.\^\$",
        "\t\r\n\x00\x7f\x85\u2028",
        r"[\s&&~~|-]",
    ):
        text = regex_text(Regex(source))
        assert "/" not in text and "\n" not in text
        assert (dfa.build(text).transitions == dfa.build(pattern(Regex(source))).transitions).all()


def test_small_look_ahead_is_written_out_for_others() -> None:
    text = regex_text(Regex("(?!ab)[a-c]{1,3}"))
    table = dfa.build(text)
    assert [t for t in ("a", "ac", "ba", "ab", "abc", "cccc") if table.accepts(t.encode())] == ["a", "ac", "ba"]


def test_only_automata_have_large_look_ahead() -> None:
    found = regular(Regex("(?!a)b"))
    assert found is not None and not found.rust and found.pattern.startswith(dfa.TREE)
    with pytest.raises(Unsupported, match="look-ahead at position 0"):
        regex_text(Regex("(?!(a|b)*a(a|b){12})[ab]*"))
    with pytest.raises(TooBig, match=r"may have 3,000 .* this has 4,002"):
        regular(Regex("(?!a)b{4000}"))


@pytest.mark.parametrize("leaf", [JsonSchema("{}"), Grammar("start: /a/")])
def test_what_is_not_regular_is_left_to_others(leaf: Constraint) -> None:
    for constraint in (leaf, Capture("x", leaf), Sequence((Literal("a"), Maybe(leaf))), Repeat(leaf, 1, 2, ",")):
        assert regular(constraint) is None


def test_size_counts_characters_times_repeats() -> None:
    for source, size in [
        ("abc", 3),
        ("[a-z]{0,5000}", 5000),
        ("(ab{3}|c){4}", 20),
        ("(a*)+", 2),
        ("((a{0,100}){0,100}){0,100}", 10**6),
    ]:
        found = regular(Regex(source), 10**9)
        assert found is not None and found.size == size


def test_plain_lists_need_no_compiler() -> None:
    found = regular(Sequence((Literal("x"), Choice(("a", "b")), Maybe(Literal("!")))))
    assert found is not None and found.fsm is not None
    assert [text for text in ("xa", "xb!", "x", "xa!!") if found.fsm.accepts(text.encode())] == ["xa", "xb!"]


def test_exponential_shapes_are_given_up_soon() -> None:
    began = time.process_time()
    found = regular(Regex("(a|b)*a(a|b){16}"))
    assert found is not None and found.fsm is None
    assert time.process_time() - began < 2


@pytest.mark.parametrize("source", [r'"(?:[^"\\\x00-\x1F]|\\["\\/bfnrt]|\\u[0-9A-F]{4}){0,80}"', r"[1-9][0-9]{0,17}"])
def test_counted_characters_that_overlap_take_no_time(source: str) -> None:
    began = time.process_time()
    found = table(rust(parse(source)), states=50_000)
    assert time.process_time() - began < 2
    exact = re.compile(source)
    for text in ('""', '"a\\u00AF"', '"\\"', '"' + "é" * 80 + '"', '"' + "a" * 81 + '"', "1" * 18, "1" * 19, "0"):
        assert found.accepts(text.encode()) == (exact.fullmatch(text) is not None), text


def test_impossible_and_broken_constraints_are_invalid() -> None:
    with pytest.raises(Invalid, match="at least one option"):
        regular(Choice(()))
    with pytest.raises(Invalid, match="lone surrogate"):
        regular(Literal("a\ud800"))
    with pytest.raises(Invalid, match="least 3 and most 2"):
        regular(Repeat(Literal("a"), 3, 2))
    with pytest.raises(Invalid, match="empty stop"):
        regular(Free(("",)))
    with pytest.raises(Invalid, match="no text at all"):
        regular(Regex("a[^\\s\\S]"))


def test_free_text_as_a_pattern() -> None:
    assert free_regex(Free()) == r"[\x{0}-\x{10FFFF}]*"
    assert free_regex(Free(("\n", '"'), 20)) == r'[^\x{A}"]{0,20}'
    with pytest.raises(Unsupported, match="max_chars"):
        free_regex(Free(("</a>",), 20))
    for free, yes, no in [
        (Free(("</a>",)), ["", "<", "</a", "</</a<"], ["</a>", "x</a>"]),
        (Free(("ab", "b c")), ["a", "cb"], ["aab"]),
    ]:
        table = dfa.build(free_regex(free))
        assert all(table.accepts(text.encode()) for text in yes) and not any(
            table.accepts(text.encode()) for text in no
        )


ENDED = [
    (Free(("\n",)),),
    (Free(("\n",)), Literal("\n")),
    (Free((",",)), Choice((", and", ",or"))),
    (Free(("</a>",)), Literal("</a>b")),
    (Free(("\n", ".")), Regex(r"[.\n]x*")),
    (Free((";",)), Maybe(Literal("; x")), Literal(";")),
    (Free((";",)), Repeat(Literal(";a"), 0, 3), Regex(";+")),
    (Repeat(Free((",", ".")), 1, 3, ","), Literal(".")),
    (Capture("a", Free((",",))), Capture("b", Literal(",")), Free()),
    (Free((",",)), Maybe(Literal(","))),
]
UNENDED = [
    (Free(("\n",)), Literal("x")),
    (Free(), Literal("x")),
    (Free((",",)), Choice((", and", "or"))),
    (Free(("</a>",)), Literal("</b>")),
    (Free(("\n",)), Regex(r"[.\n]x*")),
    (Free((";",)), Maybe(Literal("; x")), Literal(".")),
    (Free((",",)), Free((".",))),
    (Free(("{",)), JsonSchema("{}")),
    (Repeat(Free((".",)), 1, 3, ","), Literal(".")),
    (Free(("\n",)), Regex(r".*")),
]


@pytest.mark.parametrize("parts", ENDED)
def test_free_text_may_stand_before_what_begins_with_its_stop(parts: tuple[Constraint, ...]) -> None:
    assert regular(Sequence(parts)) is not None


@pytest.mark.parametrize("parts", UNENDED)
def test_free_text_without_a_certain_end_is_invalid(parts: tuple[Constraint, ...]) -> None:
    with pytest.raises(Invalid, match="no certain end"):
        regular(Sequence(parts))
