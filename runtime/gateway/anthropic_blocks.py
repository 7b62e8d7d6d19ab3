"""Content blocks of Anthropic's messages, made from an answer as it comes, with the events that tell of them.

Knows: blocks, their events. Must not know: requests, HTTP.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import Any

from branchwork.lang.growing import GrowingJson
from branchwork.lang.turnparser import CallArguments, CallBegan, CallEnded, Event, Said, Thought


class Blocks:
    """content: the blocks so far, whole ones but for the last. called: whether a tool is called.

    A call that the answer's end has cut off is a block as far as it came.
    """

    def __init__(self) -> None:
        self.content: list[dict[str, Any]] = []
        self.called = False
        self._open = ""  # type of the last block while it goes on
        self._arguments = GrowingJson()

    def read(self, events: Iterable[Event]) -> list[dict[str, Any]]:
        """The stream events for what has come."""
        told: list[dict[str, Any]] = []
        for event in events:
            match event:
                case Said(text) if text.strip() or self._open == "text":
                    told += self._begin("text", {"type": "text", "text": ""})
                    self.content[-1]["text"] += text
                    told.append(self._delta({"type": "text_delta", "text": text}))
                case Thought(text):
                    told += self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                    self.content[-1]["thinking"] += text
                    told.append(self._delta({"type": "thinking_delta", "thinking": text}))
                case CallBegan(name=name):
                    self.called = True
                    told += self._end()
                    block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": name, "input": {}}
                    self._arguments = GrowingJson()
                    told += self._begin("tool_use", block)
                case CallArguments(text=text):
                    self._arguments.feed(text)
                    told.append(self._delta({"type": "input_json_delta", "partial_json": text}))
                case CallEnded():
                    told += self._end()
        return told

    def finish(self) -> list[dict[str, Any]]:
        """The answer is over."""
        return self._end()

    def _begin(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        if self._open == kind:
            return []
        told = self._end()
        self._open = kind
        self.content.append(block)
        return [*told, self._told("content_block_start", content_block=dict(block))]

    def _end(self) -> list[dict[str, Any]]:
        """Close the block that is open, if any."""
        kind, self._open = self._open, ""
        if not kind:
            return []
        told = []
        if kind == "thinking":  # nobody checks it; clients hand it back with the thinking, as they must
            signature = hashlib.sha256(self.content[-1]["thinking"].encode("utf-8", "replace")).hexdigest()
            self.content[-1]["signature"] = signature
            told.append(self._delta({"type": "signature_delta", "signature": signature}))
        elif kind == "tool_use":
            self.content[-1]["input"] = self._arguments.value() or {}
        return [*told, self._told("content_block_stop")]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return self._told("content_block_delta", delta=delta)

    def _told(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"type": kind, "index": len(self.content) - 1, **more}
