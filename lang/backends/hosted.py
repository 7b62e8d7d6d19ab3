"""Hosted APIs as backends: a program's machine runs in this process, every gen becomes a request of its own.

Knows: what an API can do (Rules), calls, replies, merged calls. Must not know: client libraries, message formats.
What an API cannot do is refused, at the line that lays it where one node tells, else when it is executed; nothing
that a program asks for is left out silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol

import msgspec

from branchwork.lang import loop
from branchwork.lang.backend import Call, CallFailed, Chunk, Emit, LocalBackend, Reply, Session, Sink
from branchwork.lang.backends.conversation import Message, conversation
from branchwork.lang.backends.schemas import Form, form_of
from branchwork.lang.backends.speculate import TRIES, Ahead, Piece, Run, match
from branchwork.lang.choices import decide, greedy_token_selection, token_length_normalized
from branchwork.lang.errors import BackendError, CapabilityError
from branchwork.lang.ir import Gen, Image, Node, Reasoning, RoleBegin, Select, Video
from branchwork.lang.params import SamplingParams
from branchwork.lang.protocol import Budget, ChatFrames
from branchwork.lang.transcript import Branch

ROLES = ("system", "user", "assistant")
SCORERS = (token_length_normalized, greedy_token_selection)
_DEFAULTS = SamplingParams()


@dataclass(frozen=True)
class Rules:
    """What an API can do. who: how errors name it.

    knobs: sampling parameters it takes, beside max_tokens and temperature. warmest: its highest temperature.
    chat: it takes messages; otherwise one text. continues: it goes on from the middle of an assistant's turn.
    schemas: it can be held to a JSON schema. scores: it scores a given text. pictures: MIME types it can see.
    """

    who: str
    knobs: frozenset[str]
    warmest: float
    chat: bool
    continues: bool
    schemas: bool = False
    scores: bool = False
    pictures: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Request:
    """One request. messages for a chat API, with `prefix`, the text so far of the turn to be continued; else prompt."""

    params: SamplingParams
    messages: tuple[Message, ...] = ()
    prefix: str = ""
    prompt: str = ""
    form: Form | None = None
    stream: bool = False


@dataclass(frozen=True)
class Sample:
    """One answer. thoughts: what the API sets apart as reasoning. Counts are None where the API does not tell.

    token_logprobs: (log-probability, None, text) per token; top_logprobs: a list of such per token.
    """

    text: str
    finish_reason: str
    matched: str | None = None
    thoughts: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    token_logprobs: list[tuple[float, None, str]] | None = None
    top_logprobs: list[list[tuple[float, None, str]]] | None = None


@dataclass
class TokenUsage:
    """Tokens as the API counts them, and requests that were answered."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    requests: int = 0

    def add(self, other: TokenUsage) -> None:
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens
        self.requests += other.requests


@dataclass(frozen=True)
class Outcome:
    """The answers to a request, one per sample, and what they used together."""

    samples: tuple[Sample, ...]
    usage: TokenUsage = field(default_factory=TokenUsage)


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of every option's tokens after the same prompt: [options][tokens]."""

    options: list[list[float]]
    usage: TokenUsage = field(default_factory=TokenUsage)


class Api(Protocol):
    """One hosted API. What it raises is CallFailed; cancelling a coroutine of it gives up its HTTP request."""

    @property
    def rules(self) -> Rules: ...

    async def generate(self, request: Request, emit: Callable[[str], None]) -> Outcome:
        """Answer. emit: hears the first sample piece by piece, when request.stream."""

    async def score(self, prompt: str, options: tuple[str, ...]) -> Scores: ...

    async def close(self) -> None: ...


class HostedBackend:
    """Runs programs on `api`. token_usage: everything that this backend has used so far."""

    def __init__(self, api: Api, *, model: str, frames: ChatFrames | None = None) -> None:
        self.model = model
        self.frames = frames or ChatFrames()
        self.token_usage = TokenUsage()
        self._api = api

    def open(self, sink: Sink, stream: bool, budget: Budget | None = None, speculate: int | None = None) -> Session:
        """speculate: tokens of one call for a turn of several gens (num_api_spec_tokens).

        Raises CapabilityError when merged calls are to be streamed, ValueError for less than one token.
        """
        if speculate is not None and speculate < 1:
            raise ValueError(f"num_api_spec_tokens={speculate!r} allows no text; give at least 1")
        if speculate is not None and stream:
            raise CapabilityError(
                "num_api_spec_tokens answers several gens with one call, whose text is taken apart when it is complete;"
                " run without stream=True, or without num_api_spec_tokens"
            )
        ahead = None if speculate is None else Ahead(speculate)
        run = _Execution(self._api, self.token_usage, stream, ahead)
        session = LocalBackend(run.execute, model=self.model, frames=self.frames).open(sink, stream, budget)
        return session if ahead is None else ahead.noting(session)

    def accept(self, node: Node) -> None:
        refuse(node, self._api.rules)

    def close(self) -> None:
        """Close the connections. Programs that still run on it fail."""
        loop.run(self._api.close())


