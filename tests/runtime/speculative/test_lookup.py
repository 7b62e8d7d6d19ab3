"""What was written before tells what may follow; the memory for it is bounded and old text goes first."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.runtime.speculative.draft import Context
from branchwork.runtime.speculative.lookup import CHUNK, LEVELS, Lookup

HEADS = 1 << 10


def wrote(lookup: Lookup, key: int, ids: Sequence[int]) -> None:
    """A request that wrote these ids and ended."""
    context = Context(key, array("i", ids))
    lookup.grew(context)
    lookup.ended(context)


def guesses(lookup: Lookup, ids: Sequence[int], room: int = 64, ahead: Sequence[int] = ()) -> list[int]:
    found = lookup.propose(Context(-1, array("i", ids)), ahead, room)
    return [] if found is None else list(found.ids)


def test_a_past_answer_is_proposed_to_the_same_prompt() -> None:
    lookup = Lookup(heads=HEADS)
    text = list(range(100, 140))
    wrote(lookup, 0, text)
    assert guesses(lookup, text[:30]) == text[30:]
    assert guesses(lookup, text[:30], room=4) == text[30:34]
    assert guesses(lookup, text[:28], ahead=text[28:30]) == text[30:], "what others guessed counts as written"
    assert guesses(lookup, [1, 2, 3, 4]) == []


def test_the_longest_suffix_wins_over_newer_text() -> None:
    lookup = Lookup(heads=HEADS)
    wrote(lookup, 0, [*range(50, 60), 1, 2, 3, 7, 7, 7])
    wrote(lookup, 1, [1, 2, 3, 8, 8, 8])
    assert guesses(lookup, [*range(50, 60), 1, 2, 3], room=3) == [7, 7, 7]
    assert guesses(lookup, [9, 1, 2, 3], room=3) in ([8, 8, 8], [7, 7, 7])


def test_of_equal_places_the_majority_wins_and_shares_say_how_far_it_goes() -> None:
    lookup = Lookup(heads=HEADS)
    for key, last in enumerate([(5, 6), (5, 9), (4, 4), (5, 6)]):
        wrote(lookup, key, [1, 2, 3, *last])
    found = lookup.propose(Context(-1, array("i", [8, 1, 2, 3])), (), 8)
    assert found is not None and list(found.ids) == [5, 6]
    assert list(found.shares) == [0.75, 0.5]


def test_where_the_vote_is_split_the_others_are_side_branches() -> None:
    lookup = Lookup(heads=HEADS)
    for key, last in enumerate([(5, 6, 7), (5, 9, 9), (4, 4, 8), (5, 6, 7)]):
        wrote(lookup, key, [1, 2, 3, *last])
    found = lookup.propose(Context(-1, array("i", [8, 1, 2, 3])), (), 8)
    assert found is not None and found.sides is not None and list(found.ids) == [5, 6, 7]
    assert {(side.at, tuple(side.ids), side.share) for side in found.sides()} == {
        (0, (4, 4, 8), 0.25),
        (1, (9, 9), 0.25),
    }


def test_a_text_that_goes_on_in_two_ways_has_the_older_one_as_a_side_branch() -> None:
    lookup = Lookup(heads=HEADS)
    context = Context(0, array("i", [1, 2, 3, 7, 7, 0, 1, 2, 3, 8, 8, 0, 1, 2, 3]))
    lookup.grew(context)
    found = lookup.propose(context, (), 4)
    assert found is not None and found.sides is not None and list(found.ids) == [8, 8, 0, 1]
    assert [(side.at, list(side.ids)[:3], side.share) for side in found.sides()] == [(0, [7, 7, 0], 0.5)]


def test_a_sibling_under_way_is_read_as_it_grows() -> None:
    lookup = Lookup(heads=HEADS)
    sibling = Context(0, array("i", [1, 2, 3]))
    lookup.grew(sibling)
    assert guesses(lookup, [1, 2, 3]) == []
    sibling.known.extend([4, 5, 6])
    lookup.grew(sibling)
    assert guesses(lookup, [1, 2, 3]) == [4, 5, 6]


def test_text_that_goes_round_is_continued_beyond_its_own_end() -> None:
    lookup = Lookup(heads=HEADS)
    context = Context(0, array("i", [1, 2, 3, 4] * 3))
    lookup.grew(context)
    found = lookup.propose(context, (), 10)
    assert found is not None and list(found.ids) == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]


def test_only_what_is_fresh_is_indexed_where_the_rest_was_seen() -> None:
    lookup = Lookup(heads=HEADS)
    prompt = list(range(200, 300))
    wrote(lookup, 0, prompt)
    second = Context(1, array("i", [*prompt, 1, 2]), fresh=100)
    lookup.grew(second)
    assert len(lookup._live[1].links) == 2, "the prompt is in the index once"
    third = Context(2, array("i", [*range(400, 500), 1, 2]), fresh=100)  # computed for somebody who was not read
    lookup.grew(third)
    assert guesses(lookup, range(400, 450), room=3) == [450, 451, 452]


def test_the_oldest_text_is_forgotten_and_nothing_is_held_beyond_the_capacity() -> None:
    lookup = Lookup(capacity=1000, heads=HEADS)
    for key in range(100):
        wrote(lookup, key, range(key * 50, key * 50 + 50))
        assert lookup.held <= 1000 and lookup.runs <= 20
    assert guesses(lookup, range(99 * 50, 99 * 50 + 40), room=2) == [99 * 50 + 40, 99 * 50 + 41]
    assert guesses(lookup, range(40)) == []
    assert not lookup._live


def test_a_very_long_prompt_is_indexed_in_pieces() -> None:
    lookup = Lookup(heads=1 << 14)
    context = Context(0, array("i", range(3 * CHUNK)))
    lookup.grew(context)
    assert len(lookup._live[0].ids) == CHUNK
    lookup.grew(context)
    lookup.grew(context)
    assert len(lookup._live[0].ids) == 3 * CHUNK


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=8), st.lists(st.integers(0, 3), max_size=30))
def test_whatever_is_proposed_followed_the_same_ids_somewhere(texts: list[list[int]], tail: list[int]) -> None:
    """Also where hashes collide: there are few heads here."""
    lookup = Lookup(capacity=60, heads=4)
    for key, text in enumerate(texts):
        wrote(lookup, key, text)
    found = lookup.propose(Context(-1, array("i", tail)), (), 16)
    if found is None:
        return
    level = LEVELS[found.grade]
    wanted = [*tail[-level:], *found.ids]
    assert any(text[n : n + len(wanted)] == wanted for text in texts for n in range(len(text)))


def test_a_random_life_leaves_no_run_behind() -> None:
    rng = random.Random(5)
    lookup = Lookup(capacity=500, heads=HEADS)
    live: dict[int, Context] = {}
    for key in range(1000):
        live[key] = Context(key, array("i", [rng.randrange(9) for _ in range(rng.randrange(20))]))
        for context in rng.sample(list(live.values()), min(3, len(live))):
            context.known.append(rng.randrange(9))
            lookup.grew(context)
            lookup.propose(context, (), 8)
        if len(live) > 6:
            lookup.ended(live.pop(rng.choice(list(live))))
    for context in live.values():
        lookup.ended(context)
    assert not lookup._live and lookup.held <= 500
    assert lookup.runs == len(lookup._ended) and sum(len(run.ids) for run in lookup._ended) == lookup.held
