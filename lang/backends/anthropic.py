"""Anthropic's Messages API as a backend.

Knows: the anthropic client library, the API's request and event formats. Must not know: how programs are run.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from branchwork.lang.backend import CallFailed
from branchwork.lang.backends.conversation import Message
from branchwork.lang.backends.hosted import (
    HostedBackend,
    Outcome,
    PerLoop,
    Request,
    Rules,
    Sample,
    Scores,
    TokenUsage,
    call_failed,
    library,
)
from branchwork.lang.backends.trim import Trim
from branchwork.lang.errors import BackendError
from branchwork.lang.ir import Image
from branchwork.lang.params import SamplingParams

PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_NO_KEY = "Anthropic's API needs a key: set ANTHROPIC_API_KEY, or pass api_key="
_KNOBS = frozenset({"stop", "top_p", "top_k", "n"})
_ENDS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "model_context_window_exceeded": "length"}


class Anthropic(HostedBackend):
    """Programs on a model behind Anthropic's API.

    prefill: whether the model goes on from the middle of its own turn; the newer ones do not and answer 400, and with
    False such gens are refused here. Stops of white space alone are unknown to the API: the text after one is
    generated, counted, and cut off here. extra_body: fields added to every request, such as {"thinking": {...}}.
    client_args: those of anthropic.AsyncAnthropic (api_key, base_url, timeout, max_retries ...).
    Raises BackendError without the library or without a key.
    """

    def __init__(
        self, model_name: str, *, prefill: bool = True, extra_body: Mapping[str, Any] | None = None, **client_args: Any
    ) -> None:
        anthropic = library("anthropic", "anthropic")
        try:
            clients = PerLoop(lambda: anthropic.AsyncAnthropic(**client_args))
        except anthropic.AnthropicError as error:
            raise BackendError(f"{error}; {_NO_KEY}") from error
        client = clients.get(None)
        known = [getattr(client, name, None) for name in ("api_key", "auth_token", "credentials")]
        if known == [None] * 3:
            raise BackendError(_NO_KEY)
        super().__init__(_Messages(anthropic, clients, model_name, prefill, dict(extra_body or {})), model=model_name)


class _Messages:
    def __init__(self, anthropic: Any, clients: PerLoop, model: str, prefill: bool, extra: dict[str, Any]) -> None:
        self._anthropic, self._clients, self._model, self._extra = anthropic, clients, model, extra
        # the HTTP library under the client, whose errors come through in the middle of a stream
        self._http = import_module(anthropic.DefaultAsyncHttpxClient.__base__.__module__.partition(".")[0])
        who = f"the messages API of {model!r}"
        self.rules = Rules(who, _KNOBS, 1.0, chat=True, continues=prefill, schemas=True, pictures=PICTURES)

    async def close(self) -> None:
        await self._clients.get(asyncio.get_running_loop()).close()

    async def score(self, prompt: str, options: tuple[str, ...]) -> Scores:
        raise CallFailed("unsupported", f"{self.rules.who} does not score given texts")

    async def generate(self, request: Request, emit: Callable[[str], None]) -> Outcome:
        """The API draws one sample per request, so n samples are n requests side by side."""
        body = self._body(request)
        listeners = [emit] + [_nobody] * (request.params.n - 1)
        tasks = [asyncio.ensure_future(self._sample(request, body, listener)) for listener in listeners]
        try:
            samples = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        usage = TokenUsage()
        for sample in samples:
            usage.add(
                TokenUsage(sample.prompt_tokens or 0, sample.completion_tokens or 0, sample.cached_tokens or 0, 1)
            )
        return Outcome(tuple(samples), usage)

    def _body(self, request: Request) -> dict[str, Any]:
        params = request.params
        system, messages = _split(request.messages, self.rules.who)
        if request.prefix.strip():
            messages.append({"role": "assistant", "content": request.prefix.rstrip()})
        body: dict[str, Any] = {"model": self._model, "max_tokens": params.max_tokens, "messages": messages}
        if system:
            body["system"] = system
        if stops := [stop for stop in params.stop if stop.strip()]:
            body["stop_sequences"] = stops
        # the client library has no arguments, or not in all versions, for what is in extra_body
        more = _drawing(params)
        if request.form is not None:
            held = {"format": {"type": "json_schema", "schema": dict(request.form.schema)}}
            more["output_config"] = {**self._extra.get("output_config", {}), **held}
        return {**body, "extra_body": {**self._extra, **more}}

    async def _sample(self, request: Request, body: dict[str, Any], emit: Callable[[str], None]) -> Sample:
        """One answer. The API takes neither a turn so far that ends in white space nor a stop of nothing else: that
        white space is left out and taken off the answer where it repeats it, those stops are cut here."""
        lead = request.prefix[len(request.prefix.rstrip()) :]
        trim = Trim(lead, tuple(stop for stop in request.params.stop if not stop.strip()))
        text, thoughts, reason, matched = "", "", None, None
        counts: dict[str, int] = {}

        def hear(piece: str) -> str:
            if piece and request.stream:
                emit(piece)
            return piece

        with self._failures():
            client = self._clients.get(asyncio.get_running_loop())
            stream = await client.messages.create(stream=True, **body)
            async with stream:
                async for event in stream:
                    match event.type:
                        case "message_start":
                            counts |= _counts(event.message.usage)
                        case "content_block_start" if event.content_block.type == "text":
                            text += hear(trim.feed(event.content_block.text))
                        case "content_block_delta" if event.delta.type == "text_delta":
                            text += hear(trim.feed(event.delta.text))
                        case "content_block_delta" if event.delta.type == "thinking_delta":
                            thoughts += event.delta.thinking
                        case "message_delta":
                            counts |= _counts(event.usage)
                            reason, matched = event.delta.stop_reason, event.delta.stop_sequence
        text += hear(trim.end())
        if reason is None:
            raise call_failed(self.rules.who, None, "the answer ended before it was complete")
        if reason == "refusal":
            raise CallFailed("refused", f"{self.rules.who}: the model refused to answer")
        if trim.matched is not None:
            reason, matched = "stop_sequence", trim.matched
        cached = counts.get("cache_read_input_tokens", 0)
        prompt = counts.get("input_tokens", 0) + cached + counts.get("cache_creation_input_tokens", 0)
        return Sample(
            text,
            _ENDS.get(reason, reason),
            matched,
            thoughts,
            prompt_tokens=prompt,
            completion_tokens=counts.get("output_tokens"),
            cached_tokens=cached,
        )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        who = self.rules.who
        try:
            yield
        except self._anthropic.APITimeoutError as error:
            raise call_failed(who, 408, error.message) from error
        except self._anthropic.APIStatusError as error:
            raise call_failed(who, _STATUS.get(error.type, error.status_code), error.message) from error
        except self._anthropic.APIConnectionError as error:
            raise call_failed(who, None, f"{error.message} {error.__cause__ or ''}".rstrip()) from error
        except self._anthropic.AnthropicError as error:
            raise CallFailed("auth", f"{who}: {error}") from error
        except self._http.HTTPError as error:
            raise call_failed(who, None, f"the connection broke: {error}") from error


# an error in the middle of a stream comes with the status of its beginning, 200
_STATUS = {"rate_limit_error": 429, "overloaded_error": 529, "api_error": 500, "timeout_error": 504}


def _nobody(text: str) -> None:
    """Hears a sample that is not streamed."""


def _drawing(params: SamplingParams) -> dict[str, Any]:
    """What differs from the API's defaults, since some models refuse even those."""
    chosen: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p, "top_k": max(params.top_k, 0)}
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return {name: value for name, value in chosen.items() if value != defaults[name]}


def _counts(usage: Any) -> dict[str, int]:
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    return {name: value for name in names if (value := getattr(usage, name, None)) is not None}


def _split(messages: tuple[Message, ...], who: str) -> tuple[str, list[dict[str, Any]]]:
    """The system's text, which stands apart, and the other messages."""
    count = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    rest = messages[count:]
    if any(message.role == "system" for message in rest):
        raise CallFailed("unsupported", f"{who} takes system messages before all others only")
    if not rest:
        raise CallFailed("unsupported", f"{who} answers a user's message, and there is none; add user(...)")
    return "\n\n".join(message.text for message in messages[:count]), [_message(message) for message in rest]


def _message(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [_part(part) for part in message.parts]}


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, Image):
        data = base64.b64encode(part.data).decode()
        return {"type": "image", "source": {"type": "base64", "media_type": part.media, "data": data}}
    return {"type": "text", "text": part}
