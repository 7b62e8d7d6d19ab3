"""Jump-forward: appended tokens are those that canonical encoding of the whole text has."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.lang.constraint import Regex
from branchwork.runtime.grammar import dfa, jump
from branchwork.runtime.grammar.dfa import DfaGrammar
from branchwork.runtime.grammar.frontend import regular
from branchwork.runtime.grammar.trie import Trie
from branchwork.runtime.grammar.vocabulary import Vocabulary
from tests.runtime.grammar.vocabularies import SMALL, gpt2, real

STRING = r'"[A-Za-z]{2,9}( [A-Za-z0-9]{1,8}){0,4}"'
SHAPES = [
    rf'\{{"name":{STRING},"age":(0|[1-9]\d{{0,2}}),"email":"[a-z]{{3,9}}@[a-z]{{3,8}}\.(com|org)","active":(true|false)\}}',
    r'\{"user_id":\d{1,6},"items":\[\{"sku":"[A-Z]{2}-\d{4}","quantity":\d{1,2}\}(,\{"sku":"[A-Z]{2}-\d{4}","quantity":\d{1,2}\}){0,3}\]\}',
    rf'\{{"title":{STRING},"status":"(open|closed|in_progress|cancelled)","assignee":(null|{STRING})\}}',
    r"Name: [A-Z][a-z]{2,8}\nAge: \d{1,2}\nCity: (New York|New Orleans|San Diego)\nNotes:  {0,3}[a-z ]{0,20}\.\n\n",
    r"def [a-z_]{1,10}\(self\):\n    return self\.[a-z_]{1,10}\n",
    r"数字：\d{1,5}，城市：(北京|上海|北京市|广州)。",
]
WORDS = ["Anna", "the", "London", "Systems", "hello", "world", "of", "Engineering", "data", "Paris", "in"]


def grammar(pattern: str, vocabulary: Vocabulary) -> DfaGrammar:
    found = regular(Regex(pattern))
    assert found is not None
    return DfaGrammar(dfa.build(found.pattern), vocabulary)


def instances(pattern: str, count: int) -> list[str]:
    from tests.runtime.grammar.test_dfa import example, parse

    rng, found = random.Random(pattern), []
    for i in range(count):
        text = example(parse(pattern), rng)
        worded = re.sub(r'(?<=":")[A-Z][^"]{3,}(?=")', lambda _: " ".join(rng.sample(WORDS, rng.randint(1, 4))), text)
        found.append(worded if i % 2 and re.fullmatch(pattern, worded) else text)
    return found


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_a_model_that_writes_canonical_tokens_ends_canonical_with_jumps(name: str) -> None:
    vocabulary = real(name)
    jumped = total = 0
    for pattern in SHAPES:
        compiled = grammar(pattern, vocabulary)
        for i, text in enumerate(instances(pattern, 8)):
            prompt = vocabulary.encode([b"Answer:\n", b"JSON: ", b'say "', b""][i % 4])
            target, written = vocabulary.encode(text.encode()), list[int]()
            matcher = compiled.start()
            while len(written) < len(target):
                tokens = matcher.jump(prompt + written)
                jumped += len(tokens)
                tokens = tokens or [target[len(written)]]
                assert matcher.accept(tokens) == len(tokens)
                written += tokens
                assert written == target[: len(written)], text
            assert matcher.is_accepting
            total += len(target)
    assert jumped / total >= 0.24


def test_a_jump_does_not_move_and_keeps_what_the_model_may_merge() -> None:
    matcher = grammar(r"abc\d+", SMALL).start()
    assert matcher.forced() == b"abc"
    assert matcher.jump([]) == [SMALL.tokens.index(b"abc")]
    assert matcher.forced() == b"abc"
    assert grammar(r"12\d?x", SMALL).start().jump([]) == []  # it may be 123
    assert grammar(r"12[4-9]x", SMALL).start().jump([]) == [SMALL.tokens.index(b"12")]
    quoted = grammar(r'": "a?', SMALL).start()
    assert quoted.jump([]) == [SMALL.tokens.index(b'": "')]


def test_a_tail_that_would_be_written_otherwise_stays_and_the_forced_text_is_canonical_from_there() -> None:
    a, c = SMALL.tokens.index(b"a"), SMALL.tokens.index(b"c")
    matcher = grammar("bc!", SMALL).start()
    assert [SMALL.tokens[token] for token in matcher.jump([c])] == [b"bc", b"!"]
    # "abc" is one token, but "a" is committed and has to be followed by "bc"
    assert [SMALL.tokens[token] for token in matcher.jump([a])] == [b"bc", b"!"]
    assert [SMALL.tokens[token] for token in matcher.jump([a, SMALL.tokens.index(b"")])] == [b"bc", b"!"]


def test_characters_are_never_cut_and_bytes_that_are_no_text_do_no_harm() -> None:
    broken = [SMALL.tokens.index(b"\xff"), SMALL.tokens.index(b"a")]
    assert grammar("xyz", SMALL).start().jump(broken) == []
    either = grammar("x(京|京b|亭)", SMALL).start()  # both begin with E4 BA
    assert either.forced() == b"x\xe4\xba"
    assert [SMALL.tokens[token] for token in either.jump([])] == [b"x"]
    assert either.accept([SMALL.tokens.index(token) for token in (b"x", b"\xe4\xba")]) == 2
    assert either.jump([SMALL.tokens.index(token) for token in (b"x", b"\xe4\xba")]) == []


def test_text_that_the_tokenizer_rewrites_is_left_to_the_model() -> None:
    vocabulary = real("qwen2")  # NFC
    matcher = grammar("cafe\u0301 noir", vocabulary).start()
    kept = b"".join(vocabulary.tokens[token] for token in matcher.jump([]))
    assert "cafe\u0301 noir".encode().startswith(kept) and b"\xc3" not in kept


def test_special_tokens_in_forced_text_are_spelled() -> None:
    vocabulary = gpt2()
    tokens = grammar(r"a <\|endoftext\|> b", vocabulary).start().jump([])
    assert not set(tokens) & set(vocabulary.eos)
    assert b"a <|endoftext|>".startswith(b"".join(vocabulary.tokens[token] for token in tokens[:3]))


@settings(deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=30),
    st.text("ab", max_size=6),
    st.sampled_from(["a*", "b?a", "(ab)+", "[ab]{2}", "b*"]),
)
def test_asking_a_grammar_finds_the_cut_that_walking_a_table_finds(tokens: list[bytes], forced: str, rest: str) -> None:
    found = regular(Regex(rest))
    assert found is not None
    table = dfa.build(found.pattern)
    vocabulary = Vocabulary.of(tokens, [], lambda data: [])
    walker = DfaGrammar(table, vocabulary).walker
    asked: list[bytes] = []

    def allows(more: bytes) -> bool:
        asked.append(more)
        return table.follow(0, more) >= 0

    assert jump.first_extension(Trie(tokens), forced.encode(), allows) == walker.first_extension(forced.encode(), 0)
    assert len(asked) == len(set(asked))
