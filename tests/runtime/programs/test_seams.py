"""Text meets ids: given answers keep their ids, healed seams go back, text that waits is computed early."""

from __future__ import annotations

from array import array

import msgspec
import pytest

from branchwork.lang import protocol
from branchwork.lang.constraint import Literal, Sequence
from branchwork.lang.ir import Answered, Fill, Fork, Gen, Join, Placed, Reasoning, Ref, Select, Text
from branchwork.lang.protocol import Budget
from branchwork.lang.transcript import Branch, Segment
from branchwork.runtime import wire
from branchwork.runtime.programs import seams
from branchwork.runtime.programs.branches import Transcript
from branchwork.runtime.programs.host import EARLY, SEAM
from tests.runtime.programs.test_host import Bench, ByteTexts, gen, ids_of


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.host.open(b"c", 1, False)
    return made


class PairTexts(ByteTexts):
    """Bytes, and one token (257) for each of a few longer texts."""

    def __init__(self, *words: str) -> None:
        self.token_bytes = [*ByteTexts.token_bytes, *(word.encode() for word in words)]


def literal(text: str) -> Segment:
    return Segment(text, "literal", 0, False)


def test_as_many_tokens_go_back_as_a_longer_token_begins_with() -> None:
    texts = PairTexts(" France")
    ids = list(b"of Fr")
    assert seams.healed(ids, literal("of Fr"), texts) == (list(b"of"), " Fr")


def test_nothing_goes_back_where_no_token_goes_on() -> None:
    assert seams.healed(list(b"of Fr"), literal("of Fr"), PairTexts("xyz")) == (list(b"of Fr"), "")


def test_only_literals_are_healed_and_only_inside_them() -> None:
    texts = PairTexts(" France")
    assert seams.healed(list(b"of Fr"), Segment("of Fr", "frame", 0, True), texts)[1] == ""
    assert seams.healed(list(b"of Fr"), literal("Fr"), PairTexts("France"))[1] == "Fr"
    assert seams.healed(list(b"of Fr"), None, texts)[1] == ""


def test_half_a_character_never_goes_back() -> None:
    texts = PairTexts("é!")
    assert seams.healed(list("né".encode()), literal("né"), texts) == (list(b"n"), "é")


def test_given_ids_are_kept_as_far_as_they_spell_the_text() -> None:
    texts = PairTexts("hel")
    ids = [257, ord("l"), ord("o")]
    assert seams.exact([], Segment("hello", "gen", 0, False), ids, texts) == (0, ids)
    assert seams.exact([], Segment("hello!", "gen", 0, False), ids, texts) == (0, [*ids, ord("!")])
    assert seams.exact([], Segment("help", "gen", 0, False), ids, texts) == (0, [257, ord("p")])
    assert seams.exact([], Segment("x", "gen", 0, False), [999], texts) == (0, [ord("x")])


def test_given_ids_of_no_text_and_of_half_characters_are_kept() -> None:
    texts = PairTexts("hel")
    ids = [256, ord("a"), 0xC3, 256]
    assert seams.exact([], Segment("a\ufffd", "gen", 0, False), ids, texts) == (0, ids)


def test_given_ids_of_a_healed_answer_take_the_place_of_what_went_back() -> None:
    texts = PairTexts("hel")
    ids = [257, ord("l"), ord("o")]
    assert seams.exact(list(b"oh he"), Segment("llo", "gen", 0, False), ids, texts) == (2, ids)


def test_a_given_choice_ends_the_text_that_is_encoded_together() -> None:
    branch = Branch(0)
    for node, (text, origin) in enumerate([("he", "literal"), ("l", "select"), ("p", "literal"), ("x", "gen")]):
        branch.append(text, origin, node)
    transcript = Transcript()
    seams.settle(transcript, branch, {3: array("i", [ord("x")]).tobytes()}, PairTexts("help"))
    assert (transcript.ids, transcript.segments) == (list(b"helpx"), 4)


