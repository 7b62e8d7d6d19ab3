"""Any constraint as the text of one llguidance grammar: terminals for what is regular, rules for the rest.

Knows: Lark as llguidance reads it, how its lexer cuts text. Must not know: vocabularies, matchers.

llguidance reads text as lexemes, each as long as possible. So neighbours that are regular become one terminal, inside
which they are matched as one regular expression, without that greed. Where a terminal meets JSON or a user's grammar
and could have swallowed its beginning, some right texts cannot be written: that is found out and reported.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import msgspec

from branchwork.lang.constraint import (
    Capture,
    Constraint,
    Grammar,
    Invalid,
    JsonSchema,
    Literal,
    Maybe,
    OneOf,
    Repeat,
    Sequence,
    Tagged,
    TooBig,
    Unsupported,
)
from branchwork.runtime.grammar.dialects import to_lark
from branchwork.runtime.grammar.emptiness import ask, slashed, swallows
from branchwork.runtime.grammar.frontend import regular, tree_of
from branchwork.runtime.grammar.schema import Normal, first_bytes, normalise, parse
from branchwork.runtime.grammar.tags import tagged

_NO_LIMIT = 10**9
_GREEDY = "text before {what} is read as far as it can: text that could also be its beginning never ends there"
ANY_BYTE = r"(?s:.)"


_LIMIT_WORDS = re.compile(r"fuel|too (many|big|large|complex|deep)|limit|exceed", re.I)
_UNSUPPORTED_WORDS = re.compile(r"unimplemented|supported|look-?around|cannot|priorit|template", re.I)
_PLACE = re.compile(r"(?m)^(?:at )?(\d+)\((\d+)\): ")


def refusal(message: str, text: str = "") -> Invalid | Unsupported | TooBig:
    """llguidance's complaint about a grammar as one of our errors. text: the grammar that its line numbers are of."""
    place = _PLACE.search(message)
    position = -1
    if place is not None:
        lines = text.split("\n")
        row = min(int(place[1]), len(lines)) - 1
        position = sum(len(line) + 1 for line in lines[:row]) + int(place[2]) - 1
        position = min(position, len(text))
        message = message[place.end() :]
    reason = message.strip().split("\n")[0][:300]
    if _LIMIT_WORDS.search(reason):
        return TooBig(f"the constraint is beyond llguidance's limits: {reason}")
    if _UNSUPPORTED_WORDS.search(reason):
        return Unsupported(reason, position)
    return Invalid(reason, position)


_WHITESPACE: dict[str, dict[str, Any]] = {  # as llguidance calls it
    "compact": {"whitespace_flexible": False},
    "spaced": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    "flexible": {"whitespace_flexible": True},
}


class JsonLeaf(msgspec.Struct, frozen=True):
    """A JSON value in the grammar: the name of its rule, and its schema as the user wrote it."""

    name: str
    schema: str


class Assembly(msgspec.Struct, frozen=True):
    """text: what LLMatcher takes. whole: the constraint is one JSON value and nothing else. leaves: empty unless some
    were approximated."""

    text: str
    approximations: tuple[str, ...]
    loose: bool
    leaves: tuple[JsonLeaf, ...]
    whole: bool
    seconds: float


def assemble(constraint: Constraint, *, strict: bool = False) -> Assembly:
    """Raises Invalid, Unsupported, TooBig. strict: Unsupported where anything would only be approximated."""
    began = time.perf_counter()
    builder = _Builder(strict)
    plain = _plain(constraint)
    builder.rules.insert(0, f"start: {builder.expression(plain) or _EMPTY}")
    lark = "\n".join(builder.rules) + "\n"
    text = lark
    if builder.grammars:
        text = json.dumps({"grammars": [{"name": "turn", "lark_grammar": lark}, *builder.grammars]})
    notes = tuple(dict.fromkeys(builder.notes))
    if strict and notes:
        raise Unsupported(notes[0], hint="leave strict out to have it approximated and the text validated")
    return Assembly(
        text,
        notes,
        builder.loose,
        tuple(builder.leaves) if notes else (),
        isinstance(plain, JsonSchema),
        time.perf_counter() - began,
    )


_EMPTY = '""'


def _plain(constraint: Constraint) -> Constraint:
    """Without captures, sequences inside sequences and sequences of one: what neighbours what is plain to see."""
    match constraint:
        case Capture(part=part):
            return _plain(part)
        case Sequence(parts):
            flat: list[Constraint] = []
            for part in map(_plain, parts):
                flat += part.parts if isinstance(part, Sequence) else (part,)
            return flat[0] if len(flat) == 1 else Sequence(tuple(flat))
        case OneOf(parts):
            return OneOf(tuple(map(_plain, parts)))
        case Maybe(part=part):
            return Maybe(_plain(part))
        case Repeat(part=part):
            return msgspec.structs.replace(constraint, part=_plain(part))
        case Tagged(tags=found):
            return msgspec.structs.replace(
                constraint, tags=tuple(msgspec.structs.replace(tag, content=_plain(tag.content)) for tag in found)
            )
    return constraint


def _leniently(schema: Any, options: dict[str, Any], fault: str) -> tuple[Normal, str]:
    """The schema as it was written, by llguidance's own lights: it says what it leaves out."""
    if not isinstance(schema, dict):
        raise refusal(fault)
    body = json.dumps({**schema, "x-guidance": {**options, "lenient": True}})
    matcher = ask(f"start: %json {body}\n")
    if matcher.is_error():
        raise refusal(fault)
    warnings = tuple(f"llguidance: {warning}" for warning in matcher.get_grammar_warnings())
    return Normal(schema, ("the schema is enforced in part", *warnings), True), body


