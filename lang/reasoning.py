"""Thinking kept apart from the answer: how each kind of model marks it, and separate_reasoning for whole expressions.

Knows: markers, what of them stands in a chat template, nodes, constraints. Must not know: backends, who generates.
"""

from __future__ import annotations

import msgspec

from branchwork.lang.constraint import Constraint, Free, Literal, Maybe, Regex, Sequence, Tagged
from branchwork.lang.ir import Gen, Node, Reasoning, Seq, flatten

THINK = Reasoning("<think>", "</think>")
THINK_BEGUN = Reasoning("<think>", "</think>", begun=True)  # the chat template, or habit, has opened it already
GAP = Regex("[ \n]{0,4}")  # what models write between their thinking and an answer
# by the names that SGLang gives to kinds of models
MODEL_TYPES = {
    "deepseek-r1": THINK_BEGUN,
    "deepseek-v3": THINK,
    "gemma4": Reasoning("<|channel>thought\n", "<channel|>"),
    "glm45": THINK,
    # one message of analysis, then one that is final
    "gpt-oss": Reasoning(
        "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>", begun=True
    ),
    "interns1": THINK,
    "kimi": Reasoning("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    "kimi_k2": THINK,
    "mimo": THINK,
    "minimax": THINK_BEGUN,
    "mistral": Reasoning("[THINK]", "[/THINK]"),
    "nemotron_3": THINK,
    "qwen3": THINK,
    "qwen3-thinking": THINK_BEGUN,
    "seed_oss": Reasoning("<seed:think>", "</seed:think>"),
    "step3": THINK_BEGUN,
    "step3p5": THINK_BEGUN,
}

# what stands in a template that marks thinking, and the row of MODEL_TYPES for it
_SIGNS = (
    ("[THINK]", "mistral"),
    ("<seed:think>", "seed_oss"),
    ("<|channel|>analysis", "gpt-oss"),
    ("<|channel>thought", "gemma4"),
    ("\u25c1think\u25b7", "kimi"),
    ("<think>", "qwen3"),
)


def reasoning_of(template: str | None, family: str = "", name: str = "") -> Reasoning | None:
    """How a model marks its thinking: the row `name` of MODEL_TYPES, else what stands in its chat template, and for
    one without a template the row of its family. None for a model that does not think.

    template: Jinja text. family: `model_type` of its configuration. Raises ValueError for a name that is no row's.
    """
    if name:
        return _row(name)
    if template is not None:
        return next((MODEL_TYPES[row] for sign, row in _SIGNS if sign in template), None)
    return MODEL_TYPES.get(family) or MODEL_TYPES.get(family.replace("_", "-"))


def after_prompt(how: Reasoning, prompt: str) -> Reasoning:
    """The same for an answer to this very prompt: its text starts inside the thinking where the prompt ends so."""
    return Reasoning(how.begin, how.end, begun=prompt.rstrip().endswith(how.begin.strip()))


def separate_reasoning(expr: str | Node, model_type: str | None = None) -> Seq:
    """`expr`, each gen in it keeping its thinking apart: `x` is the answer, `x_reasoning_content` the thinking.

    The transcript goes on with the answer alone. model_type: how the model marks its thinking, one of MODEL_TYPES.
    A constraint of a gen holds for its answer; the thinking before it is free. Streamed pieces are as the model wrote
    them. Raises ValueError for an unknown model_type, TypeError for what is no expression.
    """
    how = _row(model_type)
    return Seq(tuple(_apart(node, how) for node in flatten(expr)))


def _row(model_type: str | None) -> Reasoning:
    how = MODEL_TYPES.get((model_type or "").lower())
    if how is None:
        raise ValueError(f"unknown model_type {model_type!r} of thinking; known: {', '.join(MODEL_TYPES)}")
    return how


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
    return msgspec.structs.replace(node, reasoning=how, constraint=thought_before(node.constraint, how))


def thought_before(answer: Constraint | None, how: Reasoning) -> Constraint | None:
    """Free thinking, then what the answer must be. Tags may be preceded by any text as they are."""
    if answer is None or isinstance(answer, Tagged):
        return answer
    thought = (Free((how.end,)), Literal(how.end), GAP)
    if how.begun:
        return Sequence((*thought, answer))
    return Sequence((Maybe(Sequence((Literal(how.begin), *thought))), answer))