def test_a_given_answer_is_not_asked_for_and_its_ids_stand_in_the_prompt(bench: Bench) -> None:
    given = Answered(("12",), ids=array("i", [49, 50]).tobytes())
    bench.lay(Text("ab"), Gen("x", given=given), Text("cd"), gen("y"))
    (submit,) = bench.submits()
    assert ids_of(submit) == b"ab12cd"
    assert bench.of(protocol.Done) == []


def test_a_healed_seam_is_drawn_anew_and_leaves_the_text_as_it_was() -> None:
    bench = Bench()
    bench.texts.token_bytes = [*ByteTexts.token_bytes, b"cde"]
    bench.host.open(b"c", 1, True)
    bench.lay(Text("abc"), gen("x", heal=True, stop=("c",)), Text("!"), gen("y"))
    (submit,) = bench.submits()
    assert ids_of(submit) == b"ab"
    assert isinstance(submit.constraint, Sequence) and submit.constraint.parts[0] == Literal("c")
    assert submit.stops.skip == 1 and submit.jump == "off"
    bench.host.on_messages([wire.Tokens(submit.id, (257,))])
    bench.host.on_messages([wire.Finished(submit.id, (ord("f"),), (), "length", b"", 4, 2, USAGE)])
    (done,) = bench.of(protocol.Done)
    assert done.values == ("def",) and done.meta[0]["healed"] == "c"
    assert "".join(delta.text for delta in bench.of(protocol.Delta)) == "def"
    assert array("i", bench.submits()[1].ids).tolist() == [*b"ab", 257, *b"f!"]


USAGE = wire.Usage(prompt=2, reused=1, computed=1, diverged=1)


def test_an_answer_that_ends_inside_the_healed_text_leaves_the_prompt_whole() -> None:
    bench = Bench()
    bench.texts.token_bytes = [*ByteTexts.token_bytes, b"bcd"]
    bench.host.open(b"c", 1, False)
    bench.lay(Text("abc"), gen("x", heal=True), gen("y"))
    (submit,) = bench.submits()
    assert ids_of(submit) == b"a"
    bench.host.on_messages([wire.Finished(submit.id, (ord("b"),), (), "length", b"", 1, 1, USAGE)])
    assert bench.of(protocol.Done)[0].values == ("",)
    assert ids_of(bench.submits()[1]) == b"abc"


def test_meta_says_how_far_the_text_was_in_the_tree(bench: Bench) -> None:
    bench.lay(Text("abcd"), gen("x"))
    (submit,) = bench.submits()
    usage = wire.Usage(prompt=4, reused=2, computed=2, diverged=2, queued=0.1, first=0.2, total=0.3)
    bench.host.on_messages([wire.Finished(submit.id, (49,), (), "length", b"", 1, 1, usage, forced=((0, 1),))])
    meta = bench.of(protocol.Done)[0].meta[0]
    assert (meta["reused_chars"], meta["diverged_text"], meta["forced"]) == (2, "c", [(0, 1)])
    assert (meta["queued_s"], meta["first_s"], meta["total_s"]) == (0.1, 0.2, 0.3) and meta["began_s"] >= 0


def test_thinking_leaves_the_transcript(bench: Bench) -> None:
    node = msgspec.structs.replace(gen("x"), reasoning=Reasoning("<t>", "</t>"))
    bench.lay(Text("ab"), node, Text("!"), gen("y"))
    bench.finish(bench.submits()[0], b"<t>hm</t>yes")
    assert ids_of(bench.submits()[1]) == b"abyes!"


def test_a_branch_that_waits_is_computed_early_once(bench: Bench) -> None:
    long = "l" * (EARLY + 10)
    bench.host.attach(bench.sent.append, 4096)
    bench.lay(Text("ab"), Fork((1,)))
    bench.lay(gen("x"), branch=1)
    bench.lay(Text(long), Ref(1, "x"), gen("y"))
    early = [submit for submit in bench.submits() if submit.priority < 0]
    assert [ids_of(submit) for submit in early] == [b"ab" + long.encode()[:-SEAM]]
    bench.finish(next(s for s in bench.submits() if s.priority == 0), b"1")
    bench.finish(early[0], b"?")  # what was drawn beside it is nobody's
    assert ids_of(bench.submits()[-1]) == b"ab" + long.encode() + b"1"
    assert len([submit for submit in bench.submits() if submit.priority < 0]) == 1


