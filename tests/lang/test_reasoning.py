"""Thinking is a variable of its own, and the transcript goes on with the answer alone."""

from __future__ import annotations

import re
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang.constraint import Capture, Tagged, walk
from branchwork.lang.ir import Gen, Reasoning
from branchwork.lang.reasoning import MODEL_TYPES, separate_reasoning, split

HARMONY = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42"
WRITTEN = {
    "deepseek-r1": "hm</think>\n\n42",
    "deepseek-v3": "<think>hm</think>42",
    "gemma4": "<|channel>thought\nhm<channel|>42",
    "glm45": "<think>hm</think>\n42",
    "gpt-oss": HARMONY,
    "interns1": "<think>hm</think>42",
    "kimi": "\u25c1think\u25b7hm\u25c1/think\u25b742",
    "kimi_k2": "<think>hm</think>42",
    "mimo": "<think>hm</think>42",
    "minimax": "hm</think>42",
    "mistral": "[THINK]hm[/THINK]42",
    "nemotron_3": "<think>hm</think>42",
    "qwen3": "<think>\nhm\n</think>\n\n42",
    "qwen3-thinking": "hm\n</think>\n\n42",
    "seed_oss": "<seed:think>hm</seed:think>42",
    "step3": "hm</think>42",
    "step3p5": "hm</think>42",
}
THINK = MODEL_TYPES["qwen3"]
BEGUN = MODEL_TYPES["deepseek-r1"]


def run(body: Any, script: Any) -> bw.ProgramState:
    return bw.function(body).run(backend=bw.ScriptedBackend(script))


def test_every_model_type_has_a_sample_here() -> None:
    assert set(WRITTEN) == set(MODEL_TYPES)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_answer_and_thinking_are_told_apart(model_type: str) -> None:
    assert split(WRITTEN[model_type], MODEL_TYPES[model_type]) == ("hm", "42")


@pytest.mark.parametrize(
    ("text", "how", "parts"),
    [
        ("42", THINK, ("", "42")),
        ("<think>cut off", THINK, ("cut off", "")),
        ("cut off", BEGUN, ("cut off", "")),
        ("<think>hm</think>42", BEGUN, ("hm", "42")),
        ("hm</think>write <think> to think</think>", BEGUN, ("hm", "write <think> to think</think>")),
        ("So: <think>hm</think>42", THINK, ("hm", "So: 42")),
        ("<think></think>\n\n42", THINK, ("", "42")),
        ("a</b>c", Reasoning("<b>", "</b>", begun=True), ("a", "c")),
    ],
)
def test_texts_that_are_not_as_usual(text: str, how: Reasoning, parts: tuple[str, str]) -> None:
    assert split(text, how) == parts


def test_the_turn_keeps_the_answer_and_what_was_written_before_it() -> None:
    def body(s: Any) -> None:
        s += bw.user("6 * 7?")
        s += bw.assistant(separate_reasoning("Answer: " + bw.gen("x") + ".", "Qwen3"))
        s += bw.user("Sure?" + bw.gen("next"))

    state = run(body, {"x": "<think>6 * 7 is 42</think>42", "next": "yes"})
    assert state["x"] == "42" and state["x_reasoning_content"] == "6 * 7 is 42"
    assert state.messages()[1] == {"role": "assistant", "content": "Answer: 42."}
    assert "think" not in state.text()


def test_samples_have_a_thinking_each() -> None:
    def body(s: Any) -> None:
        s += separate_reasoning(bw.gen("x", n=2), "deepseek-r1")

    state = run(body, {"x": [["a</think>1", "b</think>2"]]})
    assert state["x"] == ["1", "2"] and state["x_reasoning_content"] == ["a", "b"]


def test_gens_and_selects_beside_each_other_each_do_their_own() -> None:
    def body(s: Any) -> None:
        s += separate_reasoning(bw.gen("a") + " or " + bw.gen("b") + bw.select("c", ["!", "?"]), "qwen3")

    state = run(body, {"a": "<think>1</think>A", "b": "<think>2</think>B", "c": 1})
    assert (state["a_reasoning_content"], state["b_reasoning_content"]) == ("1", "2")
    assert state.text() == "A or B?" and "c_reasoning_content" not in state.live.machine.branch(0).variables


def test_a_typed_answer_is_read_without_its_thinking() -> None:
    def body(s: Any) -> None:
        s += separate_reasoning(bw.gen("x", type=int), "deepseek-r1")

    assert run(body, {"x": "six sevens</think>42"})["x"] == 42


def test_a_constraint_leaves_room_for_the_thinking_before_it() -> None:
    (plain,) = separate_reasoning(bw.gen("x"), "qwen3").items
    (tied,) = separate_reasoning(bw.gen("x", regex="[0-9]+"), "qwen3").items
    (tags,) = separate_reasoning(bw.gen("x", tags=[bw.tag("<call>", end="</call>")]), "qwen3").items
    assert isinstance(plain, Gen) and plain.constraint is None
    assert isinstance(tied, Gen) and tied.constraint != bw.gen("x", regex="[0-9]+").constraint
    assert isinstance(tags, Gen) and isinstance(tags.constraint, Tagged)


def test_captures_of_a_turn_stay_captures() -> None:
    (node,) = separate_reasoning(bw.turn("It is ", bw.gen("n", regex="[0-9]+"), name="t"), "deepseek-r1").items
    assert isinstance(node, Gen) and node.constraint is not None
    assert [found.name for found in walk(node.constraint) if isinstance(found, Capture)] == ["n"]


@pytest.mark.parametrize("model_type", ["gpt-9", None, ""])
def test_an_unknown_model_type_is_an_error_with_the_known_ones(model_type: str | None) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{model_type!r} of thinking; known: deepseek-r1")):
        separate_reasoning(bw.gen("x"), model_type)


def test_nothing_to_separate_is_an_error() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        separate_reasoning(None, "qwen3")  # type: ignore[arg-type]
