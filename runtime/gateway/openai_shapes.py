"""The shapes of OpenAI's answers: errors, ids, usage, and log-probabilities of chats and of completions.

Knows: OpenAI's names, what the gateway tells of an answer. Must not know: requests, HTTP, prompts.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from branchwork.runtime.gateway.served import Served
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.web import Dialect, event

LEAST = -9999.0  # stands for the log-probability of what cannot be: JSON has no infinity
DONE = event("[DONE]")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {"context_length": "context_length_exceeded", "rate_limited": "rate_limit_exceeded"}


def error(problem: Problem) -> dict[str, Any]:
    """{"error": {...}}."""
    kind = _TYPES.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    code = _CODES.get(problem.code, problem.code)
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": code}}


def broken(problem: Problem) -> bytes:
    """An error within a stream."""
    return event(error(problem))


DIALECT = Dialect("openai", lambda problem: (error(problem), {}))


def new_id(kind: str) -> str:
    """An id that nothing else has: chatcmpl-..., call_... ."""
    return f"{kind}{'-' if kind.endswith('cmpl') else '_'}{secrets.token_hex(16)}"


def fingerprint(served: Served) -> str:
    """The same for answers that the same seed makes the same: of a model, its weights' kind, and its device."""
    ready = served.ready
    facts = "|".join((served.name, ready.family, ready.dtype, ready.quantization, ready.device))
    return f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:10]}"


class Usage(NamedTuple):
    """Tokens of a request. reasoning: those of the thinking."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def with_answer(self, meta: Mapping[str, Any], reasoning: int = 0, *, first: bool = True) -> Usage:
        """And an answer's. first: of its prompt, which counts once."""
        return Usage(
            self.prompt + (meta["prompt_tokens"] if first else 0),
            self.cached + (meta["cached_tokens"] if first else 0),
            self.completion + meta["completion_tokens"],
            self.reasoning + reasoning,
        )

    def shape(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


# --- log-probabilities

Triple = tuple[float | None, int, str]


class Token(NamedTuple):
    """One token: its bytes, its name where it has none, its log-probability (None for the first of all).

    tops: bytes, name and log-probability of the likeliest ones in its place.
    """

    data: bytes
    name: str
    logprob: float | None
    tops: Sequence[tuple[bytes, str, float]]

    @property
    def text(self) -> str:
        """What it reads as; bytes that are no text on their own are named one by one."""
        return _named(self.data, self.name)


def tokens(served: Served, triples: Sequence[Triple], tops: Sequence[Sequence[Triple]]) -> list[Token]:
    """Tokens as meta has them."""
    table = served.texts.token_bytes
    found = []
    for (value, number, name), likely in zip(triples, tops):
        best = [(table[top], called, max(score or 0.0, LEAST)) for score, top, called in likely]
        found.append(Token(table[number], name, None if value is None else max(value, LEAST), best))
    return found


class Shown:
    """Holds back tokens until the text that they stand for is shown: of what a stop cuts off nothing is told."""

    def __init__(self) -> None:
        self._waiting: deque[Token] = deque()
        self._begin = 0  # bytes before the first one that waits
        self._shown = 0

    def feed(self, text: str, given: Sequence[Token]) -> list[Token]:
        """More text and more tokens; the tokens that are shown now."""
        self._waiting += given
        self._shown += len(text.encode())
        found = []
        while self._waiting and self._begin < self._shown:
            found.append(self._waiting.popleft())
            self._begin += len(found[-1].data)
        return found


def chat_logprobs(found: Sequence[Token]) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    content = [
        {
            "token": token.text,
            "logprob": token.logprob,
            "bytes": list(token.data),
            "top_logprobs": [
                {"token": _named(data, name), "logprob": value, "bytes": list(data)} for data, name, value in token.tops
            ],
        }
        for token in found
    ]
    return {"content": content, "refusal": None}


def text_logprobs(found: Sequence[Token], offset: int) -> dict[str, Any]:
    """The `logprobs` of a completion's choice. offset: characters of its text before the first token."""
    offsets, data = [], b""
    for token in found:
        offsets.append(offset + len(data.decode("utf-8", "ignore")))
        data += token.data or token.name.encode()
    return {
        "tokens": [token.text for token in found],
        "token_logprobs": [token.logprob for token in found],
        "top_logprobs": [_likeliest(token) for token in found],
        "text_offset": offsets,
    }


def _likeliest(token: Token) -> dict[str, float] | None:
    """By text, the token's own among them."""
    if token.logprob is None:
        return None
    named: dict[str, float] = {token.text: token.logprob}
    for data, name, value in token.tops:
        text = _named(data, name)
        named[text] = max(value, named.get(text, LEAST))
    return named


def _named(data: bytes, name: str) -> str:
    try:
        return data.decode() if data else name
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
