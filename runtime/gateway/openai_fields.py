"""The fields of OpenAI's requests: their types, and what they mean as sampling parameters, constraints and messages.

Knows: OpenAI's names. Must not know: how answers are written, HTTP. What is not served is refused by its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from branchwork.lang.asked import grammar_of, regex_of, schema_of
from branchwork.lang.constraint import Constraint, ConstraintError, JsonSchema
from branchwork.lang.params import SamplingParams, merge, normalise
from branchwork.lang.toolformats import ToolSpec
from branchwork.runtime.gateway.served import Served
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.turns import specs

_TEXT_PARTS = ("text", "input_text", "output_text")
_INT64 = 2**63
_OWN = ("messages", "tools", "add_generation_prompt", "generate", "continued", "template", "names", "self")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Schema(msgspec.Struct):
    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class Format(Schema, kw_only=True):
    """The format of an answer: in chats a schema stands in `json_schema`, in responses beside the type."""

    type: str
    json_schema: Schema | None = None


class Part(msgspec.Struct):
    type: str
    text: str = ""
    refusal: str = ""


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] = ""


class CallIn(msgspec.Struct):
    function: CalledFunction
    id: str = ""
    type: str = "function"


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[CallIn] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    function_call: Any = None


class FunctionIn(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolIn(msgspec.Struct):
    type: str
    function: FunctionIn | None = None


class Sampling(msgspec.Struct, kw_only=True):
    """What chats and completions have in common, and the extension fields."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    regex: str | None = None
    grammar: str | None = None
    response_format: Format | None = None

    @property
    def usage_asked(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


_KNOBS = (
    *("n", "temperature", "top_p", "presence_penalty", "frequency_penalty", "stop", "top_k", "min_p"),
    *("repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos", "priority"),
)


def sampling(served: Served, body: Sampling, **more: Any) -> SamplingParams:
    """The parameters of a request. more: knobs under SamplingParams' own names. Raises Problem 400."""
    knobs: dict[str, Any] = {name: getattr(body, name) for name in _KNOBS}
    if body.seed is not None:
        knobs["seed"] = body.seed % _INT64  # a negative one is as good as any
    if body.logit_bias:
        knobs["logit_bias"] = _biases(body.logit_bias, served.info.vocab)
    knobs = {**served.info.knobs, **{name: value for name, value in (knobs | more).items() if value is not None}}
    if knobs.get("max_tokens") is None:
        knobs["max_tokens"] = served.info.context  # the room that the prompt leaves is less
    return checked(knobs)


def checked(knobs: Mapping[str, Any]) -> SamplingParams:
    """merge, whose errors become Problems that name the field."""
    for name, value in knobs.items():
        try:
            normalise({name: value})
        except (TypeError, ValueError) as error:
            raise Problem(400, "invalid_value", str(error), name) from error
    try:
        return merge(knobs)
    except ValueError as error:
        raise Problem(400, "invalid_value", str(error), "min_tokens") from error


def refuse(body: msgspec.Struct, names: Iterable[str], why: str = "is not served here; leave it out") -> None:
    """Raise Problem 400 for the first of these fields that is set."""
    for name in names:
        value = getattr(body, name)
        if value is not None and value is not False and value != []:
            raise Problem(400, "unsupported_parameter", f"{name} {why}", name)


def _biases(given: Mapping[str, float], vocab: int) -> dict[int, float]:
    found = {}
    for token, bias in given.items():
        if not token.isdecimal() or int(token) >= vocab:
            text = f"logit_bias is by token id, from 0 to {vocab - 1}; {token!r} is none"
            raise Problem(400, "invalid_value", text, "logit_bias")
        found[int(token)] = bias
    return found


def most(body: msgspec.Struct, *names: str) -> int | None:
    """How many tokens an answer may have, by the first of these fields that is set. Raises Problem 400."""
    for name in names:
        value = getattr(body, name)
        if value is None:
            continue
        try:
            normalise({"max_tokens": value})
        except ValueError as error:
            raise Problem(400, "invalid_value", f"{name}: {error}", name) from error
        return int(value)
    return None


# --- constraints


def shape_of(body: Sampling) -> Constraint | None:
    """What the answer's text must look like. Raises Problem 400."""
    ways: dict[str, Callable[[], Constraint | None]] = {
        "response_format": lambda: format_shape(body.response_format, "response_format"),
        "regex": lambda: None if body.regex is None else regex_of(body.regex),
        "grammar": lambda: None if body.grammar is None else grammar_of(body.grammar),
    }
    found: dict[str, Constraint] = {}
    for name, make in ways.items():
        try:
            made = make()
        except ConstraintError as error:
            raise Problem(400, error.code, str(error), name) from error
        if made is not None:
            found[name] = made
    if len(found) > 1:
        text = f"{' and '.join(found)} are different constraints; give one of them"
        raise Problem(400, "invalid_value", text, list(found)[1])
    return next(iter(found.values()), None)


def format_shape(form: Format | None, where: str) -> Constraint | None:
    """The constraint of a response_format, or of text.format. Raises Problem 400, ConstraintError."""
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return JsonSchema('{"type": "object"}')
    if form.type != "json_schema":
        known = "text, json_object, json_schema"
        raise Problem(400, "invalid_value", f"{where}.type {form.type!r} is none of {known}", f"{where}.type")
    schema, place = (form.json_schema, f"{where}.json_schema") if form.json_schema else (form, where)
    if schema.schema is None:
        raise Problem(400, "missing_value", f"{place}.schema is missing", f"{place}.schema")
    return msgspec.structs.replace(schema_of(schema.schema), strict=bool(schema.strict))


# --- tools


class Choice(NamedTuple):
    """Which tools may be called: as turns.Ask has it."""

    choice: str
    allowed: tuple[str, ...] | None = None


def tools_of(given: Sequence[ToolIn] | None) -> list[ToolSpec]:
    """Raises Problem 400."""
    functions = []
    for index, tool in enumerate(given or ()):
        if tool.type != "function" or tool.function is None:
            text = f"a tool of type {tool.type!r} is not served here; functions are: {{'type': 'function', ...}}"
            raise Problem(400, "unsupported_value", text, f"tools[{index}].type")
        functions.append((tool.function.name, tool.function.description or "", tool.function.parameters))
    return specs(functions)


def choice_of(given: Any, tools: Sequence[ToolSpec]) -> Choice:
    """tool_choice, in any of its shapes. Raises Problem 400."""
    if given is None:
        return Choice("auto")
    if given in ("auto", "none", "required"):
        if given == "required" and not tools:
            raise Problem(400, "invalid_value", "tool_choice 'required' needs tools", "tool_choice")
        return Choice(given)
    if isinstance(given, dict) and given.get("type") == "function":
        return Choice("required", _named([given], tools))
    if isinstance(given, dict) and given.get("type") == "allowed_tools":
        inner = given.get("allowed_tools", given)  # chats nest it, responses do not
        if (
            isinstance(inner, dict)
            and isinstance(inner.get("tools"), list)
            and inner.get("mode") in ("auto", "required")
        ):
            return Choice(inner["mode"], _named(inner["tools"], tools))
    text = f"tool_choice is auto, none, required, or an object of type function or allowed_tools, not {given!r}"
    raise Problem(400, "invalid_value", text, "tool_choice")


def _named(given: Sequence[Any], tools: Sequence[ToolSpec]) -> tuple[str, ...]:
    known = [tool.name for tool in tools]
    names = []
    for one in given:
        inner = one.get("function", one) if isinstance(one, dict) else {}
        name = inner.get("name") if isinstance(inner, dict) else None
        if name not in known:
            text = f"tool_choice names {name!r}, which is none of the tools: {', '.join(known) or 'there are none'}"
            raise Problem(400, "invalid_value", text, "tool_choice")
        names.append(name)
    return tuple(names)


# --- messages


def messages_of(given: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates take them: texts, and calls with their arguments as JSON text. Raises Problem 400."""
    if not given:
        raise Problem(400, "invalid_value", "messages is empty; give at least one message", "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(given)]


def _message(given: Message, where: str) -> dict[str, Any]:
    role = "system" if given.role == "developer" else given.role
    if role not in ("system", "user", "assistant", "tool"):
        text = f"the role {given.role!r} is none of system, developer, user, assistant, tool"
        raise Problem(400, "invalid_value", text, f"{where}.role")
    if given.function_call is not None:
        raise Problem(
            400, "unsupported_parameter", "function_call is not served; use tool_calls", f"{where}.function_call"
        )
    if given.content is None and not given.tool_calls and given.refusal is None:
        raise Problem(400, "missing_value", f"{where} has no content", f"{where}.content")
    message: dict[str, Any] = {
        "role": role,
        "content": text_of(given.content, f"{where}.content") or given.refusal or "",
    }
    if given.name:
        message["name"] = given.name
    if given.tool_call_id:
        message["tool_call_id"] = given.tool_call_id
    if given.reasoning_content:
        message["reasoning_content"] = given.reasoning_content
    if given.tool_calls:
        message["tool_calls"] = [call_of(one.id, one.function.name, one.function.arguments) for one in given.tool_calls]
    return message


def call_of(number: str, name: str, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
    """A call in a message's history."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": number, "type": "function", "function": {"name": name, "arguments": text or "{}"}}


def text_of(content: str | Sequence[Part] | None, where: str) -> str:
    """The joined texts of a content. Raises Problem 400 for what is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        if part.type not in (*_TEXT_PARTS, "refusal"):
            text = f"a part of type {part.type!r} cannot be read: this model reads text only"
            raise Problem(400, "unsupported_value", text, f"{where}[{index}].type")
        texts.append(part.refusal if part.type == "refusal" else part.text)
    return "".join(texts)


def effort(served: Served, given: str | None, where: str) -> dict[str, Any]:
    """What a template is told of how much to think. Raises Problem 400 for a model that cannot be told."""
    if given is None:
        return {}
    template = served.template or ""
    if given in ("none", "minimal") and "reasoning_effort" not in template:
        return {"enable_thinking": False}
    if "reasoning_effort" not in template:
        text = f"{where}: this model cannot be told how much to think; leave it out, or give 'none'"
        raise Problem(400, "unsupported_value", text, where)
    return {"reasoning_effort": given}


def variables(served: Served, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """chat_template_kwargs. Raises Problem 400 for variables that have their own fields, or that are the model's."""
    taken = next((name for name in given or () if name in _OWN or name in served.specials), None)
    if taken is not None:
        text = f"chat_template_kwargs may not set {taken!r}, which the server itself gives to the template"
        raise Problem(400, "invalid_value", text, "chat_template_kwargs")
    return dict(given or {})
