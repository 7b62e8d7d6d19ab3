"""One gen under way: from its parameters to Submits, from the engine's events to its values and meta.

Knows: SamplingParams, constraints' captures, wire messages, bytes of tokens. Must not know: branches, sockets.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Sequence
from typing import Any, Protocol

from branchwork.lang.constraint import Capture, Constraint, JsonSchema, listed_captures, walk
from branchwork.lang.params import SamplingParams
from branchwork.runtime import wire
from branchwork.runtime.grammar.schema import complaint

_FRESH = random.SystemRandom()
_GOLDEN = 0x9E3779B97F4A7C15  # keeps the seeds of one gen's samples far apart


class Decoder(Protocol):
    def feed(self, ids: Sequence[int]) -> str: ...


class Texts(Protocol):
    """What programs need of the tokenizer (gateway/text.py)."""

    token_bytes: list[bytes]
    neutral: int
    encoded: int

    def begin(self, ids: list[int]) -> list[int]: ...
    def encode(self, pieces: Sequence[Any]) -> list[int]: ...
    def decoder(self) -> Decoder: ...
    def text_of(self, ids: Sequence[int]) -> str: ...
    def compatible(self, text: str) -> list[int]: ...
    def extends(self, text: str) -> bool: ...


class Sample:
    """One of a gen's n samples: what the engine has said of it so far.

    healed: text of the prompt with which the engine's answer begins. began: seconds after the program was opened.
    """

    __slots__ = (
        "_decoder",
        "_listed",
        "_shown",
        "_text_so_far",
        "_texts",
        "began",
        "finished",
        "healed",
        "ids",
        "scores",
        "submit",
    )

    def __init__(self, submit: wire.Submit, texts: Texts, healed: str = "", began: float = 0.0) -> None:
        self.submit = submit
        self.healed = healed
        self.began = began
        self._texts = texts
        self._shown = len(healed)  # characters already streamed; survives a restart of the engine
        self._listed = listed_captures(submit.constraint) if submit.constraint is not None else frozenset()
        self.finished: wire.Finished | None = None
        self._begin()

    def take(self, event: wire.Tokens | wire.Finished) -> str:
        """Book an event; the text that can be shown because of it (streamed gens only)."""
        self.ids += event.ids
        self.scores += event.scores
        if isinstance(event, wire.Finished):
            self.finished = event
            return self._show(self.healed + self.answer())
        self._text_so_far += self._decoder.feed(event.ids)
        return self._show(self._text_so_far)

    def detail(self, event: wire.Tokens | wire.Finished) -> dict[str, Any]:
        """What is known of an event's tokens, in the words of `meta`."""
        found: dict[str, Any] = {"output_ids": list(event.ids)}
        if self.submit.logprobs >= 0:
            found["output_token_logprobs"] = triples(event.scores, self._texts)
            found["output_top_logprobs"] = tops(event.scores, self._texts)
        return found

    def answer(self) -> str:
        """The whole answer: its bytes up to where it was stopped, as text."""
        assert self.finished is not None
        return self._bytes()[len(self.healed.encode()) : self.finished.length].decode("utf-8", "replace")

    @property
    def usage(self) -> wire.Usage:
        assert self.finished is not None
        return self.finished.usage

    def kept(self) -> tuple[list[int], str]:
        """The ids that stay in the transcript, and what is left of the text after them: a stop may end inside a token.

        Both begin with what was healed.
        """
        assert self.finished is not None
        ids = self.ids[: self.finished.kept]
        length = sum(len(self._texts.token_bytes[token]) for token in ids)
        whole = self._bytes()[: self.finished.length]
        if len(whole) < len(self.healed.encode()):  # it ended before the prompt was whole again
            whole = self.healed.encode()
        return ids, whole[length:].decode("utf-8", "replace")

    def closing(self, event: wire.Tokens) -> dict[str, str]:
        """Captures that an event, booked before, has closed for good. One inside a Repeat may come again: not it."""
        if not event.closed:
            return {}
        data = self._bytes()
        return {
            name: data[first:last].decode("utf-8", "replace")
            for name, first, last in event.closed
            if name not in self._listed
        }

    def captures(self) -> dict[str, Any]:
        """Every capture of the finished answer: its text, or the list of its texts inside a Repeat."""
        assert self.finished is not None
        data = self._bytes()[: self.finished.length]
        found: dict[str, Any] = {}
        for name, first, last in self.finished.closed:
            text = data[first:last].decode("utf-8", "replace")
            if name in self._listed:
                found.setdefault(name, []).append(text)
            else:
                found[name] = text
        return found

    def restart(self) -> wire.Submit:
        """The engine was lost: everything will come again, from the same seed."""
        self._begin()
        return self.submit

    def meta(self) -> dict[str, Any]:
        """What is known about the finished sample. Log-probabilities are (value, token id, token text) triples."""
        assert self.finished is not None
        done, usage = self.finished, self.finished.usage
        meta: dict[str, Any] = {
            "finish_reason": done.reason if done.reason != "eos" else "stop",
            "matched": done.matched.decode("utf-8", "replace"),
            "prompt_tokens": usage.prompt,
            "completion_tokens": len(self.ids),
            "cached_tokens": min(usage.reused, usage.prompt),
            "computed_tokens": usage.computed,
            "diverged_at": usage.diverged,
            "preempted": usage.preempted,
            "seed": self.submit.shape.seed,
            "output_ids": list(self.ids),
            "kept_tokens": done.kept,
            "began_s": self.began,
            **times(usage),
            "forwards": usage.forwards,
            "drafts": {source: {"guessed": guessed, "kept": kept} for source, guessed, kept in usage.drafts},
        }
        if self.healed:
            meta["healed"] = self.healed
        if done.forced:
            meta["forced"] = self._spans(done.forced)
        if done.accepted:
            meta["accepted"] = [
                (*span, source) for *place, source in done.accepted for span in self._spans([(place[0], place[1])])
            ]
        if self.submit.logprobs >= 0:
            meta["output_token_logprobs"] = triples(self.scores, self._texts)
            meta["output_top_logprobs"] = tops(self.scores, self._texts)
        if self.submit.prompt_logprobs >= 0:
            meta["input_token_logprobs"] = triples(done.prompt_scores, self._texts)
            meta["input_top_logprobs"] = tops(done.prompt_scores, self._texts)
        if done.enforced is not None:
            meta["constraint"] = self._enforced(done.enforced)
        return meta

    def _enforced(self, enforced: wire.Enforced) -> dict[str, Any]:
        """How the constraint was kept. valid: None when nobody had to look, since the grammar was exact."""
        found: dict[str, Any] = {
            "backend": enforced.backend,
            "approximations": list(enforced.approximations),
            "complete": enforced.complete,
            "forced_tokens": enforced.forced,
            "compile_seconds": enforced.seconds,
            "valid": None,
        }
        if enforced.loose and enforced.complete and self.submit.constraint is not None:
            wrong = complaints(self.submit.constraint, self.answer(), self.captures())
            found |= {"valid": not wrong, "complaints": wrong}
        return found

    def _spans(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The characters of the answer that ranges of its tokens stand for."""
        table, text = self._texts.token_bytes, self.answer()
        ends = list(itertools.accumulate((len(table[token]) for token in self.ids), initial=-len(self.healed.encode())))
        data = text.encode()
        spans = [(max(ends[first], 0), min(ends[last], len(data))) for first, last in ranges]
        spans = [(a, b) for a, b in spans if a < b]
        return [(len(data[:a].decode("utf-8", "ignore")), len(data[:b].decode("utf-8", "ignore"))) for a, b in spans]

    def _bytes(self) -> bytes:
        table = self._texts.token_bytes
        return b"".join([table[i] for i in self.ids])

    def _begin(self) -> None:
        self._decoder = self._texts.decoder()
        self._text_so_far = ""
        self.ids: list[int] = []
        self.scores: list[wire.TokenScore] = []

    def _show(self, text: str) -> str:
        new = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return new


def submits(
    params: SamplingParams,
    constraint: Constraint | None,
    ids: Sequence[int],
    first_id: int,
    *,
    eos: Sequence[int],
    room: int,
    stream: bool,
    skip: int = 0,
    fanout: int = 0,
) -> list[wire.Submit]:
    """One Submit per sample. room: tokens left in the context; longer answers end there with reason length.

    skip: bytes at the beginning that are prompt, not answer. fanout: branches that wait for the answer to begin.
    """
    own = seeds(params)
    ends = params.stop_token_ids if params.ignore_eos else (*params.stop_token_ids, *eos)
    stops = wire.Stops(
        max_tokens=max(1, min(params.max_tokens, room)),
        min_tokens=min(params.min_tokens, room),
        strings=tuple(text.encode() for text in params.stop),
        regexes=tuple(pattern.encode() for pattern in params.stop_regex),
        ids=tuple(ends),
        skip=skip,
    )
    packed = pack(ids)
    return [
        wire.Submit(
            id=first_id + number,
            ids=packed,
            shape=wire.Shape(
                temperature=params.temperature,
                top_k=params.top_k,
                top_p=params.top_p,
                min_p=params.min_p,
                frequency_penalty=params.frequency_penalty,
                presence_penalty=params.presence_penalty,
                repetition_penalty=params.repetition_penalty,
                seed=own[number],
                bias=params.logit_bias,
            ),
            stops=stops,
            logprobs=-1 if params.logprobs is None else params.logprobs,
            prompt_logprobs=-1 if params.prompt_logprobs is None or number else params.prompt_logprobs,
            logprob_start=params.logprob_start,
            priority=params.priority,
            stream=stream and number == 0,
            constraint=constraint,
            jump="off" if skip else params.jump_forward,  # forced text would heal nothing
            fanout=fanout,
            speculative=params.speculative == "on",
        )
        for number in range(params.n)
    ]


def seeds(params: SamplingParams) -> list[int]:
    """The seed of each of a gen's n samples; fresh ones where none is given."""
    first = params.seed if params.seed is not None else _FRESH.getrandbits(62)
    return [(first + number * _GOLDEN) % 2**63 for number in range(params.n)]


def complaints(constraint: Constraint, text: str, captures: dict[str, Any]) -> list[str]:
    """What is wrong, by its schemas, with a finished text and with those of its captures that are JSON."""
    if isinstance(constraint, JsonSchema):
        return [wrong] if (wrong := complaint(constraint.schema, text)) else []
    found = []
    for part in walk(constraint):
        if isinstance(part, Capture) and isinstance(part.part, JsonSchema):
            texts = captures.get(part.name) or []
            wrongs = [complaint(part.part.schema, one) for one in (texts if isinstance(texts, list) else [texts])]
            found += [f"{part.name}: {wrong}" for wrong in wrongs if wrong]
    return found


def times(usage: wire.Usage) -> dict[str, float]:
    """Seconds from arrival at the engine to being planned, to the first token, to the end."""
    return {"queued_s": usage.queued, "first_s": usage.first, "total_s": usage.total}


def pack(ids: Sequence[int]) -> bytes:
    """int32 little-endian."""
    return array("i", ids).tobytes()


def triples(scores: Sequence[wire.TokenScore], texts: Texts) -> list[tuple[float, int, str]]:
    return [(score.logprob, score.id, texts.text_of([score.id])) for score in scores]


def tops(scores: Sequence[wire.TokenScore], texts: Texts) -> list[list[tuple[float, int, str]]]:
    return [[(top.logprob, top.id, texts.text_of([top.id])) for top in score.top] for score in scores]
