"""compile(): the right engine for each constraint, cached, captures told; two engines agree on every mask."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.lang.constraint import (
    Capture,
    Choice,
    Constraint,
    ConstraintError,
    Free,
    Grammar,
    JsonSchema,
    Literal,
    Maybe,
    Regex,
    Repeat,
    Sequence,
    Tag,
    Tagged,
    Unsupported,
)
from branchwork.runtime.grammar.compile import Options, compile
from branchwork.runtime.grammar.leaves import byte_vocabulary
from branchwork.runtime.grammar.matcher import Matcher
from branchwork.runtime.grammar.pool import Compiler
from branchwork.runtime.grammar.store import SUFFIX
from branchwork.runtime.grammar.vocabulary import Vocabulary, unpack

compact = partial(JsonSchema, whitespace="compact")

NOWHERE = Options(folder="")


def vocabulary() -> Vocabulary:
    """All bytes, some longer tokens, a special token that spells itself as text, two ends."""
    merged = [b"ab", b"abc", b'{"', b'":', b", age ", b"Name", b"12", b"the ", b'"}', b"}}", "ß".encode(), b"aaaa"]
    tokens = [bytes((byte,)) for byte in range(256)] + merged + [b"", b"", b""]
    longest = sorted(range(256, 256 + len(merged)), key=lambda token: -len(tokens[token]))

    def encode(data: bytes) -> list[int]:
        found = []
        while data:
            token = next((token for token in longest if data.startswith(tokens[token])), data[0])
            found.append(token)
            data = data[len(tokens[token]) :]
        return found

    return Vocabulary.of(tokens, (len(tokens) - 1, len(tokens) - 2), encode)


VOCABULARY = vocabulary()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield


def write(matcher: Matcher, text: str) -> None:
    ids = VOCABULARY.encode(text.encode())
    assert matcher.accept(ids) == len(ids), f"{text!r} is refused"


def captured(constraint: Constraint, text: str, options: Options = NOWHERE) -> list[tuple[str, str]]:
    matcher = compile(constraint, VOCABULARY, options).start()
    write(matcher, text)
    data = text.encode()
    return [(closed.name, data[closed.first : closed.last].decode()) for closed in matcher.finish()]


RECURSIVE = '{"type":"object","properties":{"x":{"$ref":"#"},"n":{"type":"integer"}},"additionalProperties":false}'
TURN = Sequence(
    (Literal("Name: "), Capture("name", Regex("[A-Z][a-z]+")), Literal(", age "), Capture("age", Regex("[0-9]+")))
)


@pytest.mark.parametrize(
    ("constraint", "backend"),
    [
        (Regex("[a-z]+"), "dfa"),
        (Choice(("cat", "category")), "dfa"),
        (TURN, "dfa"),
        (Repeat(Regex("[a-z]"), 1, 3, ", "), "dfa"),
        (Regex("[a-z]{0,5000}"), "llguidance"),
        (compact(RECURSIVE), "llguidance"),
        (Grammar('start: "(" start ")" | "x"'), "llguidance"),
        (Sequence((Literal("v="), Capture("v", compact(RECURSIVE)))), "llguidance"),
        (Tagged((Tag("<a>", Regex("[0-9]+"), "</a>"),)), "llguidance"),
    ],
)
def test_each_constraint_gets_the_engine_that_suits_it(constraint: Constraint, backend: str) -> None:
    report = compile(constraint, VOCABULARY, NOWHERE).report
    assert report.backend == backend
    assert report.seconds > 0
    assert (report.states > 0) == (backend == "dfa")


def test_the_same_constraint_is_the_same_grammar() -> None:
    assert compile(Regex("[a-z]+"), VOCABULARY, NOWHERE) is compile(Regex("[a-z]+"), VOCABULARY, NOWHERE)
    assert compile(Regex("[a-z]+"), VOCABULARY, NOWHERE) is not compile(Regex("[a-z]+"), byte_vocabulary(), NOWHERE)


@pytest.mark.parametrize("constraint", [TURN, compact(RECURSIVE)], ids=["dfa", "llguidance"])
def test_a_new_process_finds_it_on_disk(constraint: Constraint, tmp_path: Path) -> None:
    limits = Options(folder=str(tmp_path))
    first, second = Compiler(VOCABULARY, limits), Compiler(byte_vocabulary(), limits)
    try:
        made = first.wait(constraint)
        files = list(tmp_path.glob("*" + SUFFIX))
        assert len(files) == 1 and made.report.seconds > 0
        found = second.wait(constraint)  # of another vocabulary: what is stored needs none
        assert found.report.seconds == 0.0
        assert found.report.backend == made.report.backend
        assert not second._pool._idle, "no worker was needed"
        assert len(list(tmp_path.glob("*" + SUFFIX))) == 1
    finally:
        first.close()
        second.close()


def test_a_damaged_file_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = Options(folder=str(tmp_path))
    for damage in (b"", b"foreign", None):
        compiler = Compiler(VOCABULARY, limits)
        with caplog.at_level(logging.WARNING):
            grammar = compiler.wait(Regex("[a-z]+"))
        compiler.close()
        assert grammar.start().accept([ord("a")]) == 1
        [file] = tmp_path.glob("*" + SUFFIX)
        if damage is not None:
            file.write_bytes(damage)
        assert ("damaged" in caplog.text) == (damage != b""), damage


def test_what_only_a_busy_machine_decided_is_not_stored(tmp_path: Path) -> None:
    compiler = Compiler(VOCABULARY, Options(folder=str(tmp_path), dfa_seconds=0.2))
    grammar = compiler.wait(Regex("(a|b)*a(a|b){240}"))
    compiler.close()
    assert grammar.report.backend == "llguidance"
    assert list(tmp_path.glob("*" + SUFFIX)) == []


def test_importing_it_needs_no_torch() -> None:
    code = "import sys, branchwork.runtime.grammar.compile; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


# --- captures


def test_captures_of_a_dfa_and_of_llguidance_are_the_same() -> None:
    text = "Name: Bob, age 42"
    expected = [("name", "Bob"), ("age", "42")]
    assert captured(TURN, text) == captured(TURN, text, Options(folder="", backend="llguidance")) == expected


def test_captures_of_json_grammars_and_large_regexes() -> None:
    turn = Sequence(
        (
            Capture("g", Grammar('start: "(" start ")" | "x"')),
            Literal("; "),
            Capture("v", compact(RECURSIVE)),
            Literal("; "),
            Capture("t", Regex("[a-z]{0,5000}")),
            Literal("."),
        )
    )
    assert captured(turn, '((x)); {"x":{"n":12}}; aaaa.') == [("g", "((x))"), ("v", '{"x":{"n":12}}'), ("t", "aaaa")]


def test_a_number_ends_where_its_schema_ends_it() -> None:
    digits = Sequence((Capture("d", compact('{"enum":[1,12]}')), Capture("rest", Regex("[0-9]*"))))
    try:
        assert captured(digits, "1234") == [("d", "12"), ("rest", "34")]
    except ConstraintError as error:  # an engine may refuse the seam; it may not tell it wrong
        pytest.skip(str(error))


def test_a_capture_around_everything_is_the_text() -> None:
    whole = Capture("all", compact(RECURSIVE))
    matcher = compile(whole, VOCABULARY, NOWHERE).start()
    write(matcher, '{"n":1')
    assert matcher.closed() == []
    write(matcher, "2}")
    [closed] = matcher.finish()
    assert (closed.first, closed.last) == (0, len('{"n":12}'))


def test_optional_and_repeated_captures() -> None:
    turn = Sequence(
        (
            Repeat(Capture("item", Regex("[a-z]+")), 1, 0, ", "),
            Maybe(Sequence((Literal("; "), Capture("n", Regex("[0-9]"))))),
            Literal("."),
        )
    )
    assert captured(turn, "ab, c.") == [("item", "ab"), ("item", "c")]
    assert captured(turn, "abc; 7.") == [("item", "abc"), ("n", "7")]


def test_end_tokens_add_no_bytes() -> None:
    matcher = compile(TURN, VOCABULARY, NOWHERE).start()
    write(matcher, "Name: Bob, age 4")
    assert matcher.accept([VOCABULARY.eos[0]]) == 1 and matcher.is_done
    assert [(closed.name, closed.first, closed.last) for closed in matcher.finish()] == [
        ("name", 6, 9),
        ("age", 15, 16),
    ]


def test_captures_follow_rollback_and_fork() -> None:
    matcher = compile(TURN, VOCABULARY, NOWHERE).start()
    write(matcher, "Name: Bo")
    other = matcher.fork()
    matcher.rollback(1)
    write(matcher, "x, age 1")
    write(other, "bo, age 1")
    assert [closed.last for closed in matcher.closed()] == [8]
    assert [closed.last for closed in other.closed()] == [10]
    with pytest.raises(ValueError, match="captures were asked for"):
        matcher.rollback(1)


def test_captures_close_while_the_text_is_written() -> None:
    matcher = compile(TURN, VOCABULARY, NOWHERE).start()
    told = []
    for token in VOCABULARY.encode(b"Name: Bob, age 42"):
        assert matcher.accept([token]) == 1
        told.append([closed.name for closed in matcher.closed()])
    assert told.count(["name"]) == 1 and told[-1] == []


def test_a_matcher_without_captures_tells_none() -> None:
    matcher = compile(Regex("[a-z]+"), VOCABULARY, NOWHERE).start()
    write(matcher, "abc")
    assert matcher.closed() == matcher.finish() == []


# --- loose schemas

LOOSE = compact(json.dumps({"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 50}))


def test_what_could_only_be_approximated_is_reported_and_validated() -> None:
    grammar = compile(LOOSE, VOCABULARY, NOWHERE)
    assert grammar.report.loose and grammar.report.approximations
    assert grammar.validate_text("[1,2]") == ""
    assert grammar.validate_text("[1,1]") != ""
    strict = compact(LOOSE.schema, strict=True)
    with pytest.raises(Unsupported):
        compile(strict, VOCABULARY, NOWHERE)


def test_the_json_inside_a_turn_is_validated_where_it_stands() -> None:
    turn = Sequence((Literal("v="), Capture("v", LOOSE), Literal("; done")))
    grammar = compile(turn, VOCABULARY, NOWHERE)
    assert grammar.report.loose
    assert grammar.validate_text("v=[1,2]; done") == ""
    assert grammar.validate_text("v=[2,2]; done") != ""


def test_exact_grammars_validate_nothing() -> None:
    grammar = compile(compact(RECURSIVE), VOCABULARY, NOWHERE)
    assert not grammar.report.loose and grammar.validate_text("[") == ""


# --- two engines, one language


def masks_along(constraint: Constraint, seed: int, steps: int, vocabulary: Vocabulary) -> None:
    """Walk at random, both engines side by side: the same tokens everywhere, the same ends.

    But where there is only one way on llguidance allows the one canonical token of it, a DFA every token on that way.
    """
    dice = random.Random(seed)
    left = compile(constraint, vocabulary, Options(folder="", backend="dfa", dfa_seconds=20)).start()
    right = compile(constraint, vocabulary, Options(folder="", backend="llguidance")).start()
    rows = np.zeros((2, vocabulary.words), np.int32)
    written = b""
    for _ in range(steps):
        left.mask_into(rows[0])
        right.mask_into(rows[1])
        assert left.error == right.error == ""
        forced = left.forced()
        differ = [vocabulary.tokens[token] for token in unpack(rows[0] ^ rows[1])]
        assert all(forced.startswith(token) for token in differ), f"after {written!r} of {constraint}: {differ[:10]}"
        assert left.is_accepting == right.is_accepting
        allowed = unpack(rows[0] & rows[1])
        ordinary = [token for token in allowed if token not in vocabulary.eos]
        assert (len(allowed) > len(ordinary)) == left.is_accepting
        assert not any(token in vocabulary.eos or not vocabulary.tokens[token] for token in ordinary)
        if not ordinary:
            assert left.is_accepting
            return
        token = int(dice.choice(ordinary))
        assert left.accept([token]) == right.accept([token]) == 1
        written += vocabulary.tokens[token]


WALKED = [
    Regex(r"[0-9]+(\.[0-9]+)?"),
    Regex("cat|category"),
    Regex("(ab){2,3}"),
    Regex(r"https?://[a-z]+(\.[a-z]+)+(:\d+)?(/[^ ]*)?"),
    Regex("[\u4e00-\u9fff]{1,4}"),
    Regex(r"(?i)straße|stop"),
    Regex("a||b"),
    Regex(r"[^a]{0,5}"),
    Choice(("ab", "abc", "the ", "the end")),
    TURN,
    Repeat(Choice(("a", "aa")), 2, 4, ","),
    Sequence((Free(("\n",), 6), Literal("\n"), Maybe(Regex("[x-z]")))),
]


@pytest.mark.parametrize("constraint", WALKED, ids=lambda constraint: str(constraint)[:40])
def test_both_engines_allow_the_same_tokens(constraint: Constraint) -> None:
    for seed in range(4):
        masks_along(constraint, seed, 12, VOCABULARY)


atoms = st.sampled_from(["a", "b", "[ab]", "[^ab]", r"\d", "ß", ".", "abc", "(?:ab|a)"])
regexes = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda both: f"(?:{both[0]}|{both[1]})"),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{1,3}", "{0,2}"])).map(
            lambda both: f"(?:{both[0]}){both[1]}"
        ),
    ),
    max_leaves=5,
)


@given(regexes, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_both_engines_allow_the_same_tokens_for_any_regex(pattern: str, seed: int) -> None:
    masks_along(Regex(pattern), seed, 6, VOCABULARY)


@pytest.mark.soak
@given(regexes, st.integers(0, 1000))
@settings(max_examples=3000, deadline=None)
def test_both_engines_allow_the_same_tokens_for_very_many_regexes(pattern: str, seed: int) -> None:
    masks_along(Regex(pattern), seed, 10, VOCABULARY)
