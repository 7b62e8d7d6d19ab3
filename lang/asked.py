"""What an author gives as regex=, json_schema=, grammar=, choices=, type= or tags=, as checked constraints.

Knows: the spellings, SGLang's among them, and what can be seen to be wrong without compiling. Must not know: nodes,
engines. Everything here runs at the author's line, so that is where its errors are raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from branchwork.lang import regex as regular
from branchwork.lang.constraint import (
    Choice,
    Constraint,
    Free,
    Grammar,
    Invalid,
    JsonSchema,
    Regex,
    Tag,
    Tagged,
    check,
)
from branchwork.lang.ir import sendable
from branchwork.lang.typed import model_schema, typed

QUOTED = r'"[\w\d\s]*"'  # what dtype=str stands for in SGLang
_FLAGS = {re.IGNORECASE: "i", re.MULTILINE: "m", re.DOTALL: "s", re.VERBOSE: "x"}
_DTYPES = {"int": int, "float": float, "bool": bool, "str": str}
Read = Callable[[str], Any]
Pairs = tuple[str, str] | Iterable[tuple[str, str]]


class Asked(NamedTuple):
    """constraint: None for any text. read: the typed value of a text, None where the text is the value."""

    constraint: Constraint | None = None
    read: Read | None = None


def asked(given: Mapping[str, Any]) -> Asked:
    """The constraint of the one way that is not None among regex, json_schema, grammar, choices, type, dtype, tags.

    Raises TypeError when there are several, and what the way in question raises: Invalid, Unsupported, TooBig,
    TypeError, ValueError.
    """
    ways = {name: value for name, value in given.items() if value is not None}
    if len(ways) > 1:
        raise TypeError(f"{' and '.join(f'{name}=' for name in ways)} are different constraints; give one of them")
    for name, value in ways.items():
        found = _WAYS[name](value)
        if found.constraint is not None:
            check(found.constraint)
        return found
    return Asked()


def regex_of(value: str | re.Pattern[str] | Regex) -> Regex:
    """Of a compiled pattern its flags count; \\w \\d \\s are ASCII unless it is a Regex that says otherwise."""
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        flags = "".join(letter for flag, letter in _FLAGS.items() if value.flags & flag)
        rest = re.sub(r"^\(\?[a-zA-Z]+\)", "", value.pattern)  # flags written inside are among value.flags too
        value = Regex(f"(?{flags}){rest}" if flags else rest)
    elif isinstance(value, str):
        value = Regex(value)
    if not isinstance(value, Regex):
        raise TypeError(f"regex takes a pattern as text, a compiled one or a Regex, got {value!r}")
    regular.parse(value.pattern, value.unicode)
    return value


def schema_of(value: Any) -> JsonSchema:
    """A dict, JSON text, a pydantic model class or a JsonSchema (whose schema may be any of these)."""
    if isinstance(value, JsonSchema):
        if value.whitespace not in ("spaced", "compact", "flexible"):
            raise Invalid(f"whitespace={value.whitespace!r} of a JsonSchema is none of spaced, compact, flexible")
        return msgspec.structs.replace(value, schema=schema_of(value.schema).schema)
    if hasattr(value, "model_json_schema"):
        value = model_schema(value)
    if isinstance(value, str):
        text = value
        try:
            value = json.loads(text)
        except ValueError as error:
            position = error.pos if isinstance(error, json.JSONDecodeError) else -1
            raise Invalid(f"json_schema is not JSON: {error}", position) from None
        except RecursionError:
            raise Invalid("json_schema is nested too deep") from None
    else:
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Invalid(f"json_schema cannot be written as JSON: {error}") from None
    if not isinstance(value, (dict, bool)):
        raise Invalid(f"a JSON Schema is an object, true or false, not {value!r}")
    return JsonSchema(text)


def grammar_of(value: str | Grammar) -> Grammar:
    """Text with `root ::=` is GBNF, or EBNF when it has signs of that; any other text is Lark."""
    if isinstance(value, str):
        value = Grammar(value, _syntax_of(value))
    if not isinstance(value, Grammar):
        raise TypeError(f"grammar takes a text or a Grammar, got {value!r}")
    rule = _FIRST_RULE.get(value.syntax)
    if rule is None:
        raise Invalid(f"unknown syntax {value.syntax!r} of a grammar; known: {', '.join(_FIRST_RULE)}")
    if not value.text.strip():
        raise Invalid("the grammar is empty")
    if not rule[0].search(value.text):
        raise Invalid(f"a {value.syntax} grammar begins with its rule {rule[1]!r}, which is missing")
    return value


_FIRST_RULE = {
    "lark": (re.compile(r"^\s*[?!]?start\b", re.MULTILINE), "start"),
    "gbnf": (re.compile(r"^\s*root\s*::=", re.MULTILINE), "root"),
    "ebnf": (re.compile(r"^\s*root\s*::=", re.MULTILINE), "root"),
}
_EBNF_SIGNS = re.compile(r"""/\*|#x[0-9A-Fa-f]|::=[^"\n]*'""")


