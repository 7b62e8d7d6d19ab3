"""Whole turns: what they become, when their parts can be read, and as what."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import threading
from typing import Any, Literal

import pytest

import branchwork as bw
from branchwork.lang.backend import Call, Closed, Emit, Reply
from branchwork.lang.constraint import Capture, Free, Maybe, Repeat, Sequence
from branchwork.lang.constraint import Literal as Words
from branchwork.lang.ir import Gen, bare
from branchwork.lang.transcript import Branch
from branchwork.lang.typed import typed


def run(body: Any, script: Any = ()) -> bw.ProgramState:
    return bw.function(body).run(backend=bw.ScriptedBackend(script))


def line_of(body: Any, marker: str) -> str:
    lines, first = inspect.getsourcelines(body)
    (offset,) = [i for i, line in enumerate(lines) if marker in line]
    return f"{__file__}:{first + offset}"


class Stepwise(bw.LocalBackend):
    """Closes the captures of every call one by one, each when it is let through, and then answers."""

    def __init__(self, text: str, captures: dict[str, Any]) -> None:
        super().__init__(self._perform, model="stepwise")
        self.text, self.captures = text, captures
        self.steps = asyncio.Semaphore(0)
        self.prompts: list[str] = []

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            bw.lang.loop.post(self.steps.release)

    async def _perform(self, call: Call, branch: Branch, emit: Emit) -> Reply:
        self.prompts.append(branch.text)
        if call.constraint is None:
            return Reply(("plain",))
        for name, value in self.captures.items():
            await self.steps.acquire()
            emit(Closed(name, value))
        await self.steps.acquire()
        return Reply((self.text,), ({"finish_reason": "stop"},), self.captures)


# --- what a turn becomes


def test_a_turn_is_one_gen_with_a_capture_for_each_part() -> None:
    node = bw.turn(
        "Name: ",
        bw.gen("name", regex="[A-Z][a-z]+"),
        ", " + bw.gen("age", type=int) + " years",
        bw.select("mood", [" sad", " glad"]),
        name="all",
        temperature=0.5,
        n=2,
    )
    assert node.constraint == Sequence(
        (
            Words("Name: "),
            Capture("name", bw.Regex("[A-Z][a-z]+")),
            Words(", "),
            Capture("age", typed(int).constraint),  # type: ignore[arg-type]
            Words(" years"),
            Capture("mood", bw.Choice((" sad", " glad"))),
        )
    )
    assert (node.name, node.knobs, set(node.readers)) == ("all", {"temperature": 0.5, "n": 2}, {"age"})


def test_optional_parts_repeats_and_turns_nest() -> None:
    inner = bw.turn("<", bw.gen("b", regex="b"), ">", name="inner")
    node = bw.turn(bw.repeat(bw.optional("a"), inner, least=1, most=3, separator=", "), bw.Regex("c"))
    b = Sequence((Words("<"), Capture("b", bw.Regex("b")), Words(">")))
    assert node.constraint == Sequence(
        (
            Repeat(Sequence((Maybe(Sequence((Words("a"),))), Capture("inner", b))), 1, 3, ", "),
            bw.Regex("c"),
        )
    )


@pytest.mark.parametrize(
    ("parts", "stops"),
    [
        (["Name: ", bw.gen("x"), "\nAge: "], ("\nAge: ",)),
        ([bw.gen("x", stop=["\n", "."]), "\nAge: "], ("\n", ".")),
        ([bw.gen("x", type=str)], ()),
        ([bw.gen("x", stop="\n")], ("\n",)),
        ([bw.gen("x"), bw.optional("!"), "?"], ("!", "?")),
        ([bw.gen("x"), bw.optional("!")], ("!",)),
        ([bw.gen("x"), bw.select("y", ["yes", "no"])], ("no", "yes")),
        ([bw.repeat("- ", bw.gen("x"), "\n"), "end"], ("\n",)),
        ([bw.repeat(bw.gen("x"), separator=", "), "."], (", ", ".")),
        ([bw.repeat("- ", bw.gen("x")), "."], ("- ", ".")),
        ([bw.turn("a", bw.gen("x")), "."], (".",)),
    ],
)
def test_free_text_ends_where_the_text_after_it_begins(parts: list[Any], stops: tuple[str, ...]) -> None:
    def free(constraint: Any) -> list[Free]:
        found = bw.lang.constraint.walk(constraint)
        return [leaf for leaf in found if isinstance(leaf, Free)]

    assert [leaf.stop for leaf in free(bw.turn(*parts).constraint)] == [stops]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: bw.turn(), ValueError, "at least one part"),
        (lambda: bw.turn(bw.gen("x", regex="a"), bw.gen("x", regex="b")), bw.Invalid, "two captures.*'x'"),
        (lambda: bw.turn(bw.gen("x", regex="a"), name="x"), bw.Invalid, "two captures.*'x'"),
        (lambda: bw.turn(bw.gen("x", regex="a", temperature=0)), TypeError, "temperature inside a turn"),
        (lambda: bw.turn(bw.gen("x", max_tokens=5)), TypeError, "max_tokens inside a turn"),
        (lambda: bw.turn(bw.gen("x", regex="a", stop="\n")), TypeError, "leave out its stop"),
        (lambda: bw.turn(bw.gen("x"), bw.gen("y", regex="a")), bw.Invalid, "'x' has no end"),
        (lambda: bw.turn(bw.gen("x", stop="\n"), "Age"), bw.Invalid, "'x' stops at .*begins 'Age'"),
        (lambda: bw.turn(bw.select("x", ["a"], choices_method="greedy_token_selection")), TypeError, "drawn"),
        (lambda: bw.turn(bw.user("x")), TypeError, "RoleBegin"),
        (lambda: bw.turn(5), TypeError, "int"),
        (lambda: bw.turn("a", tempo=1), TypeError, "tempo"),
        (lambda: bw.turn(bw.Regex("(")), bw.Invalid, "unterminated"),
        (lambda: bw.turn("a", name=""), TypeError, "name"),
        (lambda: bw.repeat("a", least=3, most=2), ValueError, "least=3"),
        (lambda: bw.repeat("a", most=0), ValueError, "most=0"),
        (lambda: bw.repeat("a", separator=None), TypeError, "separator"),  # type: ignore[arg-type]
        (lambda: "a" + bw.gen("x") + bw.optional("b"), TypeError, "Part"),
    ],
)
def test_mistakes_in_a_turn_are_raised_where_they_are_written(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


# --- reading


def test_every_part_of_a_turn_is_a_variable_and_typed_where_asked() -> None:
    @dataclasses.dataclass
    class Point:
        x: int
        y: int

    def body(s: bw.ProgramState) -> Any:
        s += "User: hi\n"
        s += bw.turn(
            "Name: ",
            bw.gen("name", regex="[A-Za-z]+"),
            ", age ",
            bw.gen("age", type=int),
            bw.optional(", called ", bw.gen("nick", regex="[a-z]+")),
            bw.optional(", size ", bw.gen("size", type=float)),
            ": ",
            bw.repeat(bw.gen("tags", type=Literal["a", "b", 1]), separator=" "),
            " ",
            bw.gen("point", type=Point),
            name="all",
        )
        assert "age" in s
        return s["name"] + "!", s["age"] + 1

    captures = {
        "name": "Ann",
        "age": "36",
        "size": "1.5",
        "tags": ["b", "1"],
        "point": '{"x":1,"y":2}',
    }
    state = run(body, captures)
    assert state.ret_value == ("Ann!", 37)
    assert state["nick"] is None
    assert (state["size"], state["tags"], state["point"]) == (1.5, ["b", 1], Point(1, 2))
    assert state["all"] == 'Name: Ann, age 36, size 1.5: b 1 {"x":1,"y":2}'
    assert state.text() == "User: hi\n" + state["all"]


def test_a_repeat_of_nothing_is_an_empty_list() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.turn("[", bw.repeat(bw.gen("xs", type=int), separator=","), "]", name="all")

    state = run(body, {"all": {"xs": []}})
    assert (state["xs"], state["all"]) == ([], "[]")


def test_samples_of_a_turn_are_lists_of_values() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.turn("<", bw.gen("age", type=int), bw.optional(" ", bw.gen("more", regex="a")), ">", name="all", n=2)
        s += bw.turn(bw.repeat(bw.gen("xs", type=int), separator=","), n=2)
        s += bw.gen("plain", type=bool, n=2)

    answers = [[{"age": "1"}, {"age": "2", "more": "a"}], [{"xs": ["1", "2"]}, {"xs": []}], ["True", "false"]]
    state = run(body, answers)
    assert (state["age"], state["more"], state["all"]) == ([1, 2], [None, "a"], ["<1>", "<2 a>"])
    assert state["xs"] == [[1, 2], []]
    assert state["plain"] == [True, False]
    assert len(state.meta("age")) == 2


def test_typed_gens_read_as_values_and_stand_as_text() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("n", type=int) + bw.gen("colour", type=Literal["red", "blue"])
        fork = s.fork(1)[0]
        fork += s.ref("n")
        fork += f"+{s['n'] + 1}"
        assert (fork.text(), fork["n"]) == ("7red7+8", 7)

    state = run(body, {"n": "7", "colour": "red"})
    assert (state["n"], state["colour"]) == (7, "red")
    assert "".join(state.text_iter("n")) == "7"


def test_what_was_cut_off_says_so_when_it_is_read_and_not_before() -> None:
    def body(s: bw.ProgramState) -> None:
        s += "x = "
        s += bw.gen("xs", type=list[int])  # cut off
        s += bw.gen("after")

    reply = Reply(("[1, 2",), ({"finish_reason": "length"},))
    state = run(body, [reply, "!"])
    assert state.text() == "x = [1, 2!"
    with pytest.raises(bw.ProgramError) as caught:
        state["xs"]
    error = caught.value
    assert (error.code, error.source, error.transcript) == ("incomplete", line_of(body, "# cut off"), "x = [1, 2!")
    assert "'[1, 2'" in error.message and "length" in error.message
    assert state.meta("xs") == {"finish_reason": "length"}


def test_a_part_that_a_cut_off_turn_did_not_reach_is_incomplete_unless_it_is_optional() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.turn(bw.gen("a", regex="a+"), ",", bw.gen("b", regex="b+"), bw.optional("!", bw.gen("c", regex="c")))

    state = run(body, [Reply(("aa,",), ({"finish_reason": "length"},), {"a": "aa"})])
    assert (state["a"], state["c"]) == ("aa", None)
    with pytest.raises(bw.ProgramError, match="ended before it"):
        state["b"]


# --- captures that come early


def test_a_part_can_be_read_before_the_turn_is_over() -> None:
    backend = Stepwise("Ann, 36", {"name": "Ann", "age": "36"})

    def body(s: bw.ProgramState) -> None:
        s += bw.turn(bw.gen("name", regex="[A-Za-z]+"), ", ", bw.gen("age", type=int), name="all")
        backend.step()
        assert s["name"] == "Ann"
        assert not s.live.machine.idle
        backend.step()
        assert s["age"] == 36
        assert not s.live.machine.idle
        backend.step()
        assert s["all"] == "Ann, 36"

    bw.function(body).run(backend=backend).sync()


def test_a_ref_to_a_part_goes_on_while_the_turn_is_under_way() -> None:
    backend = Stepwise("Ann, 36", {"name": "Ann", "age": "36"})

    def body(s: bw.ProgramState) -> None:
        fork = s.fork(1)[0]
        s += bw.turn(bw.gen("name", regex="[A-Za-z]+"), ", ", bw.gen("age", type=int))
        fork += "Dear "
        fork += s.ref("name")
        fork += bw.gen("letter")
        backend.step()
        assert fork["letter"] == "plain"
        assert not s.live.machine.idle
        backend.step(2)

    state = bw.function(body).run(backend=backend).sync()
    assert backend.prompts == ["", "Dear Ann"]
    assert state["age"] == 36


def test_a_ref_to_what_was_left_out_is_no_text() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.turn("a", bw.optional(bw.gen("x", regex="x")), name="all")
        s += "<"
        s += s.ref("x")
        s += ">"

    assert run(body, {"all": {}}).text() == "a<>"


def test_a_part_that_closed_stays_when_the_turn_fails_later() -> None:
    failing = threading.Event()

    async def execute(call: Call, branch: Branch, emit: Emit) -> Reply:
        emit(Closed("name", "Ann"))
        await asyncio.to_thread(failing.wait)
        raise RuntimeError("the machine broke")

    def body(s: bw.ProgramState) -> None:
        s += bw.turn(bw.gen("name", regex="[A-Za-z]+"), ", ", bw.gen("age", type=int))
        assert s["name"] == "Ann"
        failing.set()

    state = bw.function(body).run(backend=bw.LocalBackend(execute, model="failing"))
    with pytest.raises(bw.ProgramError, match="broke"):
        state["age"]
    assert state["name"] == "Ann"


def test_a_part_streams_in_one_piece_when_it_closes() -> None:
    backend = Stepwise("1,2 b", {"xs": ["1", "2"], "y": "b", "z": None})

    def body(s: bw.ProgramState) -> None:
        s += bw.turn(
            bw.repeat(bw.gen("xs", type=int), separator=","),
            " ",
            bw.gen("y", regex="b"),
            bw.optional(bw.gen("z", regex="c")),
        )

    state = bw.function(body).stream(backend=backend)
    backend.step()
    assert list(state.text_iter("xs")) == ["1", "2"]
    backend.step()
    assert list(state.text_iter("y")) == ["b"]
    assert not state.live.machine.idle
    backend.step(2)
    assert list(state.text_iter("z")) == []
    assert "".join(state.text_iter()) == "1,2 b"


def test_reading_asynchronously_waits_for_the_part_alone() -> None:
    backend = Stepwise("ab", {"a": "a", "b": "b"})

    async def body(s: bw.ProgramState) -> None:
        s += bw.turn(bw.gen("a", regex="a"), bw.gen("b", regex="b"))
        backend.step()
        assert await s.get("a") == "a"
        assert not s.live.machine.idle
        backend.step(2)

    asyncio.run(bw.function(body).arun(backend=backend)).sync()


# --- captures and branches


def test_children_inherit_parts_and_a_join_gathers_them_with_their_types() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.turn(bw.gen("seen", type=int), ".")
        forks = s.fork(2)
        forks += lambda i: bw.turn("#", bw.gen("n", type=int), bw.optional("!", bw.gen("bang", regex="a")))
        assert [fork["seen"] for fork in forks] == [3, 3]
        forks.join()
        s += "done"

    def answer(prompt: str, call: Call) -> Any:
        return {"seen": "3"} if not prompt else {"n": str(call.branch), "bang": "a" if call.branch == 2 else None}

    state = run(body, answer)
    assert (state["seen"], state["n"], state["bang"]) == (3, [1, 2], [None, "a"])
    assert state.text() == "3.done"


def test_a_join_of_typed_gens_and_of_samples_is_read_element_by_element() -> None:
    def body(s: bw.ProgramState) -> None:
        forks = s.fork(2)
        forks[0] += bw.gen("x", type=int)
        forks[1] += bw.gen("x")
        forks += bw.gen("y", type=int, n=2)
        forks.join()
        with s.copy() as inner:
            inner += bw.gen("z", type=bool)

    state = run(body, {"x": lambda prompt, call: "5", "y": lambda prompt, call: ["1", "2"], "z": "true"})
    assert state["x"] == [5, "5"]
    assert state["y"] == [[1, 2], [1, 2]]
    assert state["z"] == [True]


def test_an_executor_sees_the_constraint_and_nothing_of_the_types() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x", type=int) + bw.gen("y")

    backend = bw.ScriptedBackend(["1", "2"])
    state = bw.function(body).run(backend=backend).sync()
    node = bw.gen("x", type=int)
    assert isinstance(node, Gen) and node.readers and node.constraint is not None
    assert [call.constraint for call in backend.calls] == [node.constraint, None]
    assert not bare(state.live.records[0].node).readers


def test_a_turn_answered_without_its_parts_is_an_error_of_the_script() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.turn("a", bw.gen("x", regex="b"), name="all")

    with pytest.raises(bw.ProgramError, match="dict of its captures"):
        run(body, {"all": "ab"})["x"]