class _Builder:
    """Collects rules while expressions are written down."""

    def __init__(self, strict: bool) -> None:
        self.rules: list[str] = []
        self.grammars: list[dict[str, str]] = []
        self.notes: list[str] = []
        self.leaves: list[JsonLeaf] = []
        self.loose = False
        self._strict = strict
        self._terminals: dict[str, str] = {}
        self._normals: dict[JsonSchema, tuple[Normal, str]] = {}

    def expression(self, constraint: Constraint) -> str:
        """What stands for a constraint on the right of a rule; "" for the empty text."""
        pattern = _pattern(constraint)
        if pattern is not None:
            return self.terminal(pattern)
        match constraint:
            case JsonSchema():
                return self._json(constraint)
            case Grammar(text=text, syntax=syntax):
                name, lark = f"user_{len(self.grammars)}", to_lark(text, syntax)
                if fault := str(ask(lark).get_error()):
                    raise refusal(fault, text if syntax == "lark" else "")
                self.grammars.append({"name": name, "lark_grammar": lark})
                return f"@{name}"
            case Sequence(parts):
                return self._sequence(parts)
            case OneOf(parts):
                return self.rule(" | ".join(self.expression(part) or _EMPTY for part in parts))
            case Maybe(part=part):
                return f"({self.expression(part)})?"
            case Repeat():
                return self._repeat(constraint)
            case Tagged():
                return self.rule(tagged(constraint, self))
        raise TypeError(f"{type(constraint).__name__} is not a constraint that llguidance has a rule for")

    def terminal(self, pattern: str) -> str:
        if not pattern:
            return ""
        if pattern not in self._terminals:
            self._terminals[pattern] = name = f"T{len(self._terminals)}"
            self.rules.append(f"{name}: {slashed(pattern)}")
        return self._terminals[pattern]

    def rule(self, body: str, options: str = "") -> str:
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}{options}: {body or _EMPTY}")
        return name

    def lexeme(self, body: str) -> str:
        """A terminal that is more than one pattern: with `&` and `~`."""
        name = f"T{len(self.rules)}_"
        self.rules.append(f"{name}: {body}")
        return name

    def _normal(self, leaf: JsonSchema) -> tuple[Normal, str]:
        """The schema that is enforced, and as what stands behind %json."""
        if leaf not in self._normals:
            options: dict[str, Any] = {
                **_WHITESPACE[leaf.whitespace],
                "json_allow_general_unicode_escapes": True,
            }
            schema = parse(leaf.schema)
            normal = normalise(schema)
            body = json.dumps({"x-guidance": options, **normal.schema})
            matcher = ask(f"start: %json {body}\n")
            if matcher.is_error():
                normal, body = _leniently(schema, options, matcher.get_error())
            self._normals[leaf] = normal, body
        return self._normals[leaf]

    def _json(self, leaf: JsonSchema) -> str:
        normal, body = self._normal(leaf)
        if (self._strict or leaf.strict) and normal.approximations:
            raise Unsupported(
                normal.approximations[0], hint="leave strict out to have it approximated and the text validated"
            )
        self.notes += normal.approximations
        self.loose |= normal.loose
        name = f"json_{len(self.leaves)}"
        self.leaves.append(JsonLeaf(name, leaf.schema))
        self.rules.append(f"{name}[capture]: %json {body}")
        return name

    def _sequence(self, parts: tuple[Constraint, ...]) -> str:
        words: list[str] = []
        run: list[Constraint] = []
        for part in parts:
            if _pattern(part) is not None:
                run.append(part)
                continue
            if run:
                words.append(self._run(run, part))
                run = []
            words.append(self.expression(part))
        if run:
            words.append(self._run(run, None))
        return " ".join(word for word in words if word)

    def _run(self, run: list[Constraint], after: Constraint | None) -> str:
        """Regular neighbours as one terminal; a note when it could swallow the beginning of what comes after."""
        pattern = _pattern(run[0] if len(run) == 1 else Sequence(tuple(run)))
        assert pattern is not None
        if after is not None and not all(isinstance(part, Literal) for part in run):
            first, what = ANY_BYTE, "a grammar"
            if isinstance(after, JsonSchema):
                first, what = f"[{first_bytes(self._normal(after)[0].schema)}]", "a JSON value"
            if swallows(pattern, first):
                self.notes.append(_GREEDY.format(what=what))
        return self.terminal(pattern)

    def _repeat(self, repeat: Repeat) -> str:
        item = f"({self.expression(repeat.part)})"
        if not repeat.separator or repeat.most == 1:
            return f"{item}{{{repeat.least},{repeat.most or ''}}}"
        more = f"({self.terminal(_quoted(repeat.separator))} {item})"
        least = max(repeat.least - 1, 0)
        body = f"{item} {more}{{{least},{repeat.most - 1 if repeat.most else ''}}}"
        return f"({body})" if repeat.least else f"({body})?"


def _pattern(constraint: Constraint) -> str | None:
    """The constraint as a Rust regular expression, or None when it is not regular."""
    found = regular(constraint, _NO_LIMIT) if tree_of(constraint) is not None else None
    if found is None:
        return None
    if not found.rust:
        raise Unsupported("look-ahead", hint="beside JSON and grammars, and in big constraints, regexes go without it")
    return found.pattern


def _quoted(text: str) -> str:
    found = _pattern(Literal(text))
    assert found is not None
    return found