def _syntax_of(text: str) -> str:
    if "::=" not in text:
        return "lark"
    return "ebnf" if _EBNF_SIGNS.search(text) else "gbnf"


def options_of(choices: Iterable[str] | Choice) -> tuple[str, ...]:
    """Raises ValueError for no choices, an empty or a repeated one, or a single text; TypeError for what is no text."""
    if isinstance(choices, str):
        raise ValueError(f"choices must be a list of texts, got the text {choices!r}")
    options = tuple(choices.options if isinstance(choices, Choice) else choices)
    if not options:
        raise ValueError("choices is empty; give at least one text")
    seen: set[str] = set()
    for index, option in enumerate(options):
        if not isinstance(option, str):
            raise TypeError(f"choices[{index}] must be a text, got {option!r}")
        if not option:
            raise ValueError(f"choices[{index}] is empty; every choice needs text to be scored")
        sendable(option)
        if option in seen:
            raise ValueError(f"choices[{index}] repeats {option!r}; every choice must differ")
        seen.add(option)
    return options


def tag(
    begin: str,
    *,
    end: str = "",
    regex: Any = None,
    json_schema: Any = None,
    grammar: Any = None,
    choices: Any = None,
    type: Any = None,
) -> Tag:
    """For gen(tags=[...]): once `begin` has been written, what the constraint allows and then `end` must follow.

    Without a constraint it is any text up to `end`.
    """
    if not isinstance(begin, str) or not begin or not isinstance(end, str):
        raise TypeError(f"a tag begins with a text and ends with one, got {begin!r} and {end!r}")
    found = asked(
        {"regex": regex, "json_schema": json_schema, "grammar": grammar, "choices": choices, "type": type}
    ).constraint
    if found is None and not end:
        raise Invalid(f"the tag {begin!r} needs a constraint or an end; as it is, it constrains nothing")
    return Tag(begin, Free((end,)) if found is None else found, end)


def tagged(tags: Iterable[Tag], think: Pairs | None, at_least_one: bool) -> Tagged:
    """think: one (begin, end) pair, or several, around sections in which nothing is constrained."""
    items = tuple(tags)
    for item in items:
        if not isinstance(item, Tag):
            raise TypeError(f"tags takes a list of tag(...), got {item!r} in it")
    return Tagged(items, at_least_one, pairs_of(think))


def pairs_of(think: Pairs | None) -> tuple[tuple[str, str], ...]:
    """One (begin, end) pair, or several, as several. Raises TypeError."""
    pairs: tuple[Any, ...] = tuple(think or ())
    if pairs and isinstance(pairs[0], str):
        pairs = (pairs,)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(side, str) for side in pair):
            raise TypeError(f"think takes a pair of texts such as ('<think>', '</think>'), got {pair!r}")
    return tuple((begin, end) for begin, end in pairs)


def _type(kind: Any) -> Asked:
    if kind is str:
        return Asked()
    found = typed(kind)
    return Asked(found.constraint, found.read)


def _dtype(kind: Any) -> Asked:
    kind = _DTYPES.get(kind, kind) if isinstance(kind, str) else kind
    if kind not in _DTYPES.values():
        raise TypeError(f"dtype takes int, float, bool or str, got {kind!r}; type= takes many more")
    return Asked(Regex(QUOTED) if kind is str else _type(kind).constraint)  # the value is text, as in SGLang


_WAYS: dict[str, Callable[[Any], Asked]] = {
    "regex": lambda value: Asked(regex_of(value)),
    "json_schema": lambda value: Asked(schema_of(value)),
    "grammar": lambda value: Asked(grammar_of(value)),
    "choices": lambda value: Asked(Choice(options_of(value))),
    "type": _type,
    "dtype": _dtype,
    "tags": lambda value: Asked(value),  # made by tagged()
}
