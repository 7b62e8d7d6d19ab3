"""A small hosted API on loopback: OpenAI's chat and text completions and Anthropic's messages, over real HTTP.

Knows: those formats, as far as their client libraries look. Must not know: Branchwork. A word with the space before it
is a token. Requests are recorded; what the real APIs refuse (a turn so far that ends in white space ...) is refused.
"""

from __future__ import annotations

import json
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORD = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


@dataclass
class Said:
    """An answer. texts: one per sample. hang: nothing comes until the client gives up.

    cut: of a stream the second half never comes: with "end" it just ends, with "break" the connection breaks, any other
    word is the type of an error event.
    """

    texts: list[str]
    thoughts: str = ""
    refusal: str = ""
    hang: bool = False
    cut: str = ""


@dataclass
class Trouble:
    """An error instead of an answer."""

    status: int
    message: str = "no"


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Answer = str | Said | Trouble
Script = Callable[[dict[str, Any]], Answer] | list[Answer]


@dataclass
class FakeHost:
    """script: answers in order, or a function of the request's body. score: log-probability of a prompt's token."""

    script: Script = field(default_factory=list)
    score: Callable[[str], float] = lambda token: -1.0
    scores_prompts: bool = True
    ignores_n: bool = False
    asked: list[Asked] = field(default_factory=list)
    given_up: threading.Event = field(default_factory=threading.Event)  # a client left before its answer came
    hanging: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> FakeHost:
        host = self
        self._lock = threading.Lock()

        class Handler(_Handler):
            fake = host

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [asked.body for asked in self.asked]

    def answer(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            if not isinstance(self.script, list):
                return self.script(asked.body)
            return self.script.pop(0) if self.script else Trouble(400, "the script is used up")


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHost
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = Asked(self.path.partition("?")[0], {k.lower(): v for k, v in self.headers.items()}, body)
        if body.get("echo"):
            with self.fake._lock:
                self.fake.asked.append(asked)
            return self._send(*self._scored(body))
        answer = self.fake.answer(asked)
        said = Said([answer]) if isinstance(answer, str) else answer
        if isinstance(said, Trouble):
            return self._fail(said)
        if why := _refusal(asked):
            return self._fail(Trouble(400, why))
        if said.hang:
            return self._hang()
        speak = {"/v1/messages": _messages, "/v1/completions": _completion}.get(asked.path, _chat)
        spoken = {name: value for name, value in body.items() if name != "n"} if self.fake.ignores_n else body
        return self._send(*speak(spoken, said), cut=said.cut)

    def _send(self, whole: dict[str, Any], events: list[Any] | None = None, cut: str = "") -> None:
        self.send_response(200)
        if events is None:
            data = json.dumps(whole).encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events[: len(events) // 2] if cut else events:
            self._event(event)
        if cut == "break":
            self.close_connection = True
            return
        if cut and cut != "end":
            error = {"type": cut, "message": "in trouble"}
            self._event({"type": "error", "error": error} if "type" in events[0] else {"error": error})
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, event: Any) -> None:
        name = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
        data = f"{name}data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _fail(self, trouble: Trouble) -> None:
        error = {"type": "error", "error": {"type": "some_error", "message": trouble.message}}
        data = json.dumps(error).encode()
        self.send_response(trouble.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _hang(self) -> None:
        self.fake.hanging.set()
        self.close_connection = True
        select.select([self.connection], [], [], 30)
        if self.connection.recv(1, socket.MSG_PEEK) == b"":
            self.fake.given_up.set()

    def _scored(self, body: dict[str, Any]) -> tuple[dict[str, Any]]:
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            found = list(WORD.finditer(prompt))
            told = {
                "tokens": [token.group() for token in found],
                "token_logprobs": [None if token.start() == 0 else self.fake.score(token.group()) for token in found],
                "text_offset": [token.start() for token in found],
                "top_logprobs": [None for _ in found],
            }
            told = told if self.fake.scores_prompts else None
            choices.append({"index": index, "text": prompt, "finish_reason": "length", "logprobs": told})
        return (_completion_of(choices, sum(len(WORD.findall(p)) for p in body["prompt"]), 0),)


def _refusal(asked: Asked) -> str:
    """What the real APIs answer 400 to."""
    body = asked.body
    if asked.path == "/v1/messages":
        last = body["messages"][-1]
        if last["role"] == "assistant" and last["content"] != last["content"].rstrip():
            return "messages: final assistant content cannot end with trailing whitespace"
        if any(not stop.strip() for stop in body.get("stop_sequences", [])):
            return "stop_sequences: each stop sequence must contain non-whitespace"
        return ""
    form = body.get("response_format")
    if form and form["json_schema"]["schema"].get("type") != "object":
        return "Invalid schema for response_format: schema must be of type object"
    return ""


def _ended(text: str, stops: list[str], most: int) -> tuple[str, str, str | None]:
    """The text as a model would have ended it: (text, reason, stop)."""
    found = sorted((text.find(stop), stop) for stop in stops if stop in text)
    cut = text[: found[0][0]] if found else text
    words = WORD.findall(cut)
    if len(words) > most:
        return "".join(words[:most]), "length", None
    return cut, "stop", found[0][1] if found else None


def _samples(body: dict[str, Any], said: Said) -> list[tuple[str, str]]:
    stops, most = body.get("stop") or [], body.get("max_tokens") or body["max_completion_tokens"]
    texts = (said.texts * body.get("n", 1))[: body.get("n", 1)] if len(said.texts) == 1 else said.texts
    return [_ended(text, stops, most)[:2] for text in texts]


def _usage(prompt: int, answer: int) -> dict[str, Any]:
    total = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return {**total, "prompt_tokens_details": {"cached_tokens": prompt // 2}}


def _chat(body: dict[str, Any], said: Said) -> tuple[dict[str, Any], list[Any] | None]:
    samples = _samples(body, said)
    prompt = sum(len(WORD.findall(json.dumps(message["content"]))) for message in body["messages"])
    usage = _usage(prompt, sum(len(WORD.findall(text)) for text, _ in samples))
    base = {"id": "1", "created": 1, "model": body["model"]}
    if body.get("stream"):
        events: list[Any] = []
        for index, (text, reason) in enumerate(samples):
            pieces = [{"role": "assistant", "content": ""}, *({"content": word} for word in WORD.findall(text))]
            events += [[index, piece, None] for piece in pieces] + [[index, {}, reason]]
        chunks: list[Any] = [
            {
                **base,
                "object": "chat.completion.chunk",
                "choices": [{"index": index, "delta": delta, "finish_reason": reason}],
            }
            for index, delta, reason in events
        ]
        chunks.append({**base, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        return {}, [*chunks, "[DONE]"]
    choices = []
    for index, (text, reason) in enumerate(samples):
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": said.refusal or None}
        if said.thoughts:
            message["reasoning_content"] = said.thoughts
        choice: dict[str, Any] = {"index": index, "message": message, "finish_reason": reason}
        if body.get("logprobs"):
            tops = [{"token": f"alt{i}", "logprob": -2.0 - i, "bytes": None} for i in range(body["top_logprobs"])]
            tokens = [{"token": w, "logprob": -0.5, "bytes": None, "top_logprobs": tops} for w in WORD.findall(text)]
            choice["logprobs"] = {"content": tokens, "refusal": None}
        choices.append(choice)
    return {**base, "object": "chat.completion", "choices": choices, "usage": usage}, None


def _completion_of(choices: list[Any], prompt: int, answer: int) -> dict[str, Any]:
    base = {"id": "1", "object": "text_completion", "created": 1, "model": "m"}
    return {**base, "choices": choices, "usage": _usage(prompt, answer)}


def _completion(body: dict[str, Any], said: Said) -> tuple[dict[str, Any], list[Any] | None]:
    samples = _samples(body, said)
    counts = len(WORD.findall(body["prompt"])), sum(len(WORD.findall(text)) for text, _ in samples)
    if body.get("stream"):
        events: list[Any] = []
        for index, (text, reason) in enumerate(samples):
            pieces = [{"index": index, "text": word, "finish_reason": None} for word in WORD.findall(text)]
            events += [_completion_of([piece], 0, 0) for piece in pieces]
            events.append(_completion_of([{"index": index, "text": "", "finish_reason": reason}], *counts))
        return {}, [*events, "[DONE]"]
    choices = [{"index": i, "text": text, "finish_reason": reason} for i, (text, reason) in enumerate(samples)]
    return _completion_of(choices, *counts), None


def _messages(body: dict[str, Any], said: Said) -> tuple[dict[str, Any], list[Any] | None]:
    text, reason, stop = _ended(said.texts[0], body.get("stop_sequences", []), body["max_tokens"])
    ends = {"stop": "stop_sequence" if stop else "end_turn", "length": "max_tokens"}
    return {}, list(_message_events(body, said, text, "refusal" if said.refusal else ends[reason], stop))


def _message_events(body: dict[str, Any], said: Said, text: str, reason: str, stop: str | None) -> Iterator[Any]:
    usage = {"input_tokens": 7, "output_tokens": 1, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}
    message = {"id": "m", "type": "message", "role": "assistant", "model": body["model"], "content": []}
    yield {
        "type": "message_start",
        "message": {**message, "stop_reason": None, "stop_sequence": None, "usage": usage},
    }
    block = 0
    if said.thoughts:
        yield {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        }
        yield {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "thinking_delta", "thinking": said.thoughts},
        }
        yield {"type": "content_block_stop", "index": 0}
        block = 1
    yield {"type": "content_block_start", "index": block, "content_block": {"type": "text", "text": ""}}
    for word in WORD.findall(text):
        yield {"type": "content_block_delta", "index": block, "delta": {"type": "text_delta", "text": word}}
    yield {"type": "content_block_stop", "index": block}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": stop},
        "usage": {"output_tokens": len(WORD.findall(text))},
    }
    yield {"type": "message_stop"}