def refuse(node: Node, rules: Rules) -> None:
    """Raises CapabilityError for a node that an API cannot execute, where the node alone tells."""
    match node:
        case Gen(given=None, params=params, constraint=constraint, reasoning=reasoning):
            _refuse_knobs(params or _DEFAULTS, rules)
            apart = reasoning is not None
            form = None if constraint is None else form_of(constraint, rules.who, rules.schemas, apart)
            if form is not None and form.wrapped and params is not None and params.logprobs is not None:
                raise CapabilityError(
                    f"{rules.who} is asked for this answer inside a JSON object, so logprobs= would be of other tokens"
                )
        case Select(given=None, method=method):
            if not rules.scores:
                raise CapabilityError(
                    f"{rules.who} does not score given texts, so it cannot select; have one of them drawn instead: "
                    "gen(..., choices=bw.Choice((...)), temperature=0)"
                    + ("" if rules.schemas else ", on an API that takes JSON schemas")
                )
            if method not in SCORERS:
                raise CapabilityError(f"{rules.who} gives no scores for choices_method={method!r}; it has {SCORERS}")
        case RoleBegin(role) if rules.chat and role not in ROLES:
            raise CapabilityError(f"{rules.who} has no role {role!r}; it has {', '.join(ROLES)}")
        case Video():
            raise CapabilityError(f"{rules.who} cannot see videos; give it single pictures with image(...)")
        case Image(media=media) if media not in rules.pictures:
            seen = ", ".join(sorted(rules.pictures)) or "no pictures at all"
            raise CapabilityError(f"{rules.who} cannot see a picture of type {media!r}; it sees {seen}")


def _refuse_knobs(params: SamplingParams, rules: Rules) -> None:
    known = rules.knobs | {"max_tokens", "temperature"}
    for name in SamplingParams.__struct_fields__:
        value = getattr(params, name)
        if name not in known and value != getattr(_DEFAULTS, name):
            raise CapabilityError(f"{rules.who} has no {name} (here {value!r}); leave it out, or use another backend")
    if params.temperature > rules.warmest:
        raise CapabilityError(f"{rules.who} takes temperatures up to {rules.warmest:g}, not {params.temperature:g}")


def call_failed(who: str, status: int | None, message: str) -> CallFailed:
    """The failure of a request by its HTTP status (None: no answer came) with what to do about it."""
    code, advice = "server", "the API is in trouble; try again later"
    if status is None:
        code, advice = "connection", "check base_url and the network"
    elif status in (401, 403):
        code, advice = "auth", "check api_key and what it may use"
    elif status == 429:
        code, advice = "rate_limit", "run fewer programs at once (num_threads=), or raise max_retries="
    elif status in (408, 504):
        code, advice = "timeout", "raise timeout= (seconds), or ask for fewer tokens"
    elif status == 404:
        code, advice = "bad_request", "check the model's name and base_url"
    elif status < 500:
        code, advice = "bad_request", "the API does not take this request as it is"
    return CallFailed(code, f"{who}: {message} ({advice})")


