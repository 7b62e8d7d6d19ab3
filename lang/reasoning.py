"""How models set their thinking apart from their answer, by the names SGLang programs use for them.

Knows: markers. Must not know: nodes, backends.
"""

from __future__ import annotations

from branchwork.lang.ir import Reasoning


def thoughts_of(name: str) -> str:
    """The variable that gets the thinking of variable `name`."""
    return f"{name}_reasoning_content"


def split(text: str, how: Reasoning) -> tuple[str, str]:
    """(thinking, answer) of a whole generated text; an end that never came leaves no answer."""
    if how.begun and how.begin not in text:
        thinking, _, answer = text.partition(how.end)
        return thinking.strip(), answer.lstrip()
    before, begins, rest = text.partition(how.begin)
    if not begins:
        return "", text
    thinking, _, answer = rest.partition(how.end)
    return thinking.strip(), (before + answer).lstrip()
