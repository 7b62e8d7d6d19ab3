"""Python functions as tools: their schema from signature and docstring, and calling one with a model's arguments.

Knows: signatures, docstrings, JSON, threads. Must not know: how a model writes calls, programs, backends.
A tool may be a `def`, which runs in a thread of its own, or an `async def`.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import os
import re
import threading
import typing
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, overload

import msgspec

from branchwork.lang import loop
from branchwork.lang.constraint import JsonSchema
from branchwork.lang.errors import BranchworkError
from branchwork.lang.toolformats import ToolSpec
from branchwork.lang.typed import typed

_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
MAX_ERROR = 500  # characters of an error that a model gets to see


class ToolError(BranchworkError):
    """For tools to raise: the message is what the model is told, without the name of the exception before it."""


class Tool:
    """A function that a model may call. Calling the tool calls the function.

    parameters: JSON Schema of the arguments, an object. function: takes them by name, sync or async.
    read: the arguments as the function wants them; raises ValueError, naming the one that is wrong.
    """

    def __init__(
        self,
        name: str,
        description: str,
        parameters: Mapping[str, Any],
        function: Callable[..., Any],
        read: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"the tool name {name!r} must be 1 to 128 letters, digits or characters of '_./-'")
        self.name, self.description = name, description
        self.parameters = dict(parameters)
        self.function, self.read = function, read

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        return self.function(*args, **arguments)

    def __repr__(self) -> str:
        return f"Tool({self.name!r}, parameters={list(self.parameters.get('properties', ()))})"

    @property
    def schema(self) -> dict[str, Any]:
        """{"type": "function", "function": {"name", "description", "parameters"}}, as chat APIs take it."""
        return self.spec.schema

    @property
    def spec(self) -> ToolSpec:
        """What a model is told of it."""
        return ToolSpec(self.name, self.description, self.parameters)

    async def perform(self, arguments: Mapping[str, Any]) -> Any:
        """Call it with arguments that `read` gave; a `def` runs in a daemon thread. Raises what the function raises."""
        if inspect.iscoroutinefunction(self.function):
            return await self.function(**arguments)
        value = await asyncio.wrap_future(_in_thread(self.function, arguments))
        return await value if inspect.isawaitable(value) else value


def _in_thread(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Future[Any]:
    """A thread of its own rather than a pool: a tool that never returns must not hold up others, nor the exit."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # from here on it cannot be cancelled, so that the result may be set
    context = contextvars.copy_context()

    def work() -> None:
        try:
            value = context.run(function, **arguments)
        except BaseException as error:  # whoever awaits the call gets it
            future.set_exception(error)
        else:
            future.set_result(value)

    threading.Thread(target=work, name="branchwork-tool", daemon=True).start()
    return future


