"""OpenAI's API, and every server that speaks it, as a backend: chat completions and the older text completions.

Knows: the openai client library, the API's request and answer formats. Must not know: how programs are run.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
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
from branchwork.lang.errors import BackendError
from branchwork.lang.ir import Image
from branchwork.lang.params import SamplingParams
from branchwork.lang.protocol import ChatFrames

TEXT_MODELS = ("gpt-3.5-turbo-instruct", "davinci-002", "babbage-002")  # OpenAI's own that take no messages
PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_KNOBS = frozenset({"stop", "top_p", "frequency_penalty", "presence_penalty", "seed", "n", "logprobs"})
_API_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}


class OpenAI(HostedBackend):
    """Programs on a model behind OpenAI's API, or behind any server that speaks it (base_url=).

    is_chat_model: whether it takes messages; None: all but OpenAI's own text completion models do. chat_template: how
    roles are written into the one text that a completion model gets, and into a state's text(). is_azure: through
    Azure's client. extra_body: fields added to every request, such as {"reasoning_effort": "low"}.
    client_args: those of openai.AsyncOpenAI, or AsyncAzureOpenAI (api_key, base_url, timeout, max_retries ...).
    Raises BackendError without the library or without what it needs, such as a key.
    """

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: ChatFrames | None = None,
        is_azure: bool = False,
        *,
        extra_body: Mapping[str, Any] | None = None,
        **client_args: Any,
    ) -> None:
        if chat_template is not None and not isinstance(chat_template, ChatFrames):
            raise TypeError(f"chat_template takes ChatFrames (a role's text before and after), got {chat_template!r}")
        openai = library("openai", "openai")
        make = openai.AsyncAzureOpenAI if is_azure else openai.AsyncOpenAI
        try:
            clients = PerLoop(lambda: make(**client_args))
        except openai.OpenAIError as error:
            raise BackendError(f"no client for OpenAI's API: {error}") from error
        chat = model_name not in TEXT_MODELS if is_chat_model is None else is_chat_model
        api = (_Chat if chat else _Completions)(openai, clients, model_name, dict(extra_body or {}), is_azure)
        super().__init__(api, model=model_name, frames=chat_template)


class _Endpoint:
    """What both endpoints share: a client, its failures, the spelling of parameters."""

    def __init__(self, openai: Any, clients: PerLoop, model: str, extra: dict[str, Any], is_azure: bool) -> None:
        self._openai, self._clients, self._model, self._extra = openai, clients, model, extra
        host = str(clients.get(None).base_url.host)
        self._original = is_azure or host == "openai.com" or host.endswith(".openai.com")

    async def close(self) -> None:
        await self._client().close()

    def _client(self) -> Any:
        return self._clients.get(asyncio.get_running_loop())

    def _body(self, params: SamplingParams) -> dict[str, Any]:
        """Other servers may have other defaults, so they are told every parameter; some of OpenAI's own models take
        none of them, so those are told only what differs from the API's default."""
        chosen = {name: getattr(params, name) for name in _API_DEFAULTS}
        if self._original:
            chosen = {name: value for name, value in chosen.items() if value != _API_DEFAULTS[name]}
        more = {"n": params.n if params.n > 1 else None, "seed": params.seed, "stop": list(params.stop) or None}
        body = {"model": self._model, **chosen, **{name: value for name, value in more.items() if value is not None}}
        return {**body, "extra_body": self._extra} if self._extra else body

    @contextmanager
    def _failures(self, who: str) -> Iterator[None]:
        try:
            yield
        except self._openai.APITimeoutError as error:
            raise call_failed(who, 408, error.message) from error
        except self._openai.APIStatusError as error:
            raise call_failed(who, error.status_code, error.message) from error
        except self._openai.APIConnectionError as error:
            raise call_failed(who, None, f"{error.message} {error.__cause__ or ''}".rstrip()) from error
        except self._openai.APIError as error:  # an error event in the middle of a stream
            raise call_failed(who, 500, error.message) from error
        except self._openai.OpenAIError as error:
            raise CallFailed("auth", f"{who}: {error}") from error

    async def _chunks(self, create: Any, body: dict[str, Any]) -> AsyncIterator[Any]:
        stream = await create(stream=True, stream_options={"include_usage": True}, **body)
        async with stream:
            async for chunk in stream:
                yield chunk


