"""Who is asked for guesses, in which order, how often; and what is learned from what came of them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from branchwork.runtime.speculative.cost import StepCost
from branchwork.runtime.speculative.draft import NOTHING, Context, Draft, Proposal, Side, chain
from branchwork.runtime.speculative.speculator import GRAMMAR, LONGEST, LONGEST_PAUSE, Sides, Speculator, until

DEAR = StepCost([(1, 1.0), (64, 64.0)])


class Parrot:
    """Proposes the same ids whenever it is asked."""

    source = "parrot"

    def __init__(self, ids: Sequence[int], sides: Sequence[Side] = ()) -> None:
        self.ids = ids
        self.sides = sides
        self.asked: list[list[int]] = []

    def propose(self, context: Context, ahead: Sequence[int], room: int) -> Proposal | None:
        self.asked.append([*context.known, *ahead])
        return Proposal(self.ids[:room], sides=lambda: self.sides) if self.ids else None

    def grew(self, context: Context) -> None: ...

    def ended(self, context: Context) -> None: ...


def test_a_draft_is_a_tree_whose_chains_follow_each_other() -> None:
    draft = chain([5, 6, 7], "lookup", 2)
    assert draft.parents == (-1, 0, 1) and draft.sources == ("lookup",) * 3 and draft.grades == (2, 2, 2)
    assert draft.cut(2) == chain([5, 6], "lookup", 2) and draft.cut(9) is draft and len(NOTHING) == 0


def test_forced_text_comes_first_and_others_go_on_behind_it() -> None:
    parrot = Parrot([8, 9])
    speculator = Speculator((parrot,))
    context = speculator.open(0, array("i", [1]))
    draft = speculator.draft(context, 10, speculator.begin(1), [4, 5])
    assert draft.ids == (4, 5, 8, 9) and draft.parents == (-1, 0, 1, 2)
    assert draft.sources == (GRAMMAR, GRAMMAR, "parrot", "parrot")
    assert parrot.asked == [[1, 4, 5]]


def test_a_model_that_spells_forced_text_otherwise_is_asked_how_it_spelt_it_before() -> None:
    speculator = Speculator((Parrot([8, 9]),))
    context = speculator.open(0, array("i", [1]))
    for _ in range(20):
        speculator.observe(context, chain([4, 5], GRAMMAR), 0, False)
    assert speculator.draft(context, 10, speculator.begin(1), [4, 5]).sources == ("parrot", "parrot")
    silent = Speculator((Parrot([]),))
    assert silent.draft(silent.open(0, array("i", [1])), 10, silent.begin(1), [4, 5]).sources == (GRAMMAR, GRAMMAR)


def test_no_guess_goes_beyond_the_room_or_what_is_allowed() -> None:
    speculator = Speculator((Parrot(range(200)),))
    context = speculator.open(0, array("i", [1]))
    assert speculator.draft(context, 3, speculator.begin(1)).ids == (0, 1, 2)
    assert len(speculator.draft(context, 500, speculator.begin(1))) == LONGEST
    assert speculator.draft(context, 9, speculator.begin(1), allowed=until([2, 77])).ids == (0, 1)
    assert speculator.draft(context, 9, speculator.begin(1), allowed=lambda ids: 0) is NOTHING
    assert until([]) is None


FORK = (Side(1, (7, 7, 7), 0.3), Side(0, (6,), 0.5))


def test_side_branches_grow_where_they_leave_the_trunk_the_likeliest_first() -> None:
    speculator = Speculator((Parrot([3, 4, 5], FORK),))
    context = speculator.open(0, array("i", [1]))
    draft = speculator.draft(context, 8, speculator.begin(1), sides=Sides(1, 1, 99))
    assert (draft.ids, draft.parents) == ((3, 4, 5, 6, 7, 7, 7), (-1, 0, 1, -1, 0, 4, 5))
    assert draft.sources == ("parrot",) * 7
    for sides in (None, Sides(1, 1, 3)):
        assert speculator.draft(context, 8, speculator.begin(1), sides=sides) == draft.cut(3)
    behind = speculator.draft(context, 8, speculator.begin(1), [9, 9], sides=Sides(1, 1, 99))
    assert (behind.ids[:5], behind.parents[5:]) == ((9, 9, 3, 4, 5), (1, 2, 6, 7)), "forced text is before them all"


def test_no_side_branch_is_longer_than_the_room_or_says_what_is_not_allowed() -> None:
    speculator = Speculator((Parrot([3, 4, 5], FORK),))
    context = speculator.open(0, array("i", [1]))
    short = speculator.draft(context, 2, speculator.begin(1), sides=Sides(1, 1, 99))
    assert (short.ids, short.parents) == ((3, 4, 6, 7), (-1, 0, -1, 0))
    known = speculator.draft(context, 8, speculator.begin(1), allowed=until([6, 5]), sides=Sides(1, 1, 99))
    assert (known.ids, known.parents) == ((3, 4, 7, 7, 7), (-1, 0, 0, 2, 3))


def test_a_side_branch_is_taken_when_it_pays_for_its_row_and_what_its_page_makes_it_compute_again() -> None:
    def sides(points: list[tuple[int, float]], block: int) -> int:
        speculator = Speculator((Parrot([3, 4, 5], FORK),), StepCost(points))
        context = speculator.open(0, array("i", [1]))
        draft = speculator.draft(context, 8, speculator.begin(1), sides=Sides(block, 15, 99))
        assert draft.trunk == 3
        return len(draft) - 3

    nearly_free = [(1, 1.0), (64, 1.5)]
    assert sides(nearly_free, 1) == 4
    assert sides([(1, 1.0), (64, 6.0)], 1) == 1, "the likelier one pays"
    assert sides([(1, 1.0), (64, 9.0)], 1) == 0
    assert sides(nearly_free, 16) == 3, "the other one would compute 15 ids again"


def test_second_thoughts_that_never_come_true_are_believed_less() -> None:
    """What a draft takes after many in which the side branch, or the trunk, came true."""

    def tries(hit: bool) -> Draft:
        speculator = Speculator((Parrot([3, 4, 5], FORK),), StepCost([(1, 1.0), (64, 1.2)]))
        context = speculator.open(0, array("i", [1]))
        for _ in range(60):
            context.known.append(1)
            draft = speculator.draft(context, 8, speculator.begin(1), sides=Sides(1, 1, 99))
            side = [n for n in range(draft.trunk, len(draft)) if draft.parents[n] == -1]
            speculator.observe(context, draft, len(side[:1]) if hit else 3, False, side[:1] if hit else [0, 1, 2])
        speculator.cost = StepCost([(1, 1.0), (64, 3.0)])
        context = speculator.open(1, array("i", [1]))
        return speculator.draft(context, 8, speculator.begin(1), sides=Sides(1, 1, 99))

    assert -1 in tries(True).parents[1:]
    assert -1 not in tries(False).parents[1:]


def test_of_a_tree_each_guess_that_was_reached_counts_for_its_source() -> None:
    speculator = Speculator((Parrot([3]),))
    context = speculator.open(0, array("i", [1]))
    draft = Draft((1, 2, 7, 8), (-1, 0, 0, 2), ("a", "a", "b", "b"), (3,) * 4)
    speculator.observe(context, draft, 3, False, [0, 2, 3])
    assert speculator.totals == {"a": [2, 1], "b": [2, 2]}
    record = context.records["a"]
    assert (record.hits[3], round(record.tries[3], 2)) == (0.85, 1.85), "the second guess of the trunk failed"


def test_a_source_that_fails_is_soon_asked_rarely_and_one_that_is_right_again_always() -> None:
    parrot = Parrot([3, 3, 3])
    speculator = Speculator((parrot,), DEAR)
    context = speculator.open(0, array("i", [1]))
    for _ in range(2000):
        context.known.append(1)
        draft = speculator.draft(context, 8, speculator.begin(8))
        speculator.observe(context, draft, 0, False)
    asked = len(parrot.asked)
    for _ in range(10 * (LONGEST_PAUSE + 1)):
        context.known.append(1)
        draft = speculator.draft(context, 8, speculator.begin(8))
        assert len(draft) <= 1, "only a probe"
        speculator.observe(context, draft, 0, False)
    assert len(parrot.asked) - asked == 10
    cheap = Speculator((parrot,), StepCost([(1, 1.0), (64, 1.1)]))
    context = cheap.open(0, array("i", [1]))
    for _ in range(50):
        cheap.observe(context, cheap.draft(context, 8, cheap.begin(1)), 3, False)
    assert len(cheap.draft(context, 8, cheap.begin(1))) == 3


def test_an_answer_that_ends_in_mid_draft_is_no_failure_of_the_guess_after() -> None:
    speculator = Speculator((Parrot([3]),))
    context = speculator.open(0, array("i", [1]))
    speculator.observe(context, chain([3, 3, 3], "parrot"), 1, True)
    assert context.records["parrot"].tries[3] == context.records["parrot"].hits[3] == 1.0
    assert speculator.totals == {"parrot": [3, 1]}


def test_grammar_alone_and_nobody() -> None:
    off = Speculator(grammar=False)
    assert off.idle and off.draft(off.open(0, array("i", [1])), 9, off.begin(1), [4]) is NOTHING
    only = Speculator()
    assert not only.idle and only.draft(only.open(0, array("i", [1])), 9, only.begin(1), [4]).ids == (4,)
