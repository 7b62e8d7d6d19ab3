"""Tracing: what only places text becomes a template, what computes on it is refused with its line."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang import ir


def prompt_of(x: Any) -> str:
    return f"[{x}]"


def shortened(x: Any) -> Any:
    text = f"long: {x}"
    return text if len(text) < 1000 else text[:1000]


def nested(x: Any, depth: int) -> str:
    return f"({nested(x, depth - 1)})" if depth else f"{x}"


def counted(x: Any, depth: int) -> str:
    return counted(x, depth - 1) if depth else str(len(f"{x}"))


@dataclasses.dataclass
class Pair:
    one: str
    two: str


@dataclasses.dataclass
class Computing:
    one: str

    @property
    def shown(self) -> str:
        return f"{self.one}".strip()


class Holder:
    text = ""

    def stripped(self) -> str:
        return f"{self.text}".strip()


COMPUTED: dict[str, Callable[[Any], Any]] = {
    "bool": lambda x: "yes" if x else "no",
    "not": lambda x: str(not x),
    "or": lambda x: x or "nothing",
    "equal": lambda x: "a" if x == "b" else "c",
    "equal reversed": lambda x: "a" if "b" == x else "c",  # noqa: SIM300
    "in text": lambda x: "a" if x in "some text" else "c",
    "in list": lambda x: "a" if x in ["b"] else "c",
    "in set": lambda x: "a" if x in {"b"} else "c",
    "contains": lambda x: "a" if "b" in x else "c",
    "len": lambda x: str(len(x)),
    "iteration": lambda x: "-".join(letter for letter in x),
    "slice": lambda x: x[:3],
    "int": lambda x: str(int(x)),
    "strip": lambda x: x.strip(),
    "split": lambda x: x.split()[0],
    "lower": lambda x: x.lower(),
    "startswith": lambda x: str(x.startswith("a")),
    "key": lambda x: {"a": "b"}.get(x, "c"),
    "sorted": lambda x: "".join(sorted([x, "b"])),
    "max": lambda x: max(x, "b"),
    "f-string strip": lambda x: f" {x} ".strip(),
    "f-string len": lambda x: "long" if len(f"{x}...") > 1000 else "short",
    "f-string in": lambda x: "a" if "b" in f"{x}?" else "c",
    "f-string of f-string": lambda x: f"{f'{x}!'.upper()}",
    "f-string width": lambda x: f"{x:>500}",
    "f-string repr": lambda x: f"{x!r}",
    "percent width": lambda x: "%500s|%s" % (x, x),  # noqa: UP031
    "percent of a dict": lambda x: "%(a).2s" % {"a": x},  # noqa: UP031
    "mapped helper": lambda x: "".join(map(shortened, [x])),
    "helper as key": lambda x: min([x], key=shortened),
    "helper as key of sort": lambda x: [x].sort(key=shortened),
    "template": lambda x: x % (),
    "format width": lambda x: "{:>500}".format(x),  # noqa: UP032
    "join then len": lambda x: str(len(", ".join([x, "b"]))),
    "replace": lambda x: "a-b".replace("-", x),
    "unbound method": lambda x: str.strip(x),
    "mapped method": lambda x: "".join(map(str.strip, [x])),
    "key function": lambda x: sorted([x, "a"], key=str.lower)[0],
    "partial": lambda x: functools.partial(shortened, x)(),
    "helper": shortened,
    "recursive helper": lambda x: counted(x, 2),
    "library": lambda x: textwrap.dedent(f"  {x}"),
    "json": lambda x: json.dumps({"q": x}),
    "property": lambda x: Computing(x).shown,
    "match": lambda x: (lambda: "a" if x == "b" else "c")(),
    "bytes": lambda x: str(x.encode()),
    "comparison": lambda x: "a" if x < "b" else "c",
}


@pytest.mark.parametrize("what", list(COMPUTED))
@pytest.mark.parametrize("kind", ["argument", "variable"])
def test_computing_on_unknown_text_runs_uncompiled_with_the_same_result(what: str, kind: str) -> None:
    compute = COMPUTED[what]

    @bw.function
    def body(s: Any, x: str) -> Any:
        s += bw.gen("given")
        s += str(compute(x if kind == "argument" else s["given"]))
        return s["given"]

    backend = bw.ScriptedBackend(lambda prompt, call: " 7b ")
    compiled = body.compile()
    assert len(compiled.notes) == 1 and "not compiled" in repr(compiled)
    assert "test_trace.py:" in compiled.notes[0], compiled.notes
    plain: list[Any] = []
    for run in (body.run, compiled.run):
        try:
            plain.append(run(" 7 ", backend=backend).text())
        except (TypeError, ValueError) as error:
            plain.append(str(error))
    assert plain[0] == plain[1]


PLACED: dict[str, Callable[[Any], Any]] = {
    "plain": lambda x: x,
    "f-string": lambda x: f"<{x}>",
    "nested f-string": lambda x: f"<{f'({x})'}>",
    "plus": lambda x: "a" + x + "b" + "c",
    "percent": lambda x: "100%% %s" % x,  # noqa: UP031
    "percent tuple": lambda x: "%s and %s" % (x, "b"),  # noqa: UP031
    "join": lambda x: ", ".join([x, "b", x]),
    "join by it": lambda x: x.join(["a", "b"]),
    "format": lambda x: "{} {y}".format(x, y=x),  # noqa: UP032
    "times": lambda x: x * 2,
    "helper": prompt_of,
    "recursive helper": lambda x: nested(x, 2),
    "comprehension": lambda x: "".join(f"{i}{x}" for i in range(3)),
    "str": lambda x: str(x) if isinstance(x, str) else "never",
    "record": lambda x: Pair(x, f"{x}!").two,
    "list": lambda x: [x, "b"][0],
    "dict value": lambda x: {"a": x}["a"],
    "partial": lambda x: functools.partial(prompt_of, x)(),
    "mapped": lambda x: "".join(map(prompt_of, [x, "b"])),
    "none": lambda x: "never" if x is None else x,
}


@pytest.mark.parametrize("what", list(PLACED))
def test_placing_text_is_compiled_with_the_same_result(what: str) -> None:
    place = PLACED[what]

    @bw.function
    def body(s: Any, x: str) -> Any:
        s += place(x) + bw.gen("y")
        s += "|" + place(s["y"]) + "|"
        return place(s["y"])

    compiled = body.compile()
    assert compiled.notes == ()
    backend = bw.ScriptedBackend(lambda prompt, call: f"({prompt})")
    for text in ("tea", "", " %s {} "):
        mine, theirs = compiled.run(text, backend=backend), body.run(text, backend=backend)
        assert mine.text() == theirs.text()
        assert mine.ret_value == theirs.ret_value


def test_an_except_in_the_body_does_not_hide_what_it_computes() -> None:
    @bw.function
    def body(s: Any, x: str) -> None:
        try:
            s += x.strip()
        except BaseException:
            s += "swallowed"

    compiled = body.compile()
    assert ".strip() needs to know argument 'x'" in compiled.notes[0]
    assert compiled.run(" a ", backend=bw.ScriptedBackend()).text() == "a"


def test_a_body_that_would_catch_a_failed_variable_is_not_compiled() -> None:
    @bw.function
    def body(s: Any) -> str:
        s += bw.gen("x")
        try:
            return f"{s['x']}"
        except bw.ProgramError:
            return "failed"

    assert "caught" in body.compile().notes[0]
    assert body.compile().run(backend=bw.ScriptedBackend(())).ret_value == "failed"


READS: dict[str, Callable[[Any], Any]] = {
    "text": lambda s: s.text(),
    "messages": lambda s: s.messages(),
    "meta": lambda s: s.meta("x"),
    "sync": lambda s: s.sync(),
    "error": lambda s: s.error(),
    "str": lambda s: str(s),
    "repr": lambda s: repr(s),
    "text_iter": lambda s: list(s.text_iter()),
    "cancel": lambda s: s.cancel(),
    "ret_value": lambda s: s.ret_value,
    "value": lambda s: s.value("x", int),
}


@pytest.mark.parametrize("what", list(READS))
def test_asking_how_a_run_goes_is_refused_with_its_line(what: str) -> None:
    read = READS[what]

    @bw.function
    def body(s: Any) -> None:
        s += "a" + bw.gen("x")
        read(s)

    assert "test_trace.py:" in body.compile().notes[0]


def test_what_is_no_plain_text_is_refused() -> None:
    @bw.function
    def typed(s: Any) -> None:
        s += bw.gen("n", type=int)
        s += f"{s['n']}"

    @bw.function
    def samples(s: Any) -> None:
        s += bw.gen("n", n=2)
        s += f"{s['n']}"

    @bw.function
    def older(s: Any) -> None:
        s += bw.gen("x")
        old = s["x"]
        s += bw.gen("x")
        s += old

    assert "'n' is not a plain text" in typed.compile().notes[0]
    assert "'n' is not a plain text" in samples.compile().notes[0]
    assert "older value" in older.compile().notes[0]


def test_symbols_in_names_stops_and_constraints_are_refused() -> None:
    @bw.function
    def name(s: Any, x: str) -> None:
        s += bw.gen(f"answer {x}")

    @bw.function
    def stop(s: Any, x: str) -> None:
        s += bw.gen("y", stop=x)

    @bw.function
    def drawn(s: Any, x: str) -> None:
        s += bw.gen("y", choices=[x, "b"], temperature=1.0)

    for program in (name, stop, drawn):
        assert "argument 'x' stands in a gen" in program.compile().notes[0]
        assert "test_trace.py:" in program.compile().notes[0]


def test_text_kept_on_an_object_is_refused() -> None:
    holder = Holder()

    @bw.function
    def body(s: Any, x: str) -> None:
        holder.text = x
        s += holder.stripped()

    assert "kept on an object" in body.compile().notes[0]


def test_a_body_that_differs_from_run_to_run_is_refused() -> None:
    turns: list[int] = []

    @bw.function
    def body(s: Any) -> None:
        turns.append(len(turns))
        s += f"turn {turns[-1]}" + bw.gen("x")

    assert "something else each time" in body.compile().notes[0]


def test_a_body_that_raises_on_symbols_runs_uncompiled() -> None:
    @bw.function
    def body(s: Any, x: Any) -> None:
        for i in range(x):
            s += str(i)

    compiled = body.compile()
    assert "TypeError" in compiled.notes[0] and "test_trace.py:" in compiled.notes[0]
    assert compiled.run(3, backend=bw.ScriptedBackend()).text() == "012"
    assert compiled.notes == ()  # with numbers it is compiled


def test_async_bodies_are_traced() -> None:
    @bw.function
    async def body(s: Any, x: str) -> Any:
        s += x + bw.gen("y")
        s += f"<{await s.get('y')}>"
        return await s.get("y")

    @bw.function
    async def sleeping(s: Any) -> None:
        await asyncio.sleep(0)
        s += "a"

    compiled = body.compile()
    assert compiled.notes == ()
    state = compiled.run("a", backend=bw.ScriptedBackend({"y": "b"}))
    assert state.text() == "ab<b>" and state.ret_value == "b"
    assert "awaits something other" in sleeping.compile().notes[0]


def test_a_program_run_inside_another_is_refused_and_not_run() -> None:
    backend = bw.ScriptedBackend({"x": "a"})

    @bw.function
    def inner(s: Any, x: str) -> None:
        s += x + bw.gen("x")

    @bw.function
    def outer(s: Any, x: str) -> None:
        s += inner.run(x, backend=backend)["x"]

    assert "inside the one that is traced" in outer.compile().notes[0]
    assert backend.prompts == []


def test_source_lines_and_nodes_of_a_trace_are_the_authors() -> None:
    @bw.function
    def body(s: Any, x: str) -> None:
        s += "a"
        s += x

    traced = body.trace()
    assert traced.template is not None
    assert [placed.node for placed in traced.template.nodes] == [ir.Text("a"), ir.Fill((0,))]
    lines = [source.rpartition(":")[2] for source in traced.template.sources]
    assert int(lines[1]) - int(lines[0]) == 1 and all("test_trace.py" in source for source in traced.template.sources)


def test_a_function_without_source_is_refused() -> None:
    space: dict[str, Any] = {}
    exec("def body(s, x):\n    s += x", space)
    program = bw.function(space["body"])
    assert "source" in program.compile().notes[0]
    assert program.compile().run("a", backend=bw.ScriptedBackend()).text() == "a"
