"""What an author writes inside a program: gen, select, roles. Each returns a frozen node; nothing happens yet.

Knows: nodes, knobs and the spellings of them that SGLang programs use. Must not know: state, backends.
Mistakes that can be seen here (unknown knobs, bad ranges, no choices) are raised here, at the line that wrote them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from branchwork.lang.choices import METHODS, token_length_normalized
from branchwork.lang.ir import Gen, Node, RoleBegin, RoleEnd, Select, Seq, flatten
from branchwork.lang.params import SamplingParams, merge, normalise

Expr = str | Node
_SPELLINGS = {"max_new_tokens": "max_tokens"}
_LOGPROBS = frozenset({"return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs"})
KNOB_NAMES = frozenset(SamplingParams.__struct_fields__) | frozenset(_SPELLINGS) | _LOGPROBS


def knobs_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs in our spelling, checked. SGLang's names for them are understood too.

    return_logprob asks for logprobs with top_logprobs_num alternatives; logprob_start_len >= 0 (the index of the
    first prompt token) also for prompt_logprobs. Texts always come with logprobs, so return_text_in_logprobs is moot.
    Raises TypeError and ValueError like params.normalise, TypeError when both spellings of a knob are given.
    """
    knobs = {name: value for name, value in given.items() if name not in _LOGPROBS and name not in _SPELLINGS}
    for theirs, ours in _SPELLINGS.items():
        if given.get(theirs) is not None:
            if knobs.get(ours) is not None:
                raise TypeError(f"{theirs} and {ours} are the same knob; give one of them")
            knobs[ours] = given[theirs]
    if given.get("return_logprob"):
        top = given.get("top_logprobs_num") or 0
        start = given.get("logprob_start_len")
        asked = {"logprobs": top}
        if start is not None and start >= 0:
            asked |= {"prompt_logprobs": top, "logprob_start": start}
        knobs = asked | {name: value for name, value in knobs.items() if value is not None}
    knobs = normalise(knobs)
    merge(knobs)
    for pattern in knobs.get("stop_regex", ()):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"stop_regex {pattern!r} is not a regular expression: {error}") from None
    return knobs


def gen(
    name: str | None = None,
    *,
    choices: Iterable[str] | None = None,
    choices_method: str = token_length_normalized,
    **knobs: Any,
) -> Gen | Select:
    """Generate text, kept as variable `name` when it has one. The knobs are those of lang.params.SamplingParams.

    With `choices` it is a select: the knobs have no effect then, for all choices are scored and nothing is drawn.
    Raises TypeError for an unknown knob, ValueError for one out of range.
    """
    _check_name(name)
    checked = knobs_of(knobs)
    if choices is not None:
        return _select(name, choices, choices_method)
    return Gen(name, checked)


gen.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # so that help() lists the knobs
    [
        *(p for p in inspect.signature(gen).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD),
        *(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None)
            for field in msgspec.structs.fields(SamplingParams)
        ),
    ]
)


def select(
    name: str | None = None,
    choices: Iterable[str] | None = None,
    temperature: float = 0.0,
    choices_method: str = token_length_normalized,
) -> Select:
    """The one of `choices` that the model finds most likely here, by one of the scorers in lang.choices.

    Raises ValueError for no choices, an empty or a repeated one, an unknown method, or a temperature above 0.
    """
    _check_name(name)
    if temperature > 1e-5:
        raise ValueError(f"select takes the best choice, so temperature must be 0, got {temperature!r}")
    if choices is None:
        raise ValueError("select needs choices, a list of texts")
    return _select(name, choices, choices_method)


def _select(name: str | None, choices: Iterable[str], method: str) -> Select:
    if isinstance(choices, str):
        raise ValueError(f"choices must be a list of texts, got the text {choices!r}")
    options = tuple(choices)
    if not options:
        raise ValueError("choices is empty; give at least one text")
    for index, option in enumerate(options):
        if not isinstance(option, str):
            raise TypeError(f"choices[{index}] must be a text, got {option!r}")
        if not option:
            raise ValueError(f"choices[{index}] is empty; every choice needs text to be scored")
        if option in options[:index]:
            raise ValueError(f"choices[{index}] repeats {option!r}; every choice must differ")
    if method not in METHODS:
        raise ValueError(f"unknown choices_method {method!r}; known: {', '.join(METHODS)}")
    return Select(name, options, method)


def _check_name(name: str | None) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise TypeError(f"a variable's name must be a non-empty text, got {name!r}")


def role(name: str, expr: Expr | None = None) -> Seq:
    """A whole message of role `name`."""
    return Seq((RoleBegin(name), *(flatten(expr) if expr is not None else ()), RoleEnd(name)))


def system(expr: Expr | None = None) -> Seq:
    return role("system", expr)


def user(expr: Expr | None = None) -> Seq:
    return role("user", expr)


def assistant(expr: Expr | None = None) -> Seq:
    return role("assistant", expr)


def system_begin() -> RoleBegin:
    return RoleBegin("system")


def system_end() -> RoleEnd:
    return RoleEnd("system")


def user_begin() -> RoleBegin:
    return RoleBegin("user")


def user_end() -> RoleEnd:
    return RoleEnd("user")


def assistant_begin() -> RoleBegin:
    return RoleBegin("assistant")


def assistant_end() -> RoleEnd:
    return RoleEnd("assistant")
