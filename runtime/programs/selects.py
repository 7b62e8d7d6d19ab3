"""One select under way: joint ids of prompt and every choice, one Score to the engine, a decision from its answer.

Knows: lang.choices' scorers, ids. Must not know: branches, connections, sockets.

    prompt and choice, encoded together   [ common to all choices (shared KV) | rest of choice 0 ]
                                          [            "                      | rest of choice 1 ]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from branchwork.lang import choices
from branchwork.runtime import wire
from branchwork.runtime.programs.gens import Texts, pack, triples

UNCONDITIONAL = "unconditional_likelihood_normalized"


class Selection:
    """encoded: per choice the ids of everything from the transcript's end on, prompt tail and choice together."""

    def __init__(self, options: Sequence[str], method: str, base: Sequence[int], encoded: list[list[int]]) -> None:
        self.encoded = encoded
        self._options = options
        self._method = method
        self._base = base
        self._common = _common(encoded)

    def score(self, number: int, neutral: int) -> wire.Score:
        """The message that scores all options. neutral: a token id that stands for "no context"."""
        unconditional = self._method == UNCONDITIONAL
        # a prompt so short that it merges with every choice leaves nothing in common: then no context stands for it
        prefix = [*self._base, *self.encoded[0][: self._common]] or [neutral]
        return wire.Score(
            id=number,
            ids=pack(prefix),
            options=tuple(pack(ids[self._common :]) for ids in self.encoded),
            unconditional=unconditional,
            neutral=pack([neutral]) if unconditional else b"",
        )

    def decide(self, scored: wire.Scored, texts: Texts) -> tuple[int, dict[str, Any]]:
        """The chosen option's index and the meta of the select."""
        scores = [[token.logprob for token in option] for option in scored.options]
        unconditional = [[token.logprob for token in option] for option in scored.unconditional] or None
        index, normalized = choices.decide(self._method, scores, unconditional)
        usage = scored.usage
        meta: dict[str, Any] = {
            "choice": self._options[index],
            "choices": list(self._options),
            "method": self._method,
            "normalized_prompt_logprobs": normalized,
            "input_token_logprobs": [triples(option, texts) for option in scored.options],
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.reused,
            "computed_tokens": usage.computed,
            "diverged_at": usage.diverged,
        }
        if unconditional:
            meta["unconditional_token_logprobs"] = [triples(option, texts) for option in scored.unconditional]
        return index, meta


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
