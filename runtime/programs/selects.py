"""One select under way: joint ids of prompt and every choice, one Score to the engine, a decision from its answer.

Knows: lang.choices' scorers, ids. Must not know: branches, connections, sockets.

    prompt and choice, encoded together   [ common to all choices (shared KV) | rest of choice 0 ]
                                          [            "                      | rest of choice 1 ]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from branchwork.lang import choices
from branchwork.runtime import wire
from branchwork.runtime.programs.gens import Texts, pack, times, triples


class Selection:
    """encoded: per choice the ids of everything from the transcript's end on, prompt tail and choice together.

    Where a choice begins another one, `exact` also wants to know how likely the model goes on from it: every token that
    could be the way to the other is scored after it, as an option of its own.
    """

    def __init__(
        self, options: Sequence[str], method: str, base: Sequence[int], encoded: list[list[int]], texts: Texts
    ) -> None:
        self.encoded = encoded
        self.began = 0.0  # seconds after the program was opened
        self._texts = texts
        self._ways_on = [_ways_on(option, options, texts) for option in options] if method == choices.exact else []
        self._options = options
        self._method = method
        self._base = base
        self._common = _common(encoded)

    def score(self, number: int, neutral: int) -> wire.Score:
        """The message that scores all options. neutral: a token id that stands for "no context"."""
        unconditional = self._method == choices.unconditional_likelihood_normalized
        # a prompt so short that it merges with every choice leaves nothing in common: then no context stands for it
        prefix = [*self._base, *self.encoded[0][: self._common]] or [neutral]
        longer = [[*ids, token] for ids, tokens in zip(self.encoded, self._ways_on) for token in tokens]
        return wire.Score(
            id=number,
            ids=pack(prefix),
            options=tuple(pack(ids[self._common :]) for ids in (*self.encoded, *longer)),
            unconditional=unconditional,
            neutral=pack([neutral]) if unconditional else b"",
        )

    def decide(self, scored: wire.Scored) -> tuple[int, dict[str, Any]]:
        """The chosen option's index and the meta of the select."""
        texts, count = self._texts, len(self._options)
        scores = [[token.logprob for token in option] for option in scored.options[:count]]
        unconditional = [[token.logprob for token in option] for option in scored.unconditional] or None
        ends = self._ends(scored.options[count:])
        index, normalized = choices.decide(self._method, scores, unconditional, ends)
        means = [sum(option) / len(option) for option in scores]
        usage = scored.usage
        meta: dict[str, Any] = {
            "choice": self._options[index],
            "choices": list(self._options),
            "method": self._method,
            "normalized_prompt_logprobs": normalized if self._method == choices.exact else means,
            "input_token_logprobs": [triples(option, texts) for option in scored.options[:count]],
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.reused,
            "computed_tokens": usage.computed,
            "diverged_at": usage.diverged,
            **times(usage),
        }
        if self._method == choices.exact:
            meta["probabilities"] = [math.exp(score) for score in normalized]
            meta["end_logprobs"] = ends
        if self._method == choices.greedy_token_selection:
            meta["greedy_logprob_matrix"] = _padded(scores, means)
        if unconditional:
            meta["unconditional_token_logprobs"] = [triples(option, texts) for option in scored.unconditional]
            meta["normalized_unconditional_prompt_logprobs"] = normalized
        return index, meta

    def _ends(self, longer: Sequence[Sequence[wire.TokenScore]]) -> list[float] | None:
        """Per choice the log-probability that nothing goes on from it to another choice; None when not asked for."""
        if not self._ways_on:
            return None
        ends, at = [], 0
        for tokens in self._ways_on:
            goes_on = sum(math.exp(option[-1].logprob) for option in longer[at : at + len(tokens)])
            at += len(tokens)
            ends.append(math.log(max(1.0 - goes_on, 1e-12)))
        return ends


def _padded(scores: Sequence[Sequence[float]], means: Sequence[float]) -> list[list[float]]:
    """[options][places]: the log-probabilities that a greedy choice compares; a shorter one goes on with its mean."""
    longest = max(len(option) for option in scores)
    return [[*option, *[mean] * (longest - len(option))] for option, mean in zip(scores, means)]


def _ways_on(option: str, options: Sequence[str], texts: Texts) -> list[int]:
    """Tokens that may stand after an option on the way to a longer one."""
    rests = [other[len(option) :] for other in options if other != option and other.startswith(option)]
    return sorted({token for rest in rests for token in texts.compatible(rest)})


def _common(encoded: list[list[int]]) -> int:
    """Tokens that all options share, leaving each at least one of its own."""
    length = min(len(ids) for ids in encoded) - 1
    first = encoded[0]
    for ids in encoded[1:]:
        same = 0
        while same < length and ids[same] == first[same]:
            same += 1
        length = same
    return length
