"""The stop matcher against plain searches over the whole text, for arbitrary tokenizations."""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.runtime.scheduler.patterns import REACH, PatternSearch, compile_pattern
from branchwork.runtime.scheduler.stops import Ending, StopMatcher, check_stops
from branchwork.runtime.wire import Stops

TOKENS = [b"", b"a", b"b", b"c", b"ab", b"ba", b"abc", b"\n", b"\n\n", b"ca", b"<", b"/a>", b"caab"]
EOS = len(TOKENS)
TABLE = [*TOKENS, b"<eos>"]


def naive(stops: Stops, tokens: list[int]) -> tuple[int, Ending] | None:
    """Number of tokens consumed and the ending, by trying every end and every string on the joined text."""
    for count in range(1, len(tokens) + 1):
        armed, token = count > stops.min_tokens, tokens[count - 1]
        before = b"".join(TABLE[t] for t in tokens[: count - 1])
        if armed and token in stops.ids:
            return count, Ending("eos", b"", len(before), count - 1)
        text = before + TABLE[token]
        ends = list(accumulate(len(TABLE[t]) for t in tokens[:count]))
        for end in range(len(before) + 1, len(text) + 1) if armed else ():
            for string in sorted(stops.strings, key=len, reverse=True):
                if text[:end].endswith(string):
                    start = end - len(string)
                    return count, Ending("stop", string, start, bisect_right(ends, start))
        if count >= stops.max_tokens:
            return count, Ending("length", b"", len(text), count)
    return None


stops_strategy = st.builds(
    Stops,
    max_tokens=st.integers(1, 30),
    min_tokens=st.integers(0, 6),
    strings=st.lists(st.text("abc\n<", min_size=1, max_size=5).map(str.encode), max_size=4).map(tuple),
    ids=st.sampled_from([(), (EOS,), (EOS, 7)]),
)


@settings(max_examples=400, deadline=None)
@given(stops_strategy, st.lists(st.integers(0, EOS), max_size=25))
def test_any_tokenization_ends_where_a_plain_search_ends_it(stops: Stops, tokens: list[int]) -> None:
    matcher, sent = StopMatcher(stops, TABLE), 0
    wanted = naive(stops, tokens)
    for count, token in enumerate(tokens, 1):
        ending = matcher.feed(token)
        if ending is not None:
            assert wanted == (count, ending)
            assert sent <= ending.kept or ending.reason != "stop", "a token that the stop cut off was sent before"
            return
        assert sent <= matcher.sendable <= count
        sent = matcher.sendable
    assert wanted is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abc\n"), max_size=40).map("".join), st.integers(0, 2**31))
def test_cutting_the_same_text_into_other_tokens_gives_the_same_answer(text: str, cuts: int) -> None:
    data = text.encode()
    stops = Stops(1000, strings=(b"abca", b"\n\n", b"bb"), regexes=(rb"c+a\n",))
    answers = set()
    for seed in (0, cuts):
        pieces, at = [], 0
        while at < len(data):
            size = 1 + ((seed >> (at % 31)) & 3)
            pieces.append(data[at : at + size])
            at += size
        matcher = StopMatcher(stops, pieces)
        ending = next((e for e in map(matcher.feed, range(len(pieces))) if e), None)
        answers.add(data if ending is None else data[: ending.length])
    assert len(answers) == 1


def test_a_token_that_may_begin_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(Stops(100, strings=(b"abc\n",)), TABLE)
    sendable = []
    for token in (1, 4, 3, 1):  # a | ab | c | a : "aabca"
        matcher.feed(token)
        sendable.append(matcher.sendable)
    assert sendable == [0, 1, 1, 3], "the last 'a' may begin the stop, 'abca' cannot"


PATTERNS = [
    rb"a+b",
    rb"\n\n+",
    rb"(ab|ba)*c",
    rb"[^a]c",
    rb"(?i)A.C",
    rb"a{2,3}b?c",
    rb"^b",
    rb"(?m)^ab",
    rb"\w\s",
    rb"x|ca",
]


def first_match(pattern: bytes, data: bytes) -> tuple[int, int] | None:
    """(end, start) of the match that ends first, the earliest start at that end, by trying all."""
    for end in range(1, len(data) + 1):
        for start in range(end):
            if re.compile(pattern).fullmatch(data, start, end) and (start == 0 or not pattern.startswith(b"^")):
                return end, start
    return None


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PATTERNS), st.lists(st.sampled_from("abc\nC"), max_size=14).map("".join))
def test_patterns_find_what_re_finds(pattern: bytes, text: str) -> None:
    data, search = text.encode(), PatternSearch(compile_pattern(pattern))
    wanted = first_match(pattern, data)
    safe = 0
    for byte in data:
        start = search.feed(byte)
        if start >= 0:
            assert wanted == (search.position, start)
            assert safe <= start, "bytes declared safe became part of a match"
            return
        safe = search.safe
    assert wanted is None


def test_a_regex_cuts_the_answer_where_its_match_starts() -> None:
    pieces = [b"one ", b"two", b"\n", b"\n3", b"x"]
    matcher = StopMatcher(Stops(100, regexes=(rb"\s*\n\n\d",)), pieces)
    endings = [matcher.feed(n) for n in range(4)]
    assert endings[:3] == [None, None, None]
    assert endings[3] == Ending("stop", b"\n\n3", 7, 2)


@pytest.mark.parametrize(
    ("pattern", "word"),
    [(rb"(a", "missing"), (rb"a*", "empty text"), (rb"a$", "boundary"), (rb"(?=a)b", "lookaround")]
    + [(rb"(a)\1", "backreference"), (rb"((a{99}){99}){99}", "states"), (b"a" * 2000, "2000 bytes")],
)
def test_a_pattern_that_cannot_be_a_stop_is_refused_with_the_reason(pattern: bytes, word: str) -> None:
    assert word in check_stops(Stops(5, regexes=(pattern,)))


def test_a_backtracking_bomb_costs_linear_time() -> None:
    search = PatternSearch(compile_pattern(rb"(a|a|aa)+(a+)+b"))
    began = time.perf_counter()
    assert all(search.feed(byte) < 0 for byte in b"a" * 4000)
    assert time.perf_counter() - began < 2.0


def test_a_pattern_holds_back_no_more_than_its_reach() -> None:
    search = PatternSearch(compile_pattern(rb"(?s)<.*>"))
    for byte in b"<" + b"a" * 3 * REACH:
        search.feed(byte)
        assert search.position - search.safe <= REACH


@pytest.mark.parametrize("stops", [Stops(0), Stops(5, strings=(b"",)), Stops(5, strings=(b"x" * 20000,))])
def test_stops_that_make_no_sense_are_named(stops: Stops) -> None:
    assert check_stops(stops)


def test_what_belongs_to_the_prompt_ends_nothing() -> None:
    table = [bytes([b]) for b in range(256)] + [b"ab", b"bxb"]
    matcher = StopMatcher(Stops(10, strings=(b"b", b"xy"), regexes=(b"[bz]y",), skip=2), table)
    assert matcher.feed(256) is None  # "ab": prompt
    assert matcher.feed(ord("x")) is None
    ending = matcher.feed(ord("b"))
    assert ending is not None and (ending.matched, ending.length, ending.kept) == (b"b", 3, 2)
    across = StopMatcher(Stops(10, strings=(b"b",), skip=1), table)
    ending = across.feed(257)  # its first b is prompt, its second is not
    assert ending is not None and (ending.length, ending.kept) == (2, 0)
