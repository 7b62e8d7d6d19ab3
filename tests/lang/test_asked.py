"""The ways to say what a text must be, and that whatever is wrong with one is said at the author's line."""

from __future__ import annotations

import enum
import json
import re
from typing import Any, Literal

import pytest

import branchwork as bw
from branchwork.lang.constraint import MAX_DEPTH, Free, Tag, Tagged, check
from branchwork.lang.ir import Gen, Select
from branchwork.lang.protocol import Nodes, decode_client, encode

GBNF = 'root ::= "a" item+\nitem ::= [0-9]'


@pytest.mark.parametrize(
    ("asked", "constraint"),
    [
        ({"regex": "a+"}, bw.Regex("a+")),
        ({"regex": re.compile("a.", re.I | re.S)}, bw.Regex("(?is)a.")),
        ({"regex": re.compile("(?i)a.", re.S)}, bw.Regex("(?is)a.")),
        ({"regex": bw.Regex(r"\w+", unicode=True)}, bw.Regex(r"\w+", unicode=True)),
        ({"json_schema": {"type": "null"}}, bw.JsonSchema('{"type": "null"}')),
        ({"json_schema": '{"type":"null"}'}, bw.JsonSchema('{"type":"null"}')),
        ({"json_schema": True}, bw.JsonSchema("true")),
        ({"json_schema": bw.JsonSchema("{}", "flexible", True)}, bw.JsonSchema("{}", "flexible", True)),
        ({"grammar": 'start: "a"'}, bw.Grammar('start: "a"', "lark")),
        ({"grammar": GBNF}, bw.Grammar(GBNF, "gbnf")),
        ({"grammar": "root ::= 'a' #x20"}, bw.Grammar("root ::= 'a' #x20", "ebnf")),
        ({"grammar": bw.Grammar(GBNF, "ebnf")}, bw.Grammar(GBNF, "ebnf")),
        ({"type": Literal["a", "b"]}, bw.Choice(("a", "b"))),
        ({"type": enum.Enum("E", {"A": "x"})}, bw.Choice(("x",))),
        ({"type": str}, None),
        ({"dtype": str}, bw.Regex(r'"[\w\d\s]*"')),
        ({"tags": [bw.tag("<a>", regex="b", end="</a>")]}, Tagged((Tag("<a>", bw.Regex("b"), "</a>"),))),
        ({"tags": [bw.tag("<a>", end="</a>")]}, Tagged((Tag("<a>", Free(("</a>",)), "</a>"),))),
    ],
)
def test_each_way_is_a_constraint_that_travels(asked: dict[str, Any], constraint: Any) -> None:
    node = bw.gen("x", max_tokens=5, **asked)
    assert isinstance(node, Gen)
    assert node.constraint == constraint
    sent = Nodes(0, 0, (bw.lang.ir.Laid(0, bw.lang.ir.bare(node)),))
    assert decode_client(encode(sent)) == sent


def test_dtype_and_its_shorthands_are_understood() -> None:
    for kind in ("int", int):
        asked = bw.gen("x", dtype=kind)
        assert asked == bw.gen_int("x") and isinstance(asked, Gen)
        assert asked.constraint == bw.gen("x", type=int).constraint and not asked.readers, "its value is text"
    assert bw.gen_string("x", max_tokens=3) == bw.gen("x", dtype=str, max_tokens=3)


def test_thinking_is_exempt_from_tags() -> None:
    tags = [bw.tag("<a>", type=int, end="</a>")]
    node = bw.gen("x", tags=tags, think=("<think>", "</think>"), at_least_one=True)
    assert isinstance(node, Gen) and isinstance(node.constraint, Tagged)
    assert node.constraint.exempt == (("<think>", "</think>"),)
    assert node.constraint.at_least_one


def test_a_pydantic_model_class_is_a_schema() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", size=(int, ...))
    node = bw.gen("x", json_schema=model)
    assert isinstance(node, Gen) and isinstance(node.constraint, bw.JsonSchema)
    assert json.loads(node.constraint.schema)["additionalProperties"] is False


@pytest.mark.parametrize(
    "knobs",
    [{"temperature": 0.7}, {"n": 2}, {"logprobs": 0}, {"seed": 3}, {"top_p": 0.5}, {"presence_penalty": 0.1}],
)
def test_choices_are_drawn_where_a_knob_asks_for_drawing(knobs: dict[str, Any]) -> None:
    node = bw.gen("x", choices=["a", "b"], **knobs)
    assert isinstance(node, Gen)
    assert (node.constraint, node.knobs) == (bw.Choice(("a", "b")), knobs)


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0}, {"max_tokens": 3}, {"stop": "\n"}, {"n": 1, "top_p": 1.0}])
def test_choices_are_scored_otherwise(knobs: dict[str, Any]) -> None:
    assert bw.gen("x", choices=["a", "b"], **knobs) == Select("x", ("a", "b"))


