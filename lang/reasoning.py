"""Thinking kept apart from the answer: how each kind of model marks it, and separate_reasoning for whole expressions.

Knows: markers, nodes, constraints. Must not know: backends, who generates.
"""

from __future__ import annotations

import msgspec

from branchwork.lang.constraint import Constraint, Free, Literal, Maybe, Regex, Sequence, Tagged
from branchwork.lang.ir import Gen, Node, Reasoning, Seq, flatten

_THINK = Reasoning("<think>", "</think>")
_THINK_BEGUN = Reasoning("<think>", "</think>", begun=True)  # the chat template, or habit, has opened it already
_GAP = Regex("[ \n]{0,4}")  # what models write between their thinking and an answer
# by the names that SGLang gives to kinds of models
MODEL_TYPES = {
    "deepseek-r1": _THINK_BEGUN,
    "deepseek-v3": _THINK,
    "gemma4": Reasoning("<|channel>thought\n", "<channel|>"),
    "glm45": _THINK,
    # one message of analysis, then one that is final
    "gpt-oss": Reasoning(
        "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>", begun=True
    ),
    "interns1": _THINK,
    "kimi": Reasoning("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    "kimi_k2": _THINK,
    "mimo": _THINK,
    "minimax": _THINK_BEGUN,
    "mistral": Reasoning("[THINK]", "[/THINK]"),
    "nemotron_3": _THINK,
    "qwen3": _THINK,
    "qwen3-thinking": _THINK_BEGUN,
    "step3": _THINK_BEGUN,
    "step3p5": _THINK_BEGUN,
}


def separate_reasoning(expr: str | Node, model_type: str | None = None) -> Seq:
    """`expr`, each gen in it keeping its thinking apart: `x` is the answer, `x_reasoning_content` the thinking.

    The transcript goes on with the answer alone. model_type: how the model marks its thinking, one of MODEL_TYPES.
    A constraint of a gen holds for its answer; the thinking before it is free. Streamed pieces are as the model wrote
    them. Raises ValueError for an unknown model_type, TypeError for what is no expression.
    """
    how = MODEL_TYPES.get((model_type or "").lower())
    if how is None:
        raise ValueError(f"unknown model_type {model_type!r} of thinking; known: {', '.join(MODEL_TYPES)}")
    return Seq(tuple(_apart(node, how) for node in flatten(expr)))


def thoughts_of(name: str) -> str:
    """The variable that gets the thinking of variable `name`."""
    return f"{name}_reasoning_content"


def split(text: str, how: Reasoning) -> tuple[str, str]:
    """(thinking, answer) of a whole generated text; an end that never came leaves no answer."""
    opened, closed = text.find(how.begin), text.find(how.end)
    if how.begun and (opened < 0 or 0 <= closed < opened):
        thinking, _, answer = text.partition(how.end)
        return thinking.strip(), answer.lstrip()
    before, begins, rest = text.partition(how.begin)
    if not begins:
        return "", text
    thinking, _, answer = rest.partition(how.end)
    return thinking.strip(), (before + answer).lstrip()


def _apart(node: Node, how: Reasoning) -> Node:
    if not isinstance(node, Gen):
        return node
    return msgspec.structs.replace(node, reasoning=how, constraint=_thought_before(node.constraint, how))


def _thought_before(answer: Constraint | None, how: Reasoning) -> Constraint | None:
    """Free thinking, then what the answer must be. Tags may be preceded by any text as they are."""
    if answer is None or isinstance(answer, Tagged):
        return answer
    thought = (Free((how.end,)), Literal(how.end), _GAP)
    if how.begun:
        return Sequence((*thought, answer))
    return Sequence((Maybe(Sequence((Literal(how.begin), *thought))), answer))