class _Execution:
    """Answers the calls of one program."""

    def __init__(self, api: Api, usage: TokenUsage, stream: bool, ahead: Ahead | None) -> None:
        self._api, self._usage, self._stream, self._ahead = api, usage, stream, ahead

    async def execute(self, call: Call, branch: Branch, emit: Emit) -> Reply:
        if call.kind == "select":
            return await self._select(call, branch)
        if self._ahead is not None and (piece := self._ahead.take(call.node)) is not None:
            return Reply((piece.text,), (_piece_meta(piece, {"prompt_tokens": 0, "completion_tokens": 0}, 0),))
        request = self._request(call, branch)
        run = None if self._ahead is None else self._ahead.run(call, self._api.rules)
        literal = None if self._api.rules.continues else self._unsaid(branch, request.prefix, run)
        if run is not None and (literal or run.several):
            return await self._merged(call, request, run.after(literal or ""), emit)
        return await self._plain(call, request, emit)

    def _request(self, call: Call, branch: Branch) -> Request:
        rules, apart = self._api.rules, call.reasoning is not None
        form = None if call.constraint is None else form_of(call.constraint, rules.who, rules.schemas, apart)
        stream = self._stream and (form is None or not form.wrapped)
        request = Request(call.params, form=form, stream=stream)
        if not self._api.rules.chat:
            return replace(request, prompt=branch.text)
        messages, prefix = conversation(branch, self._api.rules.who)
        if prefix and form is not None:
            raise CallFailed(
                "unsupported",
                f"{self._api.rules.who} cannot hold the rest of a turn to a schema; "
                "put the text before this gen into the user's message, or the gen into a turn of its own",
            )
        return replace(request, messages=messages, prefix=prefix)

    def _unsaid(self, branch: Branch, prefix: str, run: Run | None) -> str:
        """The text before a gen in its turn, where the API cannot go on from it: the model has to write it itself."""
        if not prefix:
            return ""
        if run is None:
            raise CallFailed(
                "unsupported",
                f"{self._api.rules.who} cannot go on from the middle of a turn, so a gen must be the first thing in "
                f"its assistant(...), and here {prefix[-60:]!r} comes before it; move that text into the user's "
                "message, use one assistant(...) per gen, or @function(num_api_spec_tokens=...) and the whole turn in "
                "one expression",
            )
        if any(segment.origin != "literal" for segment in branch.segments[branch.turns[-1].first :]):
            raise CallFailed(
                "unsupported",
                f"{self._api.rules.who} cannot go on from the middle of a turn, and this gen was not part of the "
                "merged call that began it; write the whole turn in one expression, s += assistant(...), of texts and "
                "gens alone",
            )
        return prefix

    async def _generate(self, request: Request, emit: Emit) -> Outcome:
        outcome = await self._api.generate(request, lambda text: emit(Chunk(text)))
        self._usage.add(outcome.usage)
        return outcome

    async def _plain(self, call: Call, request: Request, emit: Emit, spent: int = 0) -> Reply:
        """spent: tokens that were generated for this call in vain before."""
        outcome = await self._generate(request, emit)
        texts, meta = [], []
        for sample in outcome.samples:
            text = sample.text if request.form is None else request.form.read(sample.text, sample.finish_reason)
            texts.append(_with_thoughts(text, sample, call.reasoning))
            meta.append(_meta(sample) if call.reasoning is None else _meta(replace(sample, thoughts="")))
        if spent:
            meta[0]["completion_tokens"] = meta[0].get("completion_tokens", 0) + spent
        return Reply(tuple(texts), tuple(meta))

    async def _merged(self, call: Call, request: Request, run: Run, emit: Emit) -> Reply:
        """One call for a turn of several gens. Where the API can go on from the middle of a turn, a gen that the call
        did not answer gets one of its own; elsewhere the call is repeated, and fails when it never fits."""
        assert self._ahead is not None
        continues = self._api.rules.continues
        params = msgspec.structs.replace(call.params, max_tokens=run.tokens, stop=())
        spent = requests = 0
        while True:
            outcome = await self._generate(replace(request, params=params), emit)
            sample = outcome.samples[0]
            spent += sample.completion_tokens or 0
            requests += 1
            pieces, missed = match(run.parts, sample.text, sample.finish_reason)
            if continues:
                pieces = {node: piece for node, piece in pieces.items() if piece.finish_reason != "length"}
            if missed is None or continues:
                break
            if requests == TRIES:
                raise CallFailed(
                    "speculation_mismatch",
                    f"{TRIES} calls of {run.tokens} tokens did not write this turn as the program has it: "
                    f"{missed}; say in the prompt how the answer looks, raise num_api_spec_tokens, or do without it",
                )
        if call.node not in pieces:
            return await self._plain(call, request, emit, spent)
        first = pieces.pop(call.node)
        self._ahead.keep(pieces)
        known = {**_meta(sample), "completion_tokens": spent}
        return Reply((first.text,), (_piece_meta(first, known, requests),))

    async def _select(self, call: Call, branch: Branch) -> Reply:
        scores = await self._api.score(branch.text, call.choices)
        self._usage.add(scores.usage)
        index, normalized = decide(call.method, scores.options)
        meta = {
            "choice": call.choices[index],
            "choices": list(call.choices),
            "method": call.method,
            "normalized_prompt_logprobs": normalized,
            "prompt_tokens": scores.usage.prompt_tokens,
        }
        return Reply((call.choices[index],), (meta,))


def _with_thoughts(text: str, sample: Sample, how: Reasoning | None) -> str:
    """Thinking that the API sets apart or keeps to itself, put back where the program expects it."""
    if how is None:
        return text
    raw = how.begin in text or how.end in text or (how.begun and sample.finish_reason == "length")
    return text if raw and not sample.thoughts else f"{how.begin}{sample.thoughts}{how.end}{text}"


def _meta(sample: Sample) -> dict[str, Any]:
    known = {
        "finish_reason": sample.finish_reason,
        "matched": sample.matched,
        "prompt_tokens": sample.prompt_tokens,
        "completion_tokens": sample.completion_tokens,
        "cached_tokens": sample.cached_tokens,
        "reasoning_content": sample.thoughts or None,
        "output_token_logprobs": sample.token_logprobs,
        "output_top_logprobs": sample.top_logprobs,
    }
    return {name: value for name, value in known.items() if value is not None or name == "matched"}


def _piece_meta(piece: Piece, known: Mapping[str, Any], requests: int) -> dict[str, Any]:
    """Of a piece of a merged call. requests: how many there were, counted at the first piece, with all their tokens."""
    return {**known, "finish_reason": piece.finish_reason, "matched": piece.matched, "requests": requests}


def library(name: str, extra: str) -> Any:
    """A client library. Raises BackendError when it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise BackendError(f"the client library {name} is needed ({error}); pip install branchwork[{extra}]") from None


class PerLoop:
    """A client that belongs to the event loop it is used on: made anew on another one, as in a forked process."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._client = make()
        self._loop: Any = None

    def get(self, running: Any) -> Any:
        if self._loop is not None and self._loop is not running:
            self._client = self._make()
        self._loop = running
        return self._client