def test_choices_given_as_a_constraint_are_drawn() -> None:
    assert bw.gen("x", choices=bw.Choice(("a",))) == Gen("x", constraint=bw.Choice(("a",)))


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"regex": "a", "json_schema": {}}, TypeError, "regex= and json_schema="),
        ({"type": int, "choices": ["a"]}, TypeError, "choices= and type="),
        ({"regex": "("}, bw.Invalid, "unterminated"),
        ({"regex": r"(a)\1"}, bw.Unsupported, "reference"),
        ({"regex": r"(?<=a)b"}, bw.Unsupported, "behind"),
        ({"regex": 5}, TypeError, "5"),
        ({"regex": re.compile(b"a")}, TypeError, "pattern"),
        ({"json_schema": "{"}, bw.Invalid, "not JSON"),
        ({"json_schema": "[]"}, bw.Invalid, "object"),
        ({"json_schema": 5}, bw.Invalid, "object"),
        ({"json_schema": {"const": {1, 2}}}, bw.Invalid, "set"),
        ({"json_schema": {"const": float("nan")}}, bw.Invalid, "JSON"),
        ({"json_schema": "[" * 100_000}, bw.Invalid, "JSON|deep"),
        ({"json_schema": bw.JsonSchema("{}", "loose")}, bw.Invalid, "loose"),
        ({"grammar": ""}, bw.Invalid, "empty"),
        ({"grammar": "rule: A"}, bw.Invalid, "start"),
        ({"grammar": "item ::= [0-9]"}, bw.Invalid, "root"),
        ({"grammar": bw.Grammar("x", "yacc")}, bw.Invalid, "yacc"),
        ({"grammar": {}}, TypeError, "Grammar"),
        ({"type": complex}, TypeError, "complex"),
        ({"dtype": list}, TypeError, "dtype"),
        ({"choices": []}, ValueError, "empty"),
        ({"choices": ["a", "a"], "temperature": 1.0}, ValueError, "repeats"),
        ({"choices": ["a"], "temperature": 1.0, "choices_method": "greedy_token_selection"}, TypeError, "drawn"),
        ({"tags": []}, bw.Invalid, "without tags"),
        ({"tags": ["<a>"]}, TypeError, "tag"),
        ({"think": ("<think>", "</think>")}, TypeError, "tags"),
        ({"tags": [bw.tag("<a>", type=int)], "think": ("<think>",)}, TypeError, "pair"),
        ({"tags": [bw.tag("<a>", type=int)], "think": ("<think>", "")}, bw.Invalid, "exempt"),
        ({"jump_forward": "maybe"}, ValueError, "exact"),
        ({"jump_forward": 1}, ValueError, "exact"),
    ],
)
def test_what_is_wrong_is_said_by_gen_itself(asked: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        bw.gen("x", **asked)


def test_constraint_errors_are_errors_of_this_package_and_value_errors() -> None:
    for kind in (bw.Invalid, bw.Unsupported, bw.TooBig):
        assert issubclass(kind, bw.ConstraintError) and issubclass(kind, (bw.BranchworkError, ValueError))


def test_a_tag_that_constrains_nothing_is_refused() -> None:
    with pytest.raises(bw.Invalid, match="constrains nothing"):
        bw.tag("<a>")
    with pytest.raises(TypeError, match="begins"):
        bw.tag("", type=int)


def test_too_deep_a_constraint_is_refused_and_its_message_unreadable_rather_than_fatal() -> None:
    deep: Any = bw.Regex("a")
    for _ in range(MAX_DEPTH + 1):
        deep = bw.lang.constraint.Maybe(deep)
    with pytest.raises(bw.TooBig, match=str(MAX_DEPTH)):
        check(deep)
    node = encode(Nodes(0, 0, (bw.lang.ir.Laid(0, Gen(constraint=deep)),)))
    inner = b"\x82\xa1k\xa5maybe\xa4part"
    with pytest.raises(ValueError, match="deep"):
        decode_client(node.replace(inner, inner * 10_000, 1))


def test_the_jump_forward_knob_can_be_set_for_a_run_and_for_a_gen() -> None:
    def body(s: bw.ProgramState) -> None:
        s += bw.gen("x") + bw.gen("y", jump_forward="on")

    backend = bw.ScriptedBackend(["a", "b"])
    bw.function(body).run(backend=backend, jump_forward="off").sync()
    assert [call.params.jump_forward for call in backend.calls] == ["off", "on"]
