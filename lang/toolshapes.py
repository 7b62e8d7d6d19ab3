"""What an answer with tool calls must look like: one constraint by which every call is valid from its first character.

Knows: formats of calls, JSON Schema as far as Python literals need it, constraints. Must not know: how calls are read,
backends, engines. A call that has begun names a tool, has arguments by that tool's schema, and ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from branchwork.lang.asked import schema_of
from branchwork.lang.callreading import kinds_of
from branchwork.lang.constraint import (
    Choice,
    Constraint,
    Free,
    Grammar,
    JsonSchema,
    Literal,
    Maybe,
    OneOf,
    Regex,
    Repeat,
    Tag,
    Tagged,
    check,
)
from branchwork.lang.constraint import Sequence as InOrder
from branchwork.lang.ir import Reasoning
from branchwork.lang.reasoning import thought_before
from branchwork.lang.toolformats import Format, ToolSpec, json_text, python_text

CHOICES = ("auto", "required", "none")
_DEPTH = 5  # levels of a schema that are followed into Python literals; what is deeper may be any literal
_INTEGER = r"-?(0|[1-9][0-9]{0,99})"  # Python reads no more than 4,300 digits, and makes infinity of 1e999
_PYTHON: dict[str, Constraint] = {
    "string": Regex(r'"([^"\\\x00-\x1f]|\\["\\nrt])*"'),
    "integer": Regex(_INTEGER),
    "number": Regex(_INTEGER + r"(\.[0-9]{1,99})?([eE][-+]?[0-9]{1,2})?"),
    "boolean": Choice(("True", "False")),
    "null": Literal("None"),
}
_ANY_PYTHON = Grammar(
    r"""start: value
