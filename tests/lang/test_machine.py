"""The interpreter alone: order, waiting, failing, and that nothing waits for ever."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwork.lang.constraint import Capture, Maybe, Regex, Repeat, Sequence, capture_names
from branchwork.lang.ir import (
    Fork,
    Gen,
    Join,
    Laid,
    Ref,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVar,
    Text,
)
from branchwork.lang.machine import Call, NodeDone, Output, Program, Reply
from branchwork.lang.params import SamplingParams
from branchwork.lang.protocol import ChatFrames, Frame
from branchwork.lang.transcript import NodeFailed

TURN = Sequence((Capture("a", Regex("a")), Maybe(Capture("b", Regex("b"))), Repeat(Capture("c", Regex("c")))))
CHATML = ChatFrames(
    roles={r: Frame(f"<|{r}|>", "<|end|>") for r in ("system", "user", "assistant")},
    start="<s>",
    default_system="<|system|>You help.<|end|>",
)


def calls(outputs: list[Output]) -> list[Call]:
    return [output for output in outputs if isinstance(output, Call)]


def failures(outputs: list[Output]) -> dict[int, NodeFailed]:
    return {output.node: output for output in outputs if isinstance(output, NodeFailed)}


def test_one_branch_runs_in_order_and_waits_at_a_gen() -> None:
    program = Program()
    program.feed(0, [Laid(0, Text("a")), Laid(1, Gen("x")), Laid(2, Text("b")), Laid(3, Gen("y"))])
    (first,) = calls(program.advance())
    assert (first.node, first.name, program.branch(0).text) == (1, "x", "a")
    assert program.advance() == []
    program.reply(first.id, Reply(("X",), ({"k": 1},)))
    out = program.advance()
    assert NodeDone(0, 1, ("X",), ({"k": 1},)) in out
    assert (calls(out)[0].node, program.branch(0).text) == (3, "aXb")
    assert program.branch(0).variables == {"x": "X"}


def test_n_samples_are_a_list_and_the_first_is_appended() -> None:
    program = Program()
    program.feed(0, [Laid(0, Gen("x", params=SamplingParams(n=2)))])
    program.reply(calls(program.advance())[0].id, Reply(("p", "q")))
    assert program.branch(0).variables == {"x": ["p", "q"]}
    assert program.branch(0).text == "p"


def test_children_of_a_fork_run_at_the_same_time_with_copies() -> None:
    program = Program()
    program.feed(1, [Laid(3, Gen("y"))])  # before its fork: queued
    program.feed(0, [Laid(0, SetVar("v", "1")), Laid(1, Text("a")), Laid(2, Fork((1, 2)))])
    program.feed(2, [Laid(4, Text("b")), Laid(5, Gen("y"))])
    made = calls(program.advance())
    assert sorted((c.branch, program.branch(c.branch).text) for c in made) == [(1, "a"), (2, "ab")]
    assert program.branch(2).variables == {"v": "1"}


def test_join_gathers_only_new_variables_in_branch_order() -> None:
    program = Program()
    program.feed(0, [Laid(0, SetVar("old", "o")), Laid(1, Fork((1, 2)))])
    program.feed(1, [Laid(2, Gen("y")), Laid(3, SetVar("old", "changed"))])
    program.feed(2, [Laid(4, Gen("y"))])
    program.feed(0, [Laid(5, Join((1, 2))), Laid(6, Text("after"))])
    by_branch = {call.branch: call for call in calls(program.advance())}
    program.reply(by_branch[2].id, Reply(("two",)))
    program.advance()
    assert program.branch(0).text == ""
    program.reply(by_branch[1].id, Reply(("one",)))
    program.advance()
    assert program.branch(0).variables == {"old": "o", "y": ["one", "two"]}
    assert (program.branch(0).text, program.idle) == ("after", True)


def test_concatenating_join_appends_only_what_the_children_had_at_the_join() -> None:
    program = Program()
    program.feed(0, [Laid(0, Text("root ")), Laid(1, Fork((1, 2)))])
    program.feed(1, [Laid(2, Text("one "))])
    program.feed(2, [Laid(3, Text("two "))])
    program.feed(0, [Laid(4, Join((1, 2), "concate_and_append"))])
    program.feed(1, [Laid(5, Text("later"))])
    program.advance()
    assert program.branch(0).text == "root one two "


def test_a_join_leaves_out_what_its_child_concatenated_later() -> None:
    program = Program()
    program.feed(0, [Laid(0, Fork((1,)))])
    program.feed(1, [Laid(1, Text("own ")), Laid(2, Fork((2,)))])
    program.feed(2, [Laid(3, Text("grandchild "))])
    program.feed(0, [Laid(4, Join((1,), "concate_and_append"))])
    program.feed(1, [Laid(5, Join((2,), "concate_and_append"))])
    program.feed(0, [Laid(6, Gen())])
    while made := calls(program.advance()):
        program.reply(made[0].id, Reply(("end",)))
    assert (program.branch(0).text, program.branch(1).text) == ("own end", "own grandchild ")


def test_a_ref_means_the_definition_that_was_laid_before_it() -> None:
    program = Program()
    program.feed(0, [Laid(0, SetVar("x", "first")), Laid(1, Fork((1,))), Laid(2, SetVar("x", "second"))])
    program.feed(1, [Laid(3, Ref(1, "x")), Laid(4, Ref(0, "x"))])
    program.advance()
    assert program.branch(1).text == "firstsecond"


def test_a_ref_waits_for_another_branch() -> None:
    program = Program()
    program.feed(0, [Laid(0, Fork((1,))), Laid(1, Gen("x"))])
    program.feed(1, [Laid(2, Text("got ")), Laid(3, Ref(0, "x"))])
    (call,) = calls(program.advance())
    assert not program.idle
    program.reply(call.id, Reply(("X",)))
    program.advance()
    assert program.branch(1).text == "got X"


def test_frames_come_from_the_template_with_its_default_system() -> None:
    program = Program(CHATML)
    nodes: list[Any] = [
        RoleBegin("user"),
        Text("hi"),
        RoleEnd("user"),
        RoleBegin("assistant"),
        Gen("x"),
        RoleEnd("assistant"),
    ]
    program.feed(0, [Laid(i, node) for i, node in enumerate(nodes)])
    (call,) = calls(program.advance())
    assert program.branch(0).text == "<s><|system|>You help.<|end|><|user|>hi<|end|><|assistant|>"
    program.reply(call.id, Reply((" yes",)))
    program.advance()
    assert program.branch(0).messages() == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ]


def test_no_default_system_before_a_system_message_and_plain_frames_without_template() -> None:
    nodes: list[Any] = [
        RoleBegin("system"),
        Text("s"),
        RoleEnd("system"),
        RoleBegin("tool"),
        Text("t"),
        RoleEnd("tool"),
    ]
    program = Program(CHATML)
    program.feed(0, [Laid(i, node) for i, node in enumerate(nodes)])
    program.advance()
    assert program.branch(0).text == "<s><|system|>s<|end|>TOOL: t\n"


def test_only_frames_and_literals_outside_roles_may_hold_special_tokens() -> None:
    program = Program(CHATML)
    nodes: list[Any] = [Text("<s>"), SetVar("v", "<s>"), Ref(0, "v"), RoleBegin("user"), Text("<s>"), RoleEnd("user")]
    nodes += [Gen(), Select("c", ("<s>",))]
    program.feed(0, [Laid(i, node) for i, node in enumerate(nodes)])
    for _ in range(2):
        program.reply(calls(program.advance())[0].id, Reply(("<s>",)))
    program.advance()
    found = [(s.origin, s.special) for s in program.branch(0).segments]
    assert found == [
        ("literal", True),
        ("literal", False),
        ("frame", True),
        ("frame", True),
        ("literal", False),
        ("frame", True),
        ("gen", False),
        ("select", False),
    ]


def test_a_scope_captures_text_and_generations() -> None:
    program = Program()
    program.feed(0, [Laid(0, Text("a")), Laid(1, ScopeBegin("z")), Laid(2, Text("b")), Laid(3, Gen())])
    program.feed(0, [Laid(4, ScopeEnd("z"))])
    program.reply(calls(program.advance())[0].id, Reply(("c",)))
    program.advance()
    assert program.branch(0).variables == {"z": "bc"}


def test_a_failed_node_fails_its_branch_its_waiters_and_its_unborn_children_with_the_first_cause() -> None:
    program = Program()
    program.feed(0, [Laid(0, Fork((1, 2)))])
    program.feed(1, [Laid(1, Gen("x")), Laid(2, Text("t")), Laid(3, Fork((3,)))])
    program.feed(2, [Laid(4, Ref(1, "x"))])
    program.feed(3, [Laid(5, Text("never"))])
    program.feed(0, [Laid(6, Join((1, 2)))])
    (call,) = calls(program.advance())
    program.fail(call.id, "boom", "it broke")
    failed = failures(program.settle())
    assert set(failed) == {1, 2, 3, 4, 5, 6}
    assert failed[1].code == "boom"
    assert {failed[n].code for n in (2, 3, 4, 5, 6)} == {"branch_failed"}
    assert {failed[n].cause for n in failed} == {1}
    assert "it broke" in failed[6].message
    program.feed(1, [Laid(7, Text("later"))])
    assert failures(program.advance())[7].cause == 1


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ([RoleBegin("user"), RoleBegin("assistant")], "nested_role"),
        ([RoleEnd("user")], "role_mismatch"),
        ([ScopeEnd("z")], "scope_mismatch"),
        ([Fork((1, 1))], "bad_fork"),
        ([Fork((0,))], "bad_fork"),
        ([Fork((1,)), Fork((1,))], "bad_fork"),
        ([Fork((1,)), Join((1,), "sideways")], "bad_join"),
        ([Join((7,))], "no_such_branch"),
        ([Ref(0, "nothing")], "unknown_variable"),
        ([Ref(9, "nothing")], "unknown_variable"),
        ([Ref(0, "x"), Gen("x")], "deadlock"),
        ([Gen("x", params=SamplingParams(n=2)), Ref(0, "x")], "bad_reference"),
    ],
)
def test_what_cannot_run_fails_with_its_reason(nodes: list[Any], code: str) -> None:
    program = Program()
    program.feed(0, [Laid(i, node) for i, node in enumerate(nodes)])
    out = program.settle()
    for call in calls(out):
        program.reply(call.id, Reply(("a", "b")))
        out += program.settle()
    assert code in {failure.code for failure in failures(out).values()}
    assert program.idle


def test_two_branches_that_wait_for_each_other_are_a_deadlock() -> None:
    program = Program()
    program.feed(0, [Laid(0, Fork((1, 2)))])
    program.feed(1, [Laid(1, Ref(2, "y")), Laid(2, SetVar("x", "1"))])
    program.feed(2, [Laid(3, Ref(1, "x")), Laid(4, SetVar("y", "1"))])
    assert {f.code for f in failures(program.settle()).values()} >= {"deadlock"}
    assert program.idle


def test_nodes_of_a_branch_that_nobody_forks_fail() -> None:
    program = Program()
    program.feed(5, [Laid(0, Text("lost"))])
    assert failures(program.settle())[0].code == "no_such_branch"


def test_cancelling_a_branch_stops_its_descendants_and_names_their_calls() -> None:
    program = Program()
    program.feed(0, [Laid(0, Fork((1, 2)))])
    program.feed(1, [Laid(1, Fork((3,))), Laid(2, Gen("a"))])
    program.feed(3, [Laid(3, Gen("b"))])
    program.feed(2, [Laid(4, Gen("c"))])
    made = {call.name: call for call in calls(program.advance())}
    assert set(program.cancel(1)) == {made["a"].id, made["b"].id}
    out = program.advance()
    assert {(f.node, f.code) for f in failures(out).values()} == {(2, "cancelled"), (3, "cancelled")}
    program.reply(made["a"].id, Reply(("too late",)))
    assert program.advance() == []
    program.reply(made["c"].id, Reply(("C",)))
    program.advance()
    assert program.branch(2).variables == {"c": "C"}


def test_closing_fails_everything_and_later_nodes_too() -> None:
    program = Program()
    program.feed(0, [Laid(0, Gen("x")), Laid(1, Text("t"))])
    (call,) = calls(program.advance())
    assert program.close() == [call.id]
    program.feed(0, [Laid(2, Text("u"))])
    assert {f.code for f in failures(program.advance()).values()} == {"closed"}
    assert program.idle


def test_captures_are_variables_and_those_left_out_are_none_or_no_texts() -> None:
    program = Program()
    program.feed(0, [Laid(0, Gen("whole", constraint=TURN)), Laid(1, Ref(0, "a")), Laid(2, Ref(0, "b"))])
    (call,) = calls(program.advance())
    assert call.constraint == TURN
    program.reply(call.id, Reply(("text",), captures={"a": "A", "unknown": "U"}))
    captures = {"a": "A", "b": None, "c": []}
    assert NodeDone(0, 0, ("text",), (), captures) in program.advance()
    assert program.branch(0).variables == captures | {"whole": "text"}
    assert program.branch(0).text == "textA"


def test_captures_of_several_samples_are_lists() -> None:
    program = Program()
    program.feed(0, [Laid(0, Gen(params=SamplingParams(n=2), constraint=TURN))])
    (call,) = calls(program.advance())
    program.capture(call.id, "a", "A")
    assert not program.settled(0, "a")
    program.reply(call.id, Reply(("p", "q"), captures={"a": ["A", "AA"], "c": [None, ["C"]]}))
    program.advance()
    assert program.branch(0).variables == {"a": ["A", "AA"], "b": [None, None], "c": [[], ["C"]]}


def test_a_capture_is_settled_before_its_node() -> None:
    program = Program()
    program.feed(0, [Laid(0, Fork((1,))), Laid(1, Gen("whole", constraint=TURN)), Laid(2, Text("!"))])
    program.feed(1, [Laid(3, Ref(0, "b")), Laid(4, Ref(0, "whole"))])
    (call,) = calls(program.advance())
    program.capture(call.id, "b", "B")
    program.capture(call.id, "nothing", "N")
    program.advance()
    assert program.settled(1, "b") and not program.settled(1, "whole") and not program.settled(1)
    assert (program.value(1, "b"), program.branch(1).text, program.branch(0).text) == ("B", "B", "")
    program.reply(call.id, Reply(("text",), captures={"a": "A", "b": "B"}))
    program.advance()
    assert (program.branch(1).text, program.branch(0).text) == ("Btext", "text!")
    program.capture(call.id, "b", "late")
    assert program.value(1, "b") == "B"


def test_a_settled_capture_outlives_the_failure_of_its_node() -> None:
    program = Program()
    program.feed(0, [Laid(0, Fork((1,))), Laid(1, Gen(constraint=TURN))])
    program.feed(1, [Laid(2, Text("x")), Laid(3, Ref(0, "a")), Laid(4, Ref(0, "b"))])
    (call,) = calls(program.advance())
    program.capture(call.id, "a", "A")
    program.fail(call.id, "boom", "")
    assert {node: failure.code for node, failure in failures(program.advance()).items()} == {
        1: "boom",
        4: "branch_failed",
    }
    assert (program.value(1, "a"), program.branch(1).text) == ("A", "xA")
    assert isinstance(program.value(1, "b"), NodeFailed)


def test_numbers_must_ascend_and_be_used_once() -> None:
    program = Program()
    program.feed(0, [Laid(3, Fork((1,)))])
    with pytest.raises(ValueError, match="ascend"):
        program.feed(0, [Laid(2, Text("a"))])
    with pytest.raises(ValueError, match="once"):
        program.feed(1, [Laid(3, Text("a"))])


def test_a_chain_of_five_thousand_forks_fails_without_recursion() -> None:
    program = Program()
    for depth in range(5000):
        program.feed(depth, [Laid(2 * depth, Gen()), Laid(2 * depth + 1, Fork((depth + 1,)))])
    (call,) = calls(program.advance())
    program.fail(call.id, "boom", "")
    assert len(failures(program.settle())) == 10000


class _Author:
    """Lays random nodes in the order of their numbers, as a client does."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.laid: list[tuple[int, Laid]] = []
        self.branches = [0]
        self.children: dict[int, list[int]] = {}
        self.names: dict[int, list[str]] = {0: []}

    def lay(self) -> None:
        branch = self.random.choice(self.branches)
        kind = self.random.choice("ttggsrrfjvw")
        name = self.random.choice("abc")
        number = len(self.laid)
        if kind == "t":
            node: Any = Text(f"[{number}]")
        elif kind in "gs":
            if kind == "g" and self.random.random() < 0.3:
                node = Gen(constraint=Capture(name, Regex("x")))
            else:
                node = Gen(name) if kind == "g" else Select(name, ("p", "q"))
            self.names[branch].append(name)
        elif kind == "r":
            other = self.random.choice(self.branches)
            known = self.names[other]
            node = Ref(other, self.random.choice(known)) if known else Text("nothing to refer to")
        elif kind == "v":
            node = SetVar(name, f"v{number}")
            self.names[branch].append(name)
        elif kind == "f" and len(self.branches) < 12:
            new = [len(self.branches) + i for i in range(self.random.randint(1, 3))]
            self.branches += new
            self.children.setdefault(branch, []).extend(new)
            self.names.update({child: list(self.names[branch]) for child in new})
            node = Fork(tuple(new))
        elif kind == "j" and self.children.get(branch):
            mode = self.random.choice(["gather_variable", "concate_and_append"])
            node = Join(tuple(self.children.pop(branch)), mode)
        else:
            node = Text("w")
        self.laid.append((branch, Laid(number, node)))


