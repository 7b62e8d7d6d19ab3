"""What an author writes inside a program: gen, select, roles. Each returns a frozen node; nothing happens yet.

Knows: nodes, knobs and the spellings of them that SGLang programs use. Must not know: state, backends.
Mistakes that can be seen here (knobs, ranges, choices, constraints) are raised here, at the line that wrote them.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from branchwork.lang.asked import Pairs, asked, options_of, tagged
from branchwork.lang.choices import METHODS, token_length_normalized
from branchwork.lang.constraint import Choice, Grammar, Regex, Tag
from branchwork.lang.ir import Gen, Node, RoleBegin, RoleEnd, Select, Seq, flatten
from branchwork.lang.params import SamplingParams, merge, normalise

Expr = str | Node
_SPELLINGS = {"max_new_tokens": "max_tokens"}
_LOGPROBS = frozenset({"return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs"})
# knobs about where a text ends, which mean nothing for one of some choices
_MOOT = frozenset(
    {"max_tokens", "min_tokens", "stop", "stop_token_ids", "stop_regex", "ignore_eos", "jump_forward", "logprob_start"}
)
# the order of gen's knobs in SGLang, for those who give them by position
_ORDER = (
    "max_tokens",
    "min_tokens",
    "n",
    "stop",
    "stop_token_ids",
    "stop_regex",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "ignore_eos",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_text_in_logprobs",
)
_TYPED_ORDER = tuple(knob for knob in _ORDER if knob != "min_tokens")  # of gen_int and gen_string
KNOB_NAMES = frozenset(SamplingParams.__struct_fields__) | frozenset(_SPELLINGS) | _LOGPROBS


def knobs_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs in our spelling, checked. SGLang's names for them are understood too.

    return_logprob, or top_logprobs_num alone, asks for logprobs with so many alternatives; logprob_start_len >= 0 (the
    index of the first prompt token) also for prompt_logprobs. Texts always come with them: return_text_in_logprobs is
    moot.
    Raises TypeError and ValueError like params.normalise, TypeError when both spellings of a knob are given.
    """
    knobs = {name: value for name, value in given.items() if name not in _LOGPROBS and name not in _SPELLINGS}
    for theirs, ours in _SPELLINGS.items():
        if given.get(theirs) is not None:
            if knobs.get(ours) is not None:
                raise TypeError(f"{theirs} and {ours} are the same knob; give one of them")
            knobs[ours] = given[theirs]
    top = given.get("top_logprobs_num") or 0
    if given.get("return_logprob") or (top and given.get("return_logprob") is None):
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
    *by_position: Any,
    choices: Iterable[str] | Choice | None = None,
    choices_method: str | None = None,
    regex: str | re.Pattern[str] | Regex | None = None,
    json_schema: Any = None,
    grammar: str | Grammar | None = None,
    type: Any = None,
    dtype: Any = None,
    tags: Iterable[Tag] | None = None,
    think: Pairs | None = None,
    at_least_one: bool = False,
    **knobs: Any,
) -> Gen | Select:
    """Generate text, kept as variable `name` when it has one. The knobs are those of lang.params.SamplingParams.

    By position, knobs come in SGLang's order: max_tokens, min_tokens, n, stop ...

    At most one of these says what the text must be:
    regex: a pattern in Python's syntax that matches all of it. json_schema: a dict, JSON text or pydantic model class.
    grammar: Lark, GBNF or EBNF text. type: the variable is a value of this Python type (int, float, bool, Literal, an
    Enum, a dataclass, list[T] ...; str is any text). dtype: the same for int, float and bool as text; str is a quoted
    word. As in SGLang, a regex beside a dtype is left out, with a warning.
    tags: free text in which each tag(...), once begun, is constrained; sections between the texts of `think` are left
    alone; at_least_one: a tag has to occur.
    choices: with knobs that only make sense where something is drawn (temperature above 0, n, seed, logprobs, top_p,
    penalties ...), or given as a Choice, one of the texts is drawn; otherwise it is a select: all of them are scored,
    other knobs have no effect. Defaults given to run() make no difference to that.

    Raises TypeError for an unknown knob or several constraints, ValueError for a knob out of range, and for a
    constraint that cannot be: Invalid, Unsupported or TooBig (all ValueError).
    """
    check_name(name)
    checked = knobs_of(_placed(_ORDER, by_position, knobs))
    method = token_length_normalized if choices_method is None else choices_method
    if dtype is not None and regex is not None:
        warnings.warn(f"gen has both dtype and regex; only dtype={dtype!r} is used", stacklevel=2)
        regex = None
    if tags is None and (think is not None or at_least_one):
        raise TypeError("think and at_least_one say more about tags; give tags=[tag(...), ...] with them")
    given = {
        "regex": regex,
        "json_schema": json_schema,
        "grammar": grammar,
        "choices": choices,
        "type": type,
        "dtype": dtype,
        "tags": None if tags is None else tagged(tags, think, at_least_one),
    }
    found = asked(given)
    if isinstance(found.constraint, Choice) and choices is not None:
        if not _is_drawn(checked) and not isinstance(choices, Choice):
            return _select(name, found.constraint.options, method)
        if method != token_length_normalized:
            raise TypeError(f"choices_method={method!r} is for a select; these choices are drawn, not scored")
    readers = {} if found.read is None or name is None else {name: found.read}
    return Gen(name, checked, constraint=found.constraint, readers=readers)