@overload
def tool(func: Callable[..., Any], /) -> Tool: ...
@overload
def tool(*, name: str | None = None, description: str | None = None) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    func: Callable[..., Any] | None = None, /, *, name: str | None = None, description: str | None = None
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function; bare or with arguments.

    Its parameters are those of the signature, with types as in gen(type=...); one with a default may be left out by the
    model. What they are for is read from the docstring (Google, NumPy or Sphinx style) or from Annotated[T, "text"].
    Raises TypeError, naming the parameter, for one without an annotation, of a type that cannot be generated, or that
    cannot be given by name; ValueError for a name that is none.
    """

    def make(function: Callable[..., Any]) -> Tool:
        return _of_function(function, name, description)

    return make if func is None else make(func)


class _Parameter(NamedTuple):
    schema: dict[str, Any]
    read: Callable[[Any], Any]
    required: bool


def _of_function(function: Callable[..., Any], name: str | None, description: str | None) -> Tool:
    label = str(getattr(function, "__name__", "")) if name is None else name
    about, texts = described(inspect.getdoc(function) or "")
    definitions: dict[str, Any] = {}
    parameters: dict[str, _Parameter] = {}
    for key, (given, kind) in _annotated(function, label).items():
        parameters[key] = _parameter(f"parameter {key!r} of tool {label!r}", given, kind, texts.get(key), definitions)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {key: parameter.schema for key, parameter in parameters.items()},
        "required": [key for key, parameter in parameters.items() if parameter.required],
    }
    if definitions:
        schema["$defs"] = definitions

    def read(arguments: dict[str, Any]) -> dict[str, Any]:
        return _read(parameters, arguments)

    return Tool(label, about if description is None else description, schema, function, read)


def _annotated(function: Callable[..., Any], label: str) -> dict[str, tuple[inspect.Parameter, Any]]:
    """The parameters by name with their resolved annotations."""
    found = inspect.signature(function).parameters
    for key, parameter in found.items():
        what = f"parameter {key!r} of tool {label!r}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{what} takes any number of values; a tool has named parameters only")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(f"{what} cannot be given by name; a model names its arguments")
        if parameter.annotation is parameter.empty:
            hint = "; make tools of bound methods: bw.tool(thing.method)" if key in ("self", "cls") else ""
            raise TypeError(f"{what} has no annotation, and a schema needs its type{hint}")
    plain = inspect.unwrap(getattr(function, "__func__", function))
    written = _Annotations({key: parameter.annotation for key, parameter in found.items()})
    try:
        hints = typing.get_type_hints(written, getattr(plain, "__globals__", {}), include_extras=True)
    except NameError as error:
        raise TypeError(f"tool {label!r} is annotated with a type that its module does not have: {error}") from None
    return {key: (found[key], hints[key]) for key in found}


class _Annotations:
    """What typing.get_type_hints resolves: the annotations of parameters, without that of the result."""

    def __init__(self, written: dict[str, Any]) -> None:
        self.__annotations__ = written


def _parameter(
    what: str, given: inspect.Parameter, kind: Any, text: str | None, definitions: dict[str, Any]
) -> _Parameter:
    try:
        form = typed(list[kind])  # a list of one: within JSON every type is written as JSON
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what}: {error}") from None
    assert isinstance(form.constraint, JsonSchema)
    schema = json.loads(form.constraint.schema)
    for name, definition in schema.get("$defs", {}).items():
        if definitions.setdefault(name, definition) != definition:
            raise TypeError(f"{what}: another class named {name} is part of this tool; rename one")
    item = dict(schema["items"])
    if text and not (typing.get_origin(kind) is typing.Annotated and "description" in item):
        item["description"] = text
    required = given.default is given.empty
    if not required and isinstance(given.default, (str, int, float, bool)):
        item["default"] = given.default
    return _Parameter(item, lambda value: form.read(json.dumps([value]))[0], required)


def _read(parameters: Mapping[str, _Parameter], arguments: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [key for key in arguments if key not in parameters]
    missing = [key for key, parameter in parameters.items() if parameter.required and key not in arguments]
    if unknown or missing:
        wrong = [f"{what} {', '.join(keys)}" for what, keys in (("unknown", unknown), ("missing", missing)) if keys]
        raise ValueError(f"{' and '.join(wrong)}; the arguments are {', '.join(parameters) or 'none'}")
    values = {}
    for key, value in arguments.items():
        try:
            values[key] = parameters[key].read(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    return values


# --- docstrings

_OF_PARAMETERS = ("args", "arguments", "params", "parameters", "other parameters")
_OTHERS = ("returns?", "yields?", "raises", "warnings?", "examples?", "notes?", "references", "see also")
_SECTION = re.compile(rf"({'|'.join((*_OF_PARAMETERS, *_OTHERS))}):?", re.IGNORECASE)
_GOOGLE = re.compile(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")  # name (type): text
_NUMPY = re.compile(r"([\w*, ]+?)\s*(?::.*)?()")  # name, other : type, and the text below it
_SPHINX = re.compile(r":(\w+)(?:\s[^:]*?\**(\w+))?\s*:\s*(.*)")  # :param type name: text


def described(doc: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the whole, up to its first section, and of each parameter, as single lines."""
    (_, _, opening), *sections = _sections(inspect.cleandoc(doc).split("\n"))
    about, texts = _fields(opening)
    for title, style, body in sections:
        if title in _OF_PARAMETERS:
            texts.update(_entries(body, style))
    return _line(about), {key: _line(words) for key, words in texts.items() if _line(words)}


def _sections(lines: list[str]) -> list[tuple[str, re.Pattern[str], list[str]]]:
    """Title, style and lines of each part; a title ends with a colon (Google) or has a rule below it (NumPy)."""
    found: list[tuple[str, re.Pattern[str], list[str]]] = [("", _GOOGLE, [])]
    for line, below in zip(lines, [*lines[1:], ""]):
        ruled = len(below.strip()) > 2 and not below.strip("-= ")
        if _SECTION.fullmatch(line) and (ruled or line.endswith(":")):
            found.append((line.rstrip(":").lower(), _NUMPY if ruled else _GOOGLE, []))
        elif not line or line.strip("-= "):
            found[-1][2].append(line)
    return found


def _entries(body: list[str], style: re.Pattern[str]) -> dict[str, list[str]]:
    """Texts by name of a section of parameters: an entry begins at its left edge, what is further in belongs to it."""
    texts: dict[str, list[str]] = {}
    edge = min((_indent(line) for line in body if line), default=0)
    into: list[str] = []
    for line in body:
        if not line or _indent(line) > edge:
            into.append(line)
        elif found := style.fullmatch(line):
            into = [found[2]]
            texts.update({name.strip(" *"): into for name in found[1].split(",")})
        else:
            into = []
    return texts


def _fields(lines: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The lines before the first `:field:` of Sphinx, and the texts of its parameters."""
    about: list[str] = []
    texts: dict[str, list[str]] = {}
    into = about
    for line in lines:
        if found := _SPHINX.fullmatch(line):
            into = [found[3]]
            if found[1] in ("param", "parameter", "arg", "argument") and found[2]:
                texts[found[2]] = into
        else:
            into.append(line)
    return about, texts


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _line(words: list[str]) -> str:
    return " ".join(" ".join(words).split())


# --- what a model is told


def shown(value: Any) -> str:
    """What a tool gave, as text for the model: a text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(msgspec.to_builtins(value, str_keys=True, enc_hook=_plain), ensure_ascii=False)


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # a pydantic model
    return dump(mode="json") if dump is not None else str(value)


def told(error: BaseException) -> str:
    """An error as JSON text for the model: type and message, cut short, without the values of secret variables."""
    message = str(error)
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET.search(name):
            message = message.replace(value, f"[{name}]")
    if not isinstance(error, ToolError):
        message = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return json.dumps(
        {"error": message if len(message) <= MAX_ERROR else message[:MAX_ERROR] + "..."}, ensure_ascii=False
    )


def wait_for(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end on a loop of its own; in another thread where a loop runs in this one (notebooks)."""
    if not loop.runs_here():
        return asyncio.run(work)
    return _in_thread(asyncio.run, {"main": work}).result()