def _execute(author: _Author, seed: int, fail_share: float) -> tuple[dict[int, str], dict[int, str]]:
    """Texts of all branches and codes of failed nodes, with replies in random order and random feeding."""
    rng = random.Random(seed)
    program = Program()
    todo = list(author.laid)
    waiting: list[Call] = []
    failed: dict[int, str] = {}
    finished: set[int] = set()
    captured: set[int] = set()
    while todo or waiting:
        if todo and (not waiting or rng.random() < 0.5):
            count = rng.randint(1, 4)
            for branch, laid in todo[:count]:
                program.feed(branch, [laid])
            todo = todo[count:]
        else:
            call = waiting.pop(rng.randrange(len(waiting)))
            if call.constraint is not None and call.id not in captured:  # some time before the reply, or the failure
                captured.add(call.id)
                waiting.append(call)
                program.capture(call.id, capture_names(call.constraint)[0], f"<{call.node}")
            elif random.Random(call.node).random() < fail_share:
                program.fail(call.id, "boom", f"node {call.node}")
            else:
                captures = dict.fromkeys(capture_names(call.constraint), f"<{call.node}")
                program.reply(call.id, Reply((f"<{call.node}>",), captures=captures))
        for output in program.settle():
            if isinstance(output, Call):
                waiting.append(output)
            else:
                assert output.node not in finished, "a node is finished once"
                finished.add(output.node)
                if isinstance(output, NodeFailed):
                    failed[output.node] = output.code
                    assert output.cause in failed
    assert program.idle
    assert finished == {laid.id for _, laid in author.laid}
    return {b: program.branch(b).text for b in author.branches}, failed


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.2]))
def test_outcome_does_not_depend_on_the_order_of_replies_or_arrival(seed: int, fail_share: float) -> None:
    author = _Author(seed)
    for _ in range(60):
        author.lay()
    texts, failed = _execute(author, 1, fail_share)
    for order in (2, 3):
        again, failed_again = _execute(author, order, fail_share)
        assert set(failed_again) == set(failed)
        assert again == texts


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_whatever_is_fed_every_node_is_finished_and_nothing_raises(data: st.DataObject) -> None:
    """Also nonsense: forward refs, double forks, joins of strangers, roles and scopes in disorder."""
    small = st.integers(0, 4)
    name = st.sampled_from(["a", "b"])
    node = st.one_of(
        st.builds(Text, st.just("t")),
        st.builds(Ref, small, name),
        st.builds(Gen, name),
        st.builds(Gen, name, constraint=st.just(TURN)),
        st.builds(RoleBegin, st.just("user")),
        st.builds(RoleEnd, st.just("user")),
        st.builds(ScopeBegin, name),
        st.builds(ScopeEnd, name),
        st.builds(SetVar, name, st.just("v")),
        st.builds(Fork, st.lists(small, min_size=1, max_size=2).map(tuple)),
        st.builds(Join, st.lists(small, min_size=1, max_size=2).map(tuple)),
    )
    fed = data.draw(st.lists(st.tuples(small, node), max_size=25))
    program = Program()
    finished: list[int] = []
    for number, (branch, item) in enumerate(fed):
        program.feed(branch, [Laid(number, item)])
    out = program.settle()
    while out:
        finished += [o.node for o in out if not isinstance(o, Call)]
        for call in calls(out):
            program.capture(call.id, "b", "early")
            program.reply(call.id, Reply(("r",), captures={"a": "A", "z": "nobody's"}))
        out = program.settle()
    assert sorted(finished) == list(range(len(fed)))
    assert program.idle
