"""From a wire message to requests, or to the reason why it cannot be served.

Knows: the limits and their figures. Must not know: what else runs, the tree, tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from branchwork.runtime.grammar.matcher import Grammar
from branchwork.runtime.scheduler.request import Answer, Group, Options, Request, Spend
from branchwork.runtime.scheduler.stops import check_stops
from branchwork.runtime.scheduler.twigs import Progress, Trie
from branchwork.runtime.scheduler.vectors import Vector
from branchwork.runtime.wire import Embed, Failed, Score, Submit


@dataclass(frozen=True, slots=True)
class Limits:
    """context: tokens of prompt and answer. pages, page_size: of the whole pool. vocab: ids are 0 .. vocab-1.
    causal: a token sees those before it alone."""

    context: int
    pages: int
    page_size: int
    vocab: int
    causal: bool = True


def unpack(ids: bytes) -> array[int]:
    """int32 little-endian to an array of C ints. Raises ValueError when the length is no multiple of four."""
    known = array("i")
    known.frombytes(ids)
    return known


def turned_away(message: Submit | Score | Embed, known: bool, waiting: int, most: int, limits: Limits) -> Failed | None:
    """Why a message is not taken now, None when it is. known: its number is under way; most: requests that may wait."""
    if known:
        return Failed(message.id, "bad_request", f"request {message.id} is already under way")
    if waiting >= most:
        return Failed(message.id, "queue_full", f"{waiting} requests are waiting, at most {most} may")
    return refusal(message, limits)


def refusal(message: Submit | Score | Embed, limits: Limits) -> Failed | None:
    """Why a message can never be served, None when it can."""
    if isinstance(message, Submit):
        named = [("the prompt", message.ids)]
        longest = message.stops.max_tokens
        wrong = check_stops(message.stops) or next(
            (
                f"logit_bias names token {token}; the vocabulary has {limits.vocab}"
                for token, _ in message.shape.bias
                if token >= limits.vocab
            ),
            "",
        )
    elif isinstance(message, Embed):
        named, longest = [("the text", message.ids)], 0
        wrong = "pooling first is for encoders: here the first state knows its own token alone"
        wrong = wrong if message.pooling == "first" and limits.causal else ""
    else:
        named = [("the prefix", message.ids)]
        named += [(f"option {n}", option) for n, option in enumerate(message.options)]
        named += [("the neutral prefix", message.neutral)] if message.unconditional else []
        longest = max((len(option) // 4 for option in message.options), default=0)
        wrong = "" if message.options else "there are no options to score"
    wrong = wrong or next((text for name, ids in named if (text := _wrong_ids(name, ids, limits.vocab))), "")
    if wrong:
        return Failed(message.id, "bad_request", wrong)
    prefix = len(message.ids) // 4
    if isinstance(message, Score) and message.unconditional:
        prefix = max(prefix, len(message.neutral) // 4)
    refused = _too_long(message.id, prefix, longest, limits)
    if refused is None and isinstance(message, Score) and limits.page_size > 1:
        need = Trie([unpack(option) for option in message.options]).pages(prefix, limits.page_size)
        if need > limits.pages:
            text = f"{prefix} tokens and the options after them need {need} pages, the KV cache has {limits.pages}"
            return Failed(message.id, "context_length", text)
    return refused


def _wrong_ids(name: str, ids: bytes, vocab: int) -> str:
    if not ids:
        return f"{name} is empty: at least one token is needed"
    if len(ids) % 4:
        return f"{name} has {len(ids)} bytes, which is not a whole number of int32 ids"
    numbers = np.frombuffer(ids, np.int32)
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= vocab:
        return f"{name} has the id {low if low < 0 else high}, outside 0..{vocab - 1}"
    return ""


def _too_long(number: int, given: int, wanted: int, limits: Limits) -> Failed | None:
    total = given + wanted
    figures = f"{given} tokens given and {wanted} wanted make {total}" if wanted else f"{given} tokens are given"
    if total > limits.context:
        return Failed(number, "context_length", f"{figures}, the context holds {limits.context}")
    room = limits.pages * limits.page_size
    if -(-total // limits.page_size) > limits.pages:
        return Failed(number, "context_length", f"{figures}, the whole KV cache holds {room}")
    return None


def requests_of(
    message: Submit | Score | Embed, key: int, step: int, token_bytes: Sequence[bytes], grammar: Grammar | None = None
) -> list[Request]:
    """The requests that serve an admissible message: one, or two for a Score with a neutral prefix."""
    known = unpack(message.ids)
    spend = Spend(len(known))
    if isinstance(message, Submit):
        answer = Answer(message, token_bytes, grammar)
        return [Request(key, message.id, known, len(known), message.priority, step, spend, answer)]
    if isinstance(message, Embed):
        return [Request(key, message.id, known, len(known), message.priority, step, spend, vector=Vector(message))]
    group = Group(message, Trie([unpack(option) for option in message.options]), spend)
    prefixes = [known, unpack(message.neutral)] if message.unconditional else [known]
    group.columns = [[] for _ in prefixes]
    options = [Options(group, n, Progress(group.trie)) for n in range(len(prefixes))]
    return [
        Request(key + n, message.id, prefix, len(prefix), message.priority, step, spend, options=options[n])
        for n, prefix in enumerate(prefixes)
    ]
