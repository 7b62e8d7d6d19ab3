"""Masks by trie walks: native and numpy against the plain definition, and the store that keeps them."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.lang.constraint import Regex
from branchwork.runtime.grammar import dfa, walk
from branchwork.runtime.grammar.dfa import Table
from branchwork.runtime.grammar.frontend import regular
from branchwork.runtime.grammar.trie import Trie
from branchwork.runtime.grammar.vocabulary import unpack
from branchwork.runtime.grammar.walk import Masks, Walker
from tests.runtime.grammar.vocabularies import gpt2, real

NATIVE = [False, pytest.param(True, marks=pytest.mark.skipif(not walk.available, reason="the library was not built"))]
TOKENS = st.lists(
    st.binary(min_size=0, max_size=4) | st.text("ab", max_size=4).map(str.encode), min_size=1, max_size=40
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Any table, with transitions on a few bytes."""
    states = draw(st.integers(1, 4))
    transitions = np.full((states, 256), -1, np.int32)
    for state in range(states):
        for byte in draw(st.sets(st.sampled_from([*b"ab", 0, 255]))):
            transitions[state, byte] = draw(st.integers(0, states - 1))
    return Table(transitions, np.zeros(states, bool))


@pytest.mark.parametrize("native", NATIVE)
@settings(deadline=None)
@given(tables(), TOKENS)
def test_a_mask_is_every_token_that_can_be_followed(native: bool, table: Table, tokens: list[bytes]) -> None:
    walker = Walker(table.transitions, Trie(tokens), -(-len(tokens) // 32), native)
    for state in range(len(table)):
        expected = [i for i, token in enumerate(tokens) if token and table.follow(state, token) >= 0]
        assert unpack(walker.mask(state)).tolist() == expected


@pytest.mark.parametrize("native", NATIVE)
@settings(deadline=None)
@given(tables(), TOKENS, st.text("ab", max_size=6))
def test_the_first_extension_is_where_a_longer_token_could_begin(
    native: bool, table: Table, tokens: list[bytes], text: str
) -> None:
    run, walker = text.encode(), Walker(table.transitions, Trie(tokens), -(-len(tokens) // 32), native)
    for state in range(len(table)):
        begins = [
            i
            for i in range(len(run))
            for token in tokens
            if len(token) > len(run) - i
            and token.startswith(run[i:])
            and table.follow(state, token[len(run) - i :]) >= 0
        ]
        assert walker.first_extension(run, state) == min(begins, default=len(run))


@pytest.mark.skipif(not walk.available, reason="the library was not built")
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_both_walks_agree_on_a_real_vocabulary(name: str) -> None:
    vocabulary = real(name)
    found = regular(Regex(r'\{"name": "[^"\\]{1,9}", "at": \d+(\.\d+)?, "kind": (one|two|[\u4e00-\u9fff]+)\}'))
    assert found is not None
    table = dfa.build(found.pattern)
    native = Walker(table.transitions, vocabulary.trie, vocabulary.words, True)
    plain = Walker(table.transitions, vocabulary.trie, vocabulary.words, False)
    for state in range(0, len(table), 9):
        assert (native.mask(state) == plain.mask(state)).all()
        for run in (b"", b'"', b'", "at": ', b'{"na'):
            assert native.first_extension(run, state) == plain.first_extension(run, state)


def test_the_library_is_used_where_it_was_built() -> None:
    assert (Walker(np.full((1, 256), -1, np.int32), gpt2().trie, gpt2().words).library is not None) == walk.available


# --- the store


def mask(value: int, words: int = 100) -> walk.Mask:
    return np.full(words, value, np.int32)


def test_equal_masks_are_stored_once_and_the_oldest_go_first() -> None:
    masks = Masks(3 * 400 + 5 * 256)
    client = masks.client()
    kept = client.put(0, mask(1))
    assert client.put(1, mask(1)) is kept and client.put(2, mask(2)) is not kept
    assert masks.held == 2 * 400 + 3 * 256
    assert client.get(0) is kept  # so that 1 is now the least recently used
    client.put(3, mask(3))
    client.put(4, mask(4))
    masks.check()
    assert client.get(1) is None and client.get(0) is kept and client.get(4) is not None
    assert masks.held <= masks.budget


def test_one_mask_is_kept_even_past_the_budget() -> None:
    masks = Masks(10)
    client = masks.client()
    assert client.put(0, mask(1)) is client.get(0)
    client.put(1, mask(2))
    assert client.get(0) is None and client.get(1) is not None
    masks.check()


def test_masks_go_with_their_grammar() -> None:
    masks = Masks(10**6)
    first, second = masks.client(), masks.client()
    first.put(0, mask(1))
    first.put(1, mask(2))
    second.put(0, mask(2))
    del first
    gc.collect()
    second.put(1, mask(3))
    masks.check()
    assert masks.held == 2 * (400 + 256) and second.get(0) is not None


def test_threads_share_a_store() -> None:
    masks, faults = Masks(20 * 400), []

    def work(seed: int) -> None:
        client = masks.client()
        for i in range(500):
            value = (i * seed) % 37
            got = client.get(value)
            if got is not None and not (got == value).all():
                faults.append(value)
            client.put(value, mask(value))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    masks.check()
    assert not faults
