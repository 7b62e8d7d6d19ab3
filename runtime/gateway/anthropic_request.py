"""What Anthropic's requests hold, and what it is in the words of turns and sampling parameters.

Knows: the API's fields. Must not know: prompts, answers, HTTP.
Markers of what may be cached (cache_control) change nothing: everything is cached here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from branchwork.lang.constraint import Constraint
from branchwork.lang.reasoning import reasoning_of
from branchwork.lang.toolformats import ToolSpec, json_text
from branchwork.runtime.gateway import turns
from branchwork.runtime.gateway.replies import schema
from branchwork.runtime.gateway.served import Served
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.turns import Ask

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_SPEEDS = (None, "standard")


class Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]]


class Counted(msgspec.Struct, kw_only=True):
    """What a prompt is made from."""

    model: str
    messages: list[Message]
    system: str | list[dict[str, Any]] = ""
    tools: list[dict[str, Any]] = []
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    container: Any = None
    mcp_servers: Any = None
    speed: str | None = None


class Messages(Counted, kw_only=True):
    max_tokens: int
    stream: bool = False
    stop_sequences: list[str] = []
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


def knobs(body: Messages) -> dict[str, Any]:
    """Sampling parameters (lang.params). Raises Problem 400."""
    if body.max_tokens < 1:
        raise _wrong("max_tokens", f"it is {body.max_tokens}; at least 1 is needed")
    if body.temperature is not None and not 0 <= body.temperature <= 1:
        raise _wrong("temperature", f"it is {body.temperature}; it lies between 0 and 1")
    if not all(text.strip() for text in body.stop_sequences):
        raise _wrong("stop_sequences", "each stop sequence must contain something besides white space")
    found = {"max_tokens": body.max_tokens, "temperature": body.temperature, "top_k": body.top_k, "top_p": body.top_p}
    return found | ({"stop": body.stop_sequences} if body.stop_sequences else {})


def read(served: Served, body: Counted) -> Ask:
    """The turn that is asked for. Raises Problem 400."""
    for field, taken in (("container", body.container), ("mcp_servers", body.mcp_servers)):
        if taken:
            raise _wrong(field, "it is not served here; leave it out")
    if body.speed not in _SPEEDS:
        raise _wrong("speed", f"{body.speed!r} is not served here; leave it out")
    if not body.messages:
        raise _wrong("messages", "at least one message is required")
    messages = [told for message in _joined(body.messages) for told in _told(message)]
    system = _text(body.system, "system")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    tools = turns.specs(map(_tool, body.tools))
    choice, allowed, parallel = _choice(body, tools)
    continued = messages[-1]["role"] == "assistant"
    if continued and (messages[-1].get("tool_calls") or not messages[-1]["content"].strip()):
        raise _wrong("messages", "the last message is the assistant's; it goes on only after text")
    return Ask(
        messages,
        tools,
        choice,
        allowed,
        parallel,
        _format(body),
        continued,
        _thinking(served, body),
    )


def _wrong(field: str, why: str) -> Problem:
    return Problem(400, "invalid_request", f"{field}: {why}", field)


# --- messages


def _joined(messages: list[Message]) -> Iterator[Message]:
    """Messages in which no two in a row are of the same role."""
    last: Message | None = None
    for message in messages:
        if message.role not in ("user", "assistant"):
            raise _wrong("messages", f"the role {message.role!r} is neither user nor assistant; give `system` apart")
        if last is not None and last.role == message.role:
            last = Message(last.role, [*_blocks(last.content), *_blocks(message.content)])
            continue
        if last is not None:
            yield last
        last = message
    if last is not None:
        yield last


def _told(message: Message) -> Iterator[dict[str, Any]]:
    """A message in the words of chat templates; tools' results are messages of their own, before what is said."""
    said, calls, thought = [], [], []
    for block in _blocks(message.content):
        match block.get("type"):
            case "text":
                said.append(_text([block], "messages"))
            case "tool_use" if message.role == "assistant":
                calls.append(_call(block))
            case "thinking" if message.role == "assistant":
                thought.append(str(block.get("thinking") or ""))
            case "redacted_thinking" if message.role == "assistant":
                pass  # nobody here can read it
            case "tool_result" if message.role == "user":
                yield _result(block)
            case kind:
                raise _wrong("messages", _unread(kind, message.role))
    content = "\n".join(said)
    if message.role == "assistant":
        more = {"tool_calls": calls} if calls else {}
        thinking = {"reasoning_content": "\n".join(thought)} if thought else {}
        yield {"role": "assistant", "content": content, **more, **thinking}
    elif said:
        yield {"role": "user", "content": content}