def _placed(order: tuple[str, ...], values: tuple[Any, ...], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs with those given by position among them. Raises TypeError for too many, or one that is given twice."""
    if len(values) > len(order):
        raise TypeError(f"{len(values)} knobs by position; there are {len(order)}: {', '.join(order)}")
    placed = dict(zip(order, values))
    for name, value in placed.items():
        if value is not None and knobs.get(name) is not None:
            raise TypeError(f"{name} is given by position ({value!r}) and by name ({knobs[name]!r}); give one of them")
    return {**placed, **{name: value for name, value in knobs.items() if value is not None or name not in placed}}


def _is_drawn(knobs: Mapping[str, Any]) -> bool:
    """Whether a knob is set that has no meaning where nothing is drawn."""
    plain = SamplingParams(temperature=0.0)
    return any(value != getattr(plain, knob) for knob, value in knobs.items() if knob not in _MOOT)


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
    temperature: float | None = 0.0,
    choices_method: str | None = None,
) -> Select:
    """The one of `choices` that the model finds most likely here, by one of the scorers in lang.choices.

    Raises ValueError for no choices, an empty or a repeated one, an unknown method, or a temperature above 0.
    """
    check_name(name)
    if temperature is not None and temperature > 1e-5:
        raise ValueError(f"select takes the best choice, so temperature must be 0, got {temperature!r}")
    if choices is None:
        raise ValueError("select needs choices, a list of texts")
    method = token_length_normalized if choices_method is None else choices_method
    return _select(name, options_of(choices), method)


def _select(name: str | None, options: tuple[str, ...], method: str) -> Select:
    if method not in METHODS:
        raise ValueError(f"unknown choices_method {method!r}; known: {', '.join(METHODS)}")
    return Select(name, options, method)


def gen_int(name: str | None = None, *by_position: Any, **knobs: Any) -> Gen | Select:
    """gen(name, dtype=int, ...): the text of an integer; type=int makes an int of it."""
    return gen(name, dtype=int, **_placed(_TYPED_ORDER, by_position, knobs))


def gen_string(name: str | None = None, *by_position: Any, **knobs: Any) -> Gen | Select:
    """gen(name, dtype=str, ...): a quoted word."""
    return gen(name, dtype=str, **_placed(_TYPED_ORDER, by_position, knobs))


def check_name(name: str | None) -> None:
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
