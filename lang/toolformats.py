"""How families of models write tool calls: one table of formats, which of them a chat template speaks, and writing it.

Knows: markers, the order of a call's parts, JSON. Must not know: constraints, how calls are read, who generates.
A format is a row; turn shapes (toolshapes.py) and the streaming parser (turnparser.py) follow the same row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NAME = r"[\w./-]{1,128}"  # a tool's name where something else may follow it at once


class ToolSpec(NamedTuple):
    """What a model is told of a tool. parameters: JSON Schema of the arguments, an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = {}

    @property
    def schema(self) -> dict[str, Any]:
        """{"type": "function", "function": {"name", "description", "parameters"}}, as chat APIs take it."""
        return {"type": "function", "function": self._asdict()}


class Call(NamedTuple):
    """A call as it stands in a transcript. arguments: JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Marks:
    """A call whose arguments are elements, one for each: the texts before and after a name, a key, a value.

    padded: a line break stands on both sides of a value that is none of its own.
    """

    call: str
    named: str
    key: str
    keyed: str
    valued: str
    end: str
    padded: bool = False


@dataclass(frozen=True)
class Format:
    """How a family of models writes calls: begin (each body close (between each body close)*) end.

    body: "json" is an object with the name and the arguments (under `key`), "named" a label with the name, `sep`, and
    the arguments as JSON, "python" name(key=literal), "marks" elements as `marks` has them. In `label`, {name} and
    {index} (from 0) stand for themselves. White space in these texts is written, and any is read in its place.
    listed: the calls stand in brackets. bare: `begin` and `end` are not written, though a model may; a call is the
    answer's beginning, so whatever begins like one, and names a tool, is one.
    signs: a template that has all texts of one of these speaks the format. families: names of model types that do.
    announce: the part of a system message that tells of tools, for templates that do not; None: by an example.
    """

    body: str
    begin: str = ""
    each: str = ""
    close: str = ""
    between: str = ""
    end: str = ""
    key: str = "arguments"
    label: str = "{name}"
    sep: str = ""
    marks: Marks | None = None
    listed: bool = False
    bare: bool = False
    signs: tuple[tuple[str, ...], ...] = ()
    families: tuple[str, ...] = ()
    announce: Callable[[Sequence[ToolSpec]], str] | None = None

    @property
    def opener(self) -> str:
        """The text that begins calls wherever it stands; "" for a format that has none."""
        return (self.begin or self.each).strip()

    @property
    def markers(self) -> tuple[str, ...]:
        """Every text that a tokenizer may have as one special token: such tokens have to reach the parser as text."""
        texts = (self.begin, self.each, self.label, self.sep, self.close, self.end)
        return tuple(dict.fromkeys(found for text in texts for found in _MARKER.findall(text)))


_SURROGATES = re.compile("[\ud800-\udfff]")
_MARKER = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")


# --- telling of tools


def _hermes(tools: Sequence[ToolSpec]) -> str:
    lines = "\n".join(json_text(tool.schema["function"]) for tool in tools)
    return f"# Tools\n<tools>\n{lines}\n</tools>"


def _qwen(tools: Sequence[ToolSpec]) -> str:
    lines = "\n".join(json_text(tool.schema) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
        'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def _mistral(tools: Sequence[ToolSpec]) -> str:
    return f"[AVAILABLE_TOOLS]{json_text([tool.schema for tool in tools])}[/AVAILABLE_TOOLS]"


def announced(form: Format, tools: Sequence[ToolSpec]) -> str:
    """The part of a system message that tells of `tools`, and where need be how a call is written."""
    if form.announce is not None:
        return form.announce(tools)
    listed = "\n".join(json_text(tool.schema["function"]) for tool in tools)
    example = written([Call("function_name", '{"argument": "value"}')], form)
    return f"# Tools\n\nThese functions can be called:\n{listed}\n\nA call is written like this:\n{example}"


# --- the table

_ELEMENTS = Marks("<function=", ">\n", "<parameter=", ">\n", "\n</parameter>\n", "</function>", padded=True)
_SEED = Marks("<function=", ">\n", "<parameter=", ">", "</parameter>\n", "</function>")
_GLM = Marks("", "\n", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n", "")
_ASKED = '{"name": function name, "parameters": dictionary of argument name and its value}'

# What a template has decides, from the first row to the last, so the more particular signs come first. The announcement
# of qwen is the text of the chat templates of Qwen2.5 and Qwen3, which they were trained on.
FORMATS: dict[str, Format] = {
    "hermes": Format(
        "json",
        each="<tool_call>\n",
        close="\n</tool_call>",
        between="\n",
        announce=_hermes,
        families=("hermes",),
    ),
    "qwen": Format(
        "json",
        each="<tool_call>\n",
        close="\n</tool_call>",
        between="\n",
        announce=_qwen,
        signs=(("<tools></tools> XML tags", "<args-json-object>"),),
        families=("qwen2", "qwen3", "qwen3_moe", "qwen2_moe"),
    ),
    "qwen-coder": Format(
        "marks",
        each="<tool_call>\n",
        close="\n</tool_call>",
        between="\n",
        marks=_ELEMENTS,
        signs=(("<tool_call>", "<function=", "<parameter="),),
        families=("qwen3_next",),
    ),
    "seed": Format(
        "marks",
        each="<seed:tool_call>\n",
        close="\n</seed:tool_call>",
        between="\n",
        marks=_SEED,
        signs=(("<seed:tool_call>", "<function="),),
        families=("seed_oss",),
    ),
    "glm": Format(
        "marks",
        each="<tool_call>",
        close="</tool_call>",
        between="\n",
        marks=_GLM,
        signs=(("<tool_call>", "<arg_key>", "<arg_value>"),),
        families=("glm4_moe",),
    ),
    "deepseek": Format(
        "named",
        begin="<｜tool▁calls▁begin｜>",
        each="<｜tool▁call▁begin｜>",
        label="function<｜tool▁sep｜>{name}",
        sep="\n```json\n",
        close="\n```<｜tool▁call▁end｜>",
        between="\n",
        end="<｜tool▁calls▁end｜>",
        signs=(("<｜tool▁calls▁begin｜>", "```json"),),
        families=("deepseek_v2", "deepseek_v3"),
    ),
    "deepseek-v3.1": Format(
        "named",
        begin="<｜tool▁calls▁begin｜>",
        each="<｜tool▁call▁begin｜>",
        sep="<｜tool▁sep｜>",
        close="<｜tool▁call▁end｜>",
        end="<｜tool▁calls▁end｜>",
        signs=(("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),),
    ),
    "kimi": Format(
        "named",
        begin="<|tool_calls_section_begin|>",
        each="<|tool_call_begin|>",
        label="functions.{name}:{index}",
        sep="<|tool_call_argument_begin|>",
        close="<|tool_call_end|>",
        end="<|tool_calls_section_end|>",
        signs=(("<|tool_calls_section_begin|>",),),
        families=("kimi_k2",),
    ),
    "mistral": Format(
        "named",
        each="[TOOL_CALLS]",
        sep="[ARGS]",
        announce=_mistral,
        signs=(("[TOOL_CALLS]", "[ARGS]"),),
        families=("mistral3", "ministral3"),
    ),
    "mistral-list": Format(
        "json",
        begin="[TOOL_CALLS]",
        between=", ",
        listed=True,
        announce=_mistral,
        signs=(("[TOOL_CALLS]",),),
        families=("mistral", "mixtral"),
    ),
    "lfm": Format(
        "python",
        begin="<|tool_call_start|>",
        between=", ",
        end="<|tool_call_end|>",
        listed=True,
        signs=(("<|tool_call_start|>",), ("<|tool_list_start|>",)),
        families=("lfm2", "lfm2_moe"),
    ),
    "llama": Format(
        "json",
        begin="<|python_tag|>",
        between="; ",
        key="parameters",
        bare=True,
        signs=(("<|start_header_id|>", _ASKED), ("<|header_start|>", _ASKED)),
        families=("llama",),
    ),
    "pythonic": Format(
        "python",
        begin="<|python_start|>",
        between=", ",
        end="<|python_end|>",
        listed=True,
        bare=True,
        signs=(("[func_name1(",), ("<|python_start|>",)),
        families=("llama4",),
    ),
}
# what a template with this in it speaks where no row's own signs stand in it
_LAST_SIGN = ("<tool_call>", "hermes")


def format_named(name: str | None) -> Format:
    """A row by its name, hermes for None. Raises ValueError, with the known ones."""
    if name is not None and name not in FORMATS:
        raise ValueError(f"unknown tool call format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name or "hermes"]


def format_of(template: str | None, family: str = "", name: str = "") -> Format:
    """The format that a model writes: the row `name`, else what stands in its chat template, else by its family.

    template: Jinja text. family: `model_type` of its configuration. A model of which nothing is known is told how calls
    are written, as hermes. Raises ValueError for a name that is no row's.
    """
    if name:
        return format_named(name)
    for form in FORMATS.values():
        if template and any(all(sign in template for sign in signs) for signs in form.signs):
            return form
    if template and _LAST_SIGN[0] in template:
        return FORMATS[_LAST_SIGN[1]]
    return next((form for form in FORMATS.values() if family in form.families), FORMATS["hermes"])


# --- writing


def written(calls: Iterable[Call], form: Format) -> str:
    """Calls as the model itself would have written them, for transcripts; "" for none.

    Raises ValueError for arguments that are no JSON object, or that the format has no way to write.
    """
    bodies = [f"{form.each}{_body(call, index, form)}{form.close}" for index, call in enumerate(calls)]
    if not bodies:
        return ""
    inner = form.between.join(bodies)
    inner = f"[{inner}]" if form.listed else inner
    return inner if form.bare else f"{form.begin}{inner}{form.end}"


def _body(call: Call, index: int, form: Format) -> str:
    arguments = _object(call)
    match form.body:
        case "json":
            return f'{{"name": {json_text(call.name)}, "{form.key}": {call.arguments}}}'
        case "named":
            return form.label.format(name=call.name, index=index) + form.sep + call.arguments
        case "python":
            return f"{call.name}({', '.join(f'{key}={python_text(value)}' for key, value in arguments.items())})"
    assert form.marks is not None
    return _elements(call.name, arguments, form.marks)


def _object(call: Call) -> dict[str, Any]:
    try:
        value = json.loads(call.arguments)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the arguments of a call of {call.name!r} are no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"the arguments of a call of {call.name!r} are not a JSON object")
    return value


def _elements(name: str, arguments: Mapping[str, Any], marks: Marks) -> str:
    parts = []
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json_text(value)
        if marks.valued.strip() in text:
            raise ValueError(f"{marks.valued.strip()!r} in argument {key!r} of {name!r} cannot be written")
        parts.append(f"{marks.key}{key}{marks.keyed}{text}{marks.valued}")
    return f"{marks.call}{name}{marks.named}{''.join(parts)}{marks.end}"


def python_text(value: Any) -> str:
    """A JSON value as a Python literal. Texts are in double quotes, with JSON's escapes, which are Python's too."""
    match value:
        case bool() | None:
            return repr(value)
        case str():
            return json_text(value)
        case list():
            return f"[{', '.join(map(python_text, value))}]"
        case dict():
            return f"{{{', '.join(f'{python_text(key)}: {python_text(item)}' for key, item in value.items())}}}"
    return repr(value)


def json_text(value: Any) -> str:
    """A value as JSON that can be sent as UTF-8: only lone surrogates are escaped. Raises ValueError, TypeError."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