def _call(block: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(block.get("name"), str) or not isinstance(block.get("input"), dict):
        raise _wrong("messages", "a tool_use block has a name and an input, which is an object")
    function = {"name": block["name"], "arguments": json_text(block["input"])}
    return {"type": "function", "id": str(block.get("id") or ""), "function": function}


def _result(block: dict[str, Any]) -> dict[str, Any]:
    text = _text(block.get("content") or "", "messages")
    failed = "error: " if block.get("is_error") else ""
    return {"role": "tool", "tool_call_id": str(block.get("tool_use_id") or ""), "content": failed + text}


def _blocks(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(content: Any, field: str) -> str:
    """A text, or blocks of text, as one text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(field, "content is a text or a list of blocks")
    parts = []
    for block in content:
        if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            kind = block.get("type") if isinstance(block, dict) else None
            raise _wrong(field, _unread(kind, ""))
        parts.append(block["text"])
    return "\n".join(parts)


def _unread(kind: Any, role: str) -> str:
    if kind in ("image", "document"):
        return f"this model reads text only; leave blocks of type {kind} out"
    return f"a block of type {kind!r} cannot be read here" + (f" in a message of the {role}" if role else "")


# --- tools, thinking, formats


def _tool(tool: dict[str, Any]) -> tuple[str, str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise _wrong("tools", f"tools of type {tool['type']!r} run on Anthropic's servers; give your own ones")
    if not isinstance(tool.get("name"), str) or not isinstance(tool.get("input_schema"), dict):
        raise _wrong("tools", "a tool has a name and an input_schema, which is an object")
    return tool["name"], str(tool.get("description") or ""), tool["input_schema"]


def _choice(body: Counted, tools: list[ToolSpec]) -> tuple[str, list[str] | None, bool]:
    """(choice, allowed, parallel) as Ask has them."""
    given = body.tool_choice or {"type": "auto"}
    kind, parallel = given.get("type"), not given.get("disable_parallel_tool_use")
    if kind != "tool":
        if not isinstance(kind, str) or kind not in _CHOICES:
            raise _wrong("tool_choice", f"its type is {kind!r}; it is auto, any, tool or none")
        return _CHOICES[kind], None, parallel
    name = given.get("name")
    if not any(tool.name == name for tool in tools):
        raise _wrong("tool_choice", f"there is no tool {name!r} among the tools")
    return "required", [str(name)], False


def _format(body: Counted) -> Constraint | None:
    asked = (body.output_config or {}).get("format")
    if not asked:
        return None
    if not isinstance(asked, dict) or asked.get("type") != "json_schema" or not isinstance(asked.get("schema"), dict):
        raise _wrong("output_config", "format is {type: json_schema, schema: object}")
    return schema(asked["schema"])


def _thinking(served: Served, body: Counted) -> dict[str, Any]:
    """What the template is told of thinking: none unless it is asked for. The budget of it is max_tokens alone."""
    kind = (body.thinking or {"type": "disabled"}).get("type")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise _wrong("thinking", f"its type is {kind!r}; it is enabled, disabled or adaptive")
    thinks = reasoning_of(served.template, served.info.family) is not None
    if kind == "enabled" and not thinks:
        raise _wrong("thinking", f"{body.model} does not think; leave it out")
    effort = (body.output_config or {}).get("effort")
    return {"enable_thinking": kind != "disabled", **({"reasoning_effort": effort} if effort else {})}
