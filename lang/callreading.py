"""Reading one tool call from a text that comes in pieces: JSON, a labelled JSON object, Python literals, elements.

Knows: the parts of a call in each format. Must not know: what is said around calls, events, models.
Readers are generators: they yield where they need more text, raise NoCall where the text is no call after all, and hand
on a call's name and its arguments as pieces of JSON as soon as they are certain.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from branchwork.lang.incoming import CLOSERS, GAP, SCALAR, NoCall, Put, Source, Steps, json_string, json_value
from branchwork.lang.toolformats import NAME, Format, Marks, json_text

_BLANK = re.compile(r"\s+")
_LETTERS = re.compile(r"[\w./-]+")
_WORDS = re.compile(r"[^()\[\]{}'\",]+")  # of a Python literal, outside its texts
_PYTHON_WORDS = {"None": "null", "True": "true", "False": "false"}
_LONGEST_LABEL = 300


class Sink(Protocol):
    """Where a call goes. begin: raises NoCall where no tool can have that name."""

    def begin(self, name: str) -> None: ...

    def put(self, arguments: str) -> None: ...

    def schema(self, key: str) -> Any:
        """The JSON Schema of an argument, None where nothing is known of it."""


def body(source: Source, form: Format, sink: Sink) -> Steps[None]:
    """Read the part of a call that lies between `each` and `close`. Raises NoCall."""
    match form.body:
        case "json":
            yield from _json_call(source, form.bare, sink)
        case "named":
            yield from _named_call(source, form, sink)
        case "python":
            yield from _python_call(source, sink)
        case "marks":
            assert form.marks is not None
            yield from _marked_call(source, form.marks, sink)


# --- JSON


def _next(source: Source) -> Steps[str]:
    """The next character after white space."""
    yield from source.all(GAP)
    return (yield from source.char())


def _text(source: Source) -> Steps[str]:
    """What a JSON string says."""
    pieces: list[str] = []
    yield from json_string(source, pieces.append)
    return str(json.loads("".join(pieces)))


def _json_call(source: Source, bare: bool, sink: Sink) -> Steps[None]:
    """An object with a name and arguments (or parameters), in any order and beside others.

    bare: nothing but a type comes before the name, so that an answer in JSON is soon seen to be one.
    """
    yield from source.need("{")
    name, arguments, begun = "", "", False
    seen: set[str] = set()
    more = (yield from _next(source)) != "}"
    while more:
        key = yield from _text(source)
        if key in seen or (bare and not name and key not in ("name", "type")):
            raise NoCall
        seen.add(key)
        yield from source.all(GAP)
        yield from source.need(":")
        char = yield from _next(source)
        if key == "name":
            name = yield from _text(source)
            if bare:
                sink.begin(name)
                begun = True
        elif key in ("arguments", "parameters") and not arguments:
            if char == "{" and name:
                if not begun:
                    sink.begin(name)
                begun, arguments = True, "{"
                yield from json_value(source, sink.put)
            else:
                arguments = yield from _arguments(source, char)
                if begun:
                    sink.put(arguments)
        else:
            yield from json_value(source, _nowhere)
        more = (yield from _next(source)) == ","
        if more:
            source.at += 1
            yield from source.all(GAP)
    yield from source.need("}")
    if not name:
        raise NoCall
    if not begun:
        sink.begin(name)
        sink.put(arguments)
    if not arguments:
        sink.put("{}")


def _arguments(source: Source, char: str) -> Steps[str]:
    """Arguments that come before the name, or as JSON within a JSON text, or as null."""
    pieces: list[str] = []
    yield from json_value(source, pieces.append)
    text = "".join(pieces)
    if char == '"':
        text = str(json.loads(text)).strip() or "{}"
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise NoCall from None
        if not isinstance(value, dict):
            raise NoCall
    elif char != "{":
        if text != "null":
            raise NoCall
        text = "{}"
    return text


def _nowhere(text: str) -> None:
    pass


def _named_call(source: Source, form: Format, sink: Sink) -> Steps[None]:
    sep = form.sep.strip()
    pieces: list[str] = []

    def put(piece: str) -> None:
        pieces.append(piece)
        if sum(map(len, pieces)) > _LONGEST_LABEL:
            raise NoCall

    if not (yield from source.until(re.compile(re.escape(sep)), (sep,), put)):
        raise NoCall(cut=True)
    label = _label(form.label).fullmatch("".join(pieces).strip())
    if label is None:
        raise NoCall
    yield from source.all(_BLANK)
    if (yield from source.char()) != "{":
        raise NoCall
    sink.begin(label["name"])
    yield from json_value(source, sink.put)


def _label(label: str) -> re.Pattern[str]:
    """What stands around the name may be missing; an id (Mistral's) may follow it."""
    before, after = label.split("{name}")
    after = re.escape(after).replace(re.escape("{index}"), "[0-9]+")
    return re.compile(rf"({re.escape(before)})?(?P<name>{NAME}?)({after})?(\[CALL_ID\]\w*)?")


# --- Python


def _python_call(source: Source, sink: Sink) -> Steps[None]:
    """name(key=literal, ...)"""
    name = yield from source.all(_LETTERS, 128)
    yield from source.need("(")
    sink.begin(name)
    sink.put("{")
    keys: list[str] = []
    yield from source.all(_BLANK)
    while (yield from source.char()) != ")":
        key = yield from source.all(_LETTERS, 128)
        yield from source.all(_BLANK)
        yield from source.need("=")
        if not key or key in keys:
            raise NoCall(cut=not (yield from source.peek()))
        value = json_of((yield from _literal(source)))
        sink.put(f"{', ' if keys else ''}{json_text(key)}: {value}")
        keys.append(key)
        if (yield from source.char()) != ",":
            break
        source.at += 1
        yield from source.all(_BLANK)
    yield from source.need(")")
    sink.put("}")


def _literal(source: Source) -> Steps[str]:
    """The text of an argument's value, up to the comma or bracket after it."""
    pieces: list[str] = []
    closers: list[str] = []
    while True:
        if piece := (yield from source.run(_WORDS)):
            pieces.append(piece)
            continue
        char = yield from source.char()
        if not closers and char in ",)":
            return "".join(pieces).strip()
        if char in "'\"":
            yield from _python_string(source, char, pieces.append)
            continue
        if char in CLOSERS:
            closers.append(CLOSERS[char])
        elif char != "," and (not closers or char != closers.pop()):
            raise NoCall
        source.at += 1
        pieces.append(char)


def _python_string(source: Source, quote: str, put: Put) -> Steps[None]:
    source.at += 1
    end = quote
    if (yield from source.take(quote)):
        if not (yield from source.take(quote)):
            put(quote * 2)
            return
        end = quote * 3
    put(end)
    plain = re.compile(rf"[^{quote}\\]+")
    while not (yield from source.take(end)):
        if piece := (yield from source.run(plain)):
            put(piece)
            continue
        piece = yield from source.char()
        source.at += 1
        if piece == "\\":
            piece += yield from source.char()
            source.at += 1
        put(piece)
    put(end)


def json_of(text: str) -> str:
    """A Python literal, or what JSON has in its place, as JSON. Raises NoCall."""
    if SCALAR.fullmatch(text):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that mean nothing, which regular expressions are full of
            return json_text(ast.literal_eval(text))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass  # true, false and null are no Python
    try:
        return json_text(json.loads(text))
    except (ValueError, RecursionError):
        raise NoCall from None


# --- elements


def _marked_call(source: Source, marks: Marks, sink: Sink) -> Steps[None]:
    """An element for each argument; what its schema calls a text is one, anything else is JSON."""
    yield from source.need(marks.call)
    name = yield from source.all(_LETTERS, 128)
    yield from source.all(_BLANK)
    yield from source.need(marks.named.strip())
    if not name:
        raise NoCall
    yield from source.all(_BLANK)
    keys: list[str] = []
    if not (yield from source.take(marks.key)):
        yield from source.need(marks.end)
        sink.begin(name)
        sink.put("{}")
        return
    sink.begin(name)
    sink.put("{")
    first, *others = marks.keyed.split()
    while True:
        pieces: list[str] = []
        if not (yield from source.until(re.compile(re.escape(first)), (first,), pieces.append)):
            raise NoCall(cut=True)
        key = "".join(pieces).strip()
        if not key or key in keys:
            raise NoCall
        for other in others:
            yield from source.all(_BLANK)
            yield from source.need(other)
        sink.put(f"{', ' if keys else ''}{json_text(key)}: ")
        keys.append(key)
        yield from _element(source, marks, sink, sink.schema(key))
        yield from source.all(_BLANK)
        if not (yield from source.take(marks.key)):
            break
    yield from source.need(marks.end)
    sink.put("}")


def _element(source: Source, marks: Marks, sink: Sink, schema: Any) -> Steps[None]:
    word = marks.valued.strip()
    words = (word, f"\n{word}") if marks.padded else (word,)
    end = re.compile(("\n?" if marks.padded else "") + re.escape(word))
    if marks.padded:
        yield from source.take("\n")
    pieces: list[str] = []
    kinds = kinds_of(schema)
    text_only = kinds <= {"string"}

    def put(piece: str) -> None:
        if text_only:
            sink.put(json_text(piece)[1:-1])
        else:
            pieces.append(piece)

    if text_only:
        sink.put('"')
    if not (yield from source.until(end, words, put)):
        raise NoCall(cut=True)
    sink.put('"' if text_only else _converted("".join(pieces), kinds))


def _converted(text: str, kinds: set[str]) -> str:
    """The text of an element as JSON: a text where it can be nothing else that its schema allows."""
    plain = _PYTHON_WORDS.get(text.strip(), text).strip()
    try:
        value = json.loads(plain, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return json_text(text)
    return plain if "string" not in kinds or _kind(value) in kinds else json_text(text)


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "string")


def kinds_of(schema: Any) -> set[str]:
    """The types that a schema names, {"string"} for one of which nothing is known; numbers are integers too."""
    if not isinstance(schema, Mapping) or not schema:
        return {"string"}
    found: set[str] = set()
    kinds = schema.get("type")
    found.update(kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str))
    if not found:
        found.update(map(_kind, [schema["const"]] if "const" in schema else _list(schema.get("enum"))))
    for part in (*_list(schema.get("anyOf")), *_list(schema.get("oneOf"))):
        found |= kinds_of(part)
    if "number" in found:
        found.add("integer")
    return found or {"object", "array", "number", "integer", "boolean", "null", "string"}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
