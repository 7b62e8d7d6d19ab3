"""The items of OpenAI's responses: those of a request as messages, those of an answer with the events of their making.

Knows: OpenAI's items and stream events, a turn's events. Must not know: HTTP, how responses are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from branchwork.lang.toolformats import ToolSpec
from branchwork.lang.turnparser import CallArguments, CallBegan, CallEnded, Event, Said, Thought
from branchwork.runtime.gateway.openai_fields import Part, call_of, text_of
from branchwork.runtime.gateway.openai_shapes import new_id
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.turns import specs


class Item(msgspec.Struct):
    """An item of a request's input."""

    type: str = "message"
    role: str = ""
    content: str | list[Part] | None = None
    id: str | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[Part] = ""
    summary: list[Part] = []
    status: str | None = None


class ToolIn(msgspec.Struct):
    type: str
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


def tools_of(given: Sequence[ToolIn] | None) -> list[ToolSpec]:
    """Raises Problem 400."""
    for index, tool in enumerate(given or ()):
        if tool.type != "function":
            text = f"a tool of type {tool.type!r} is not served here; functions are"
            raise Problem(400, "unsupported_value", text, f"tools[{index}].type")
    return specs((tool.name, tool.description or "", tool.parameters) for tool in given or ())


def listed(given: str | Sequence[Item]) -> list[dict[str, Any]]:
    """The input as items, each with an id, as they are told when somebody asks for them."""
    if isinstance(given, str):
        part = {"type": "input_text", "text": given}
        return [{"id": new_id("msg"), "type": "message", "role": "user", "content": [part]}]
    found = []
    for item in given:
        shape = {key: value for key, value in msgspec.to_builtins(item).items() if value not in (None, "", [])}
        found.append({"id": new_id("msg" if item.type == "message" else "item"), **shape})
    return found


def messages_of(given: str | Sequence[Item]) -> list[dict[str, Any]]:
    """The input as messages. Raises Problem 400."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    thought = ""
    for index, item in enumerate(given):
        where = f"input[{index}]"
        match item.type:
            case "message":
                messages.append(_message(item, where))
            case "function_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                called = call_of(item.call_id, item.name, item.arguments)
                messages[-1].setdefault("tool_calls", []).append(called)
            case "function_call_output":
                text = text_of(item.output, f"{where}.output")
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
            case "reasoning":
                parts = item.content if isinstance(item.content, list) else item.summary
                thought = "".join(part.text for part in parts)
                continue
            case _:
                text = f"an item of type {item.type!r} is not served here"
                raise Problem(400, "unsupported_value", text, f"{where}.type")
        if thought and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = thought
        thought = ""
    if not messages:
        raise Problem(400, "invalid_value", "input is empty; give a text, or at least one message", "input")
    return messages


def _message(item: Item, where: str) -> dict[str, Any]:
    role = "system" if item.role == "developer" else item.role
    if role not in ("system", "user", "assistant"):
        text = f"the role {item.role!r} is none of system, developer, user, assistant"
        raise Problem(400, "invalid_value", text, f"{where}.role")
    return {"role": role, "content": text_of(item.content, f"{where}.content")}


# --- answers


class Output:
    """The items of an answer as it comes. Its methods give what a stream tells of it: events without their numbers."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open = False

    def hear(self, one: Event, logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[dict[str, Any]]:
        """One event of the turn; logprobs: of what it says."""
        match one:
            case Said(text):
                yield from self._more("message", text, logprobs)
            case Thought(text):
                yield from self._more("reasoning", text, ())
            case CallBegan(name=name):
                yield from self._close()
                call = {"type": "function_call", "call_id": new_id("call"), "name": name, "arguments": ""}
                yield self._begin({"id": new_id("fc"), **call, "status": "in_progress"})
            case CallArguments(text=text):
                self.items[-1]["arguments"] += text
                yield self._event("function_call_arguments.delta", delta=text)
            case CallEnded():
                yield from self._close()

    def finish(self, logprobs: Sequence[dict[str, Any]] = (), *, whole: bool = True) -> Iterator[dict[str, Any]]:
        """The answer is over. whole: it was not cut off."""
        if not self.items:
            yield from self._more("message", "", logprobs)
        elif logprobs and self.items[-1]["type"] == "message":
            self.items[-1]["content"][0]["logprobs"] += logprobs
        yield from self._close("completed" if whole else "incomplete")

    def _more(self, kind: str, text: str, logprobs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """More text of a message, or of the thinking."""
        part = "output_text" if kind == "message" else "reasoning_text"
        if not self._open or self.items[-1]["type"] != kind:
            yield from self._close()
            if kind == "message":
                item = {"id": new_id("msg"), "type": kind, "status": "in_progress", "role": "assistant", "content": []}
            else:
                item = {"id": new_id("rs"), "type": kind, "summary": [], "content": [], "status": "in_progress"}
            yield self._begin(item)
            empty: dict[str, Any] = {"type": part, "text": ""}
            if kind == "message":
                empty |= {"annotations": [], "logprobs": []}
            self.items[-1]["content"].append(empty)
            yield self._event("content_part.added", content_index=0, part=_copy(empty))
        current = self.items[-1]["content"][0]
        current["text"] += text
        scores = {}
        if kind == "message":
            current["logprobs"] += logprobs
            scores = {"logprobs": list(logprobs)}
        if text:
            yield self._event(f"{part}.delta", content_index=0, delta=text, **scores)

    def _begin(self, item: dict[str, Any]) -> dict[str, Any]:
        self.items.append(item)
        self._open = True
        shown = {"output_index": len(self.items) - 1, "item": _copy(item)}
        return {"type": "response.output_item.added", **shown}

    def _close(self, status: str = "completed") -> Iterator[dict[str, Any]]:
        """The item under way is whole."""
        if not self._open:
            return
        self._open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            yield self._event("function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        else:
            part = item["content"][0]
            kind, scores = part["type"], {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            yield self._event(f"{kind}.done", content_index=0, text=part["text"], **scores)
            yield self._event("content_part.done", content_index=0, part=_copy(part))
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": _copy(item)}

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{kind}", **place, **fields}

    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation."""
        said, thought = self._text("message"), self._text("reasoning")
        calls = [item for item in self.items if item["type"] == "function_call"]
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = [call_of(item["call_id"], item["name"], item["arguments"]) for item in calls]
        return message

    def _text(self, kind: str) -> str:
        return "".join(part["text"] for item in self.items if item["type"] == kind for part in item["content"])


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in item.items()}