value: STRING | NUMBER | "None" | "True" | "False" | list | dict
list: "[" (value (", " value)*)? "]"
dict: "{" (STRING ": " value (", " STRING ": " value)*)? "}"
STRING: /"([^"\\\x00-\x1f]|\\["\\nrt])*"/
NUMBER: /-?(0|[1-9][0-9]{0,99})(\.[0-9]{1,99})?([eE][-+]?[0-9]{1,2})?/
"""
)


def answer(
    form: Format,
    tools: Sequence[ToolSpec],
    choice: str = "auto",
    parallel: bool = True,
    reasoning: Reasoning | Sequence[Reasoning] | None = None,
) -> Constraint:
    """What an answer may be when there are `tools`.

    choice: "auto" leaves it to the model, with "required" it has to call one, with "none" it may not, the name of a
    tool asks for that one. parallel: several calls may come, otherwise at most one. reasoning: thinking before it, in
    which nothing counts as a call; several ways only where calls have an opener and may be several.

    Raises ValueError for no tools and for an unknown choice; what `check` raises.
    """
    named = {tool.name: tool for tool in tools}
    if not named:
        raise ValueError("there are no tools; give at least one")
    if choice not in CHOICES and choice not in named:
        raise ValueError(f"choice={choice!r} is none of {', '.join(CHOICES)}, nor a tool: {', '.join(named)}")
    found = list(tools) if choice in CHOICES else [named[choice]]
    thinking = (reasoning,) if isinstance(reasoning, Reasoning) else tuple(reasoning or ())
    shape = (_bare if form.bare else _marked)(form, found, choice, parallel)
    if isinstance(shape, Tagged):
        shape = Tagged(shape.tags, shape.at_least_one, tuple((how.begin, how.end) for how in thinking))
    begun = next((how for how in thinking if how.begun), None)
    if begun is not None and isinstance(shape, Tagged):
        shape = InOrder((Free((begun.end,)), Literal(begun.end), shape))
    elif thinking and not isinstance(shape, Tagged):
        shape = thought_before(shape, thinking[0]) or shape
    check(shape)
    return shape


def _marked(form: Format, tools: Sequence[ToolSpec], choice: str, parallel: bool) -> Constraint:
    """Any text, and calls where the opener stands in it."""
    opener, free = form.opener, Free((form.opener,))
    if choice == "none":
        return free
    if parallel and form.begin:
        return Tagged((Tag(opener, _section(form, tools, 0), ""),), choice != "auto")
    if parallel:
        return Tagged(tuple(Tag(opener, _after(opener, _call(form, tool)), "") for tool in tools), choice != "auto")
    rest = _section(form, tools, 1) if form.begin else OneOf(tuple(_after(opener, _call(form, t)) for t in tools))
    call = InOrder((free, Literal(opener), rest))
    return InOrder((Maybe(call) if choice == "auto" else call, free))


def _bare(form: Format, tools: Sequence[ToolSpec], choice: str, parallel: bool) -> Constraint:
    """Calls alone, or text that does not begin as they do."""
    if choice == "none":
        return _not_beginning(["[" if form.listed else "{"])
    if form.body == "json":
        begins = ['{ "type" : "function"', *(f'{{ "name" : {json_text(tool.name)}' for tool in tools)]
    else:
        begins = [f"[ {tool.name} (" for tool in tools]
    calls = _section(form, tools, 0 if parallel else 1)
    return calls if choice != "auto" else OneOf((calls, _not_beginning(begins)))


def _section(form: Format, tools: Sequence[ToolSpec], most: int) -> Constraint:
    """All calls of a row with what stands around them, but for the opener."""
    calls = [_call(form, tool) for tool in tools]
    inner: Constraint = Repeat(calls[0] if len(calls) == 1 else OneOf(tuple(calls)), 1, most, form.between)
    end = "" if form.bare else form.end
    around = ("[", f"]{end}") if form.listed else ("", end)
    return InOrder(tuple(part for part in (Literal(around[0]), inner, Literal(around[1])) if part != Literal("")))


def _after(opener: str, call: InOrder) -> Constraint:
    """A call without its opener, with which it begins."""
    first = call.parts[0]
    assert isinstance(first, Literal) and first.text.startswith(opener)
    return InOrder((Literal(first.text[len(opener) :]), *call.parts[1:]))


def _call(form: Format, tool: ToolSpec) -> InOrder:
    """One call from `each` to `close`; it begins with a literal."""
    schema = _closed(tool.parameters)
    match form.body:
        case "json":
            before = f'{form.each}{{"name": {json_text(tool.name)}, "{form.key}": '
            return InOrder((Literal(before), _json(schema), Literal(f"}}{form.close}")))
        case "named":
            first, *rest = form.label.format(name=tool.name, index="\0").split("\0")
            parts: list[Constraint] = [Literal(f"{form.each}{first}")]
            for text in rest:
                parts += [Regex("[0-9]{1,3}"), Literal(text)] if text else [Regex("[0-9]{1,3}")]
            parts += [Literal(form.sep), _json(schema), *([Literal(form.close)] if form.close else [])]
            return InOrder(tuple(parts))
        case "python":
            arguments = _items(schema, {}, "{key}=", 0)
            return InOrder((Literal(f"{tool.name}("), *arguments, Literal(")")))
    return _elements(form, tool, schema)


# --- JSON


def _json(schema: Mapping[str, Any]) -> JsonSchema:
    """White space as the model likes it: models learn `{"a": 1}`, and write nonsense where the spaces are forbidden."""
    return schema_of(JsonSchema(schema_of(dict(schema)).schema, whitespace="flexible"))


def _closed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments are an object; those that nobody asked for are left out, unless the schema speaks of them."""
    closed = {"additionalProperties": False} if "properties" in parameters or not parameters else {}
    return {"type": "object", **closed, **parameters}


# --- elements


def _elements(form: Format, tool: ToolSpec, schema: Mapping[str, Any]) -> InOrder:
    """The arguments in the order of the schema, each an element."""
    marks = form.marks
    assert marks is not None
    parts: list[Constraint] = [Literal(f"{form.each}{marks.call}{tool.name}{marks.named}")]
    properties = schema.get("properties")
    required = schema.get("required") or []
    for key, value in (properties if isinstance(properties, Mapping) else {}).items():
        shape = _element(value, schema, marks.valued)
        item = InOrder((Literal(f"{marks.key}{key}{marks.keyed}"), shape, Literal(marks.valued)))
        parts.append(item if key in required else Maybe(item))
    ending = f"{marks.end}{form.close}"
    return InOrder((*parts, Literal(ending)) if ending else tuple(parts))


def _element(value: Any, whole: Mapping[str, Any], end: str) -> Constraint:
    options = value.get("enum") if isinstance(value, Mapping) else None
    if isinstance(options, list) and options and all(isinstance(option, str) and option for option in options):
        return Choice(tuple(dict.fromkeys(options)))
    if "string" in kinds_of(value):
        return Free((end,))
    return _json({**value, **{key: whole[key] for key in ("$defs", "definitions") if key in whole}})


# --- Python literals


def _items(schema: Mapping[str, Any], definitions: Mapping[str, Any], written: str, depth: int) -> list[Constraint]:
    """Members of an object, separated by commas, in the order of the schema. written: how a key is, as {key}."""
    definitions = {**definitions, **(schema.get("$defs") or {}), **(schema.get("definitions") or {})}
    required = schema.get("required") or []
    items = [
        (
            InOrder((Literal(written.replace("{key}", key)), _literal(value, definitions, depth + 1))),
            key in required,
        )
        for key, value in (schema.get("properties") or {}).items()
    ]
    if not items:
        return []
    starts: list[Constraint] = []
    for index, (item, needed) in enumerate(items):
        after = [InOrder((Literal(", "), *other.parts)) for other, _ in items[index + 1 :]]
        rest = [part if items[index + 1 + n][1] else Maybe(part) for n, part in enumerate(after)]
        starts.append(InOrder((item, *rest)))
        if needed:
            break
    some = starts[0] if len(starts) == 1 else OneOf(tuple(starts))
    return [some if any(needed for _, needed in items) else Maybe(some)]


def _literal(schema: Any, definitions: Mapping[str, Any], depth: int) -> Constraint:
    """A value as a Python literal."""
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return _ANY_PYTHON
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _literal(definitions.get(reference.rpartition("/")[2]), definitions, depth + 1)
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return Choice(tuple(dict.fromkeys(map(python_text, values))))
    parts = [part for key in ("anyOf", "oneOf") for part in schema.get(key) or []]
    if parts:
        return OneOf(tuple(_literal(part, definitions, depth + 1) for part in parts))
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        return OneOf(tuple(_literal({**schema, "type": one}, definitions, depth) for one in kind))
    if kind == "array":
        least, most = int(schema.get("minItems") or 0), int(schema.get("maxItems") or 0)
        if schema.get("maxItems") == 0:
            return Literal("[]")
        item = _literal(schema.get("items"), definitions, depth + 1)
        return InOrder((Literal("["), Repeat(item, least, most, ", "), Literal("]")))
    if kind == "object" and schema.get("properties"):
        return InOrder((Literal("{"), *_items(schema, definitions, '"{key}": ', depth), Literal("}")))
    return _PYTHON.get(kind, _ANY_PYTHON) if isinstance(kind, str) else _ANY_PYTHON


# --- text


def _not_beginning(texts: Sequence[str]) -> Regex:
    """Any text that does not begin, after white space, with one of `texts`; it may end as the beginning of one.

    A text is words separated by spaces, between which there may be white space.
    """
    ways: list[str] = []
    waiting = [("", tuple(texts))]  # what the text begins with, and what of `texts` begins with that
    while waiting:
        begun, left = waiting.pop()
        gap = r"\s*" if not begun or left[0].startswith(" ") else ""
        left = tuple(text.removeprefix(" ") for text in left)
        after = sorted({text[0] for text in left})
        shut = "".join(map(re.escape, after)) + (r"\s" if gap else "")
        ways.append(f"{begun}{gap}([^{shut}](?s:.)*)?")
        for char in after:
            rest = tuple(text[1:] for text in left if text[0] == char)
            if all(rest):
                waiting.append((f"{begun}{gap}{re.escape(char)}", rest))
    return Regex("|".join(ways))