class _Chat(_Endpoint):
    @property
    def rules(self) -> Rules:
        who = f"the chat API of {self._model!r}"
        return Rules(who, _KNOBS, 2.0, chat=True, continues=False, schemas=True, pictures=PICTURES)

    async def generate(self, request: Request, emit: Callable[[str], None]) -> Outcome:
        params = request.params
        body = {**self._body(params), "messages": [_message(message) for message in request.messages]}
        body["max_completion_tokens" if self._original else "max_tokens"] = params.max_tokens
        if params.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": params.logprobs}
        if request.form is not None:
            schema = {"name": "answer", "strict": True, "schema": dict(request.form.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        with self._failures(self.rules.who):
            create = self._client().chat.completions.create
            if request.stream:
                return await self._streamed(create, body, params.n, emit)
            answer = await create(**body)
        answers = [_Answer() for _ in range(max(params.n, len(answer.choices)))]
        for choice in answer.choices:
            answers[choice.index].add(choice, choice.message)
        return _outcome(answers, answer.usage, self.rules.who)

    async def _streamed(self, create: Any, body: dict[str, Any], n: int, emit: Callable[[str], None]) -> Outcome:
        answers, usage = [_Answer() for _ in range(n)], None
        async for chunk in self._chunks(create, body):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                answers[choice.index].add(choice, choice.delta)
                if choice.index == 0 and choice.delta.content:
                    emit(choice.delta.content)
        return _outcome(answers, usage, self.rules.who)

    async def score(self, prompt: str, options: tuple[str, ...]) -> Scores:
        raise CallFailed("unsupported", f"{self.rules.who} does not score given texts")


class _Completions(_Endpoint):
    @property
    def rules(self) -> Rules:
        who = f"the completion API of {self._model!r}"
        return Rules(who, _KNOBS, 2.0, chat=False, continues=True, scores=True)

    async def generate(self, request: Request, emit: Callable[[str], None]) -> Outcome:
        params = request.params
        body = {**self._body(params), "prompt": request.prompt, "max_tokens": params.max_tokens}
        if params.logprobs is not None:
            body["logprobs"] = params.logprobs
        with self._failures(self.rules.who):
            create = self._client().completions.create
            answers, usage = [_Answer() for _ in range(params.n)], None
            if request.stream:
                async for chunk in self._chunks(create, body):
                    usage = chunk.usage or usage
                    for choice in chunk.choices:
                        answers[choice.index].add_text(choice)
                        if choice.index == 0 and choice.text:
                            emit(choice.text)
            else:
                answer = await create(**body)
                usage = answer.usage
                for choice in answer.choices:
                    answers[choice.index].add_text(choice)
        return _outcome(answers, usage, self.rules.who)

    async def score(self, prompt: str, options: tuple[str, ...]) -> Scores:
        """The prompt with each option after it is a prompt; nothing is generated, its tokens are scored."""
        body = {"model": self._model, "prompt": [prompt + option for option in options], "max_tokens": 0}
        body |= {"extra_body": self._extra} if self._extra else {}
        try:
            with self._failures(self.rules.who):
                answer = await self._client().completions.create(echo=True, logprobs=1, temperature=0.0, **body)
        except CallFailed as failed:
            if failed.code != "bad_request":
                raise
            raise CallFailed(
                "unsupported",
                f"select needs log-probabilities of a prompt (echo with logprobs), which "
                f"this server does not give: {failed.message}",
            ) from failed
        told = {choice.index: choice.logprobs for choice in answer.choices}
        found = [told.get(index) for index in range(len(options))]
        if not all(item and item.text_offset and item.token_logprobs and item.tokens for item in found):
            raise CallFailed(
                "unsupported",
                f"select needs log-probabilities of a prompt (echo with logprobs), and "
                f"{self.rules.who} answered without them",
            )
        return Scores(_after(prompt, found), _usage(answer.usage))


def _after(prompt: str, found: list[Any]) -> list[list[float]]:
    """Of every option the log-probabilities of its tokens. Where a token holds the end of the prompt and the beginning
    of an option, all options are scored from where it begins, so that all are scored from the same start."""
    spans = [[(at, at + len(token)) for at, token in zip(item.text_offset, item.tokens)] for item in found]
    start = min(begin for option in spans for begin, end in option if end > len(prompt))
    return [
        [value for value, (_, end) in zip(item.token_logprobs, option) if end > start and value is not None]
        for item, option in zip(found, spans)
    ]


class _Answer:
    """One sample as it comes, whole or in pieces."""

    def __init__(self) -> None:
        self.text = self.thoughts = self.refusal = ""
        self.finish_reason: str | None = None
        self.matched: str | None = None
        self.tokens: list[tuple[float, None, str]] = []
        self.tops: list[list[tuple[float, None, str]]] = []
        self.scored = False

    def add(self, choice: Any, said: Any) -> None:
        """said: a chat API's message, or a piece of one."""
        self._end(choice)
        self.text += said.content or ""
        self.refusal += said.refusal or ""
        self.thoughts += (said.model_extra or {}).get("reasoning_content") or ""  # other servers' thinking models
        for token in (choice.logprobs and choice.logprobs.content) or ():
            self.scored = True
            self.tokens.append((token.logprob, None, token.token))
            self.tops.append([(top.logprob, None, top.token) for top in token.top_logprobs])

    def add_text(self, choice: Any) -> None:
        """Of a completion API."""
        self._end(choice)
        self.text += choice.text or ""
        if choice.logprobs is not None and choice.logprobs.tokens:
            self.scored = True
            self.tokens += [
                (p, None, token) for p, token in zip(choice.logprobs.token_logprobs, choice.logprobs.tokens)
            ]
            tops = choice.logprobs.top_logprobs or []
            self.tops += [[(value, None, token) for token, value in (top or {}).items()] for top in tops]

    def _end(self, choice: Any) -> None:
        self.finish_reason = choice.finish_reason or self.finish_reason
        stop = (choice.model_extra or {}).get("stop_reason")  # some servers say which stop it was
        self.matched = stop if isinstance(stop, str) else self.matched


def _outcome(answers: list[_Answer], usage: Any, who: str) -> Outcome:
    """The API counts the tokens of all samples together; the first one's meta has them."""
    used = _usage(usage)
    samples: list[Sample] = []
    given = sum(answer.finish_reason is not None or bool(answer.text) for answer in answers)
    if 0 < given < len(answers):
        raise CallFailed(
            "unsupported", f"{who} gave {given} of n={len(answers)} samples; fork the program instead of n="
        )
    for number, answer in enumerate(answers):
        if answer.refusal:
            raise CallFailed("refused", f"the model refused: {answer.refusal}")
        if answer.finish_reason is None:
            raise call_failed(who, None, "the answer ended before it was complete")
        samples.append(
            Sample(
                answer.text,
                answer.finish_reason,
                answer.matched,
                answer.thoughts,
                prompt_tokens=used.prompt_tokens if usage else None,
                completion_tokens=(used.completion_tokens if number == 0 else 0) if usage else None,
                cached_tokens=used.cached_tokens if usage and usage.prompt_tokens_details else None,
                token_logprobs=answer.tokens if answer.scored else None,
                top_logprobs=answer.tops if answer.scored else None,
            )
        )
    return Outcome(tuple(samples), used)


def _usage(usage: Any) -> TokenUsage:
    if usage is None:
        return TokenUsage(requests=1)
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
    return TokenUsage(usage.prompt_tokens or 0, usage.completion_tokens or 0, cached or 0, 1)


def _message(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [_part(part) for part in message.parts]}


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, Image):
        data = base64.b64encode(part.data).decode()
        return {"type": "image_url", "image_url": {"url": f"data:{part.media};base64,{data}"}}
    return {"type": "text", "text": part}
