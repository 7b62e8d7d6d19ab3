"""The options of a select as rows: every token is scored once per place, what options share is computed once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from branchwork.runtime.scheduler.twigs import Progress, Trie
from branchwork.runtime.wire import TokenScore

options = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), min_size=1, max_size=12)


@given(options)
def test_every_place_of_every_option_is_scored_by_exactly_one_row(given: list[tuple[int, ...]]) -> None:
    trie = Trie(given)
    progress = Progress(trie)
    scored: list[int] = []
    for number, twig in enumerate(trie.twigs):
        assert twig.parent < number, "parents come first"
        before = progress.path(number)
        assert len(before) == twig.depth
        tokens = [*(twig.ids if twig.parent < 0 else twig.ids[1:]), *twig.heads]
        scored += twig.nodes
        progress.done(number, [TokenScore(token, -1.0) for token in tokens])
    assert sorted(scored) == list(range(1, trie.nodes))
    assert progress.complete
    assert [tuple(score.id for score in option) for option in progress.options()] == given


@given(options)
def test_what_options_share_is_computed_once(given: list[tuple[int, ...]]) -> None:
    """Computed are the proper beginnings of options, each once."""
    beginnings = {option[:end] for option in given for end in range(1, len(option))}
    assert sum(len(twig.ids) for twig in Trie(given).twigs) == len(beginnings)


@given(options, st.integers(1, 20), st.sampled_from([1, 2, 4, 16]))
def test_pages_are_enough_for_the_longest_way_down(given: list[tuple[int, ...]], prefix: int, page_size: int) -> None:
    trie = Trie(given)
    longest = max(map(len, given))
    assert trie.pages(prefix, page_size) >= -(-(prefix + longest - 1) // page_size)
    if page_size == 1:
        assert trie.pages(prefix, 1) == prefix + longest - 1


@given(options)
def test_pages_are_given_back_when_nothing_grows_from_them_any_longer(given: list[tuple[int, ...]]) -> None:
    trie = Trie(given)
    progress = Progress(trie)
    freed: list[int] = []
    for number, twig in enumerate(trie.twigs):
        progress.pages[number] = [number]
        freed += progress.done(number, [TokenScore(0, 0.0)] * len(twig.nodes))
        for done in freed:
            later = trie.twigs[number + 1 :]
            assert all(twig.parent != done for twig in later), "a twig still to come grows from it"
    assert sorted(freed) == list(range(len(trie.twigs))) and not progress.pages