def test_an_answer_that_opens_a_fork_says_how_many_wait_for_it(bench: Bench) -> None:
    bench.lay(Text("ab"), gen("x"), Text("c"), Fork((1, 2, 3)), gen("y"), Fork((4, 5)))
    bench.finish(bench.submits()[0], b"1")
    assert [submit.fanout for submit in bench.submits()] == [3, 2]


def test_a_template_is_a_program_with_its_arguments_filled_in(bench: Bench) -> None:
    bench.host.open(b"c", 2, False)
    nodes = (
        Placed(0, Fill(("a", 0))),
        Placed(0, Gen("x")),
        Placed(0, Fork((1,))),
        Placed(1, Select("y", fills=((1,), ("no",)))),
    )
    bench.host.start(b"c", 2, nodes, ("b", "yes"))
    assert ids_of(bench.submits()[0]) == b"ab"
    bench.finish(bench.submits()[0], b"1")
    score = next(message for message in bench.sent if isinstance(message, wire.Score))
    assert bytes(array("i", score.ids).tolist()) == b"ab1"


def test_choices_that_become_equal_are_refused(bench: Bench) -> None:
    bench.host.open(b"c", 2, False)
    nodes = (Placed(0, Text("a")), Placed(0, Select("y", fills=((0,), (1,)))))
    bench.host.start(b"c", 2, nodes, ("b", "b"))
    (failed,) = bench.of(protocol.Failed)
    assert failed.code == "bad_choices" and failed.node == 1


def test_losers_of_a_race_are_cancelled_in_the_engine(bench: Bench) -> None:
    bench.lay(Text("ab"), Fork((1, 2)))
    bench.lay(gen("x"), branch=1)
    bench.lay(gen("x"), branch=2)
    bench.lay(Join((1, 2), "first", 1), Text("!"))
    first, second = bench.submits()
    bench.finish(second, b"2")
    assert wire.Cancel(first.id) in bench.sent
    assert [(done.branch, done.values) for done in bench.of(protocol.Done)] == [(2, ("2",)), (0, ("1",))]
    assert [failed.code for failed in bench.of(protocol.Failed)] == ["outrun"]


def test_a_programs_tokens_are_counted_over_its_branches() -> None:
    bench = Bench()
    bench.host.open(b"c", 1, False, Budget(tokens=4))
    bench.lay(Text("ab"), Fork((1,)), gen("x"))
    bench.lay(gen("x"), branch=1)
    first, second = bench.submits()
    assert first.stops.max_tokens == second.stops.max_tokens == 4 and first.stream
    bench.host.on_messages([wire.Tokens(first.id, (49, 50, 51))])
    bench.host.on_messages([wire.Tokens(second.id, (49, 50))])
    assert {wire.Cancel(first.id), wire.Cancel(second.id)} <= {m for m in bench.sent if isinstance(m, wire.Cancel)}
    assert {failed.code for failed in bench.of(protocol.Failed)} == {"budget"}


def test_a_gen_after_the_budget_fails_and_one_before_its_end_is_cut() -> None:
    bench = Bench()
    bench.host.open(b"c", 1, False, Budget(tokens=3))
    bench.lay(Text("ab"), gen("x", max_tokens=2), gen("y", max_tokens=2), gen("z"))
    bench.finish(bench.submits()[0], b"12")
    assert bench.submits()[1].stops.max_tokens == 1
    bench.finish(bench.submits()[1], b"3")
    (failed,) = bench.of(protocol.Failed)
    assert failed.code == "budget" and "3 tokens" in failed.message and len(bench.submits()) == 2


def test_an_empty_mark_stands_before_everything() -> None:
    branch = Branch(0)
    branch.append("abc", "literal", 0)
    transcript = Transcript()
    assert transcript.mark(0) == (0, 0)
    transcript.commit(list(b"abc"), 1)
    assert (transcript.mark(2), transcript.mark(3)) == ((0, 0), (1, 3))
