"""Sampling parameters of the language: every knob is declared here and nowhere else.

Knows: names, defaults and legal ranges. Must not know: any backend, tokens, tensors.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one `gen` draws its tokens. Text-level: the gateway turns it into ids for the engine.

    max_tokens, min_tokens: tokens of the answer (stop conditions wait for min_tokens).
    stop: strings that end the answer and are cut off; stop_token_ids: the same by id; stop_regex: the same by pattern.
    temperature: 0 takes the most likely token; top_k <= 0 and top_p 1.0 and min_p 0.0 switch their filters off.
    frequency_penalty, presence_penalty: over generated tokens, -2..2; repetition_penalty: over prompt and answer, > 0.
    seed: draws depend on (seed, position) alone, whatever else runs; None takes a fresh one.
    n: samples of one prompt. ignore_eos: the model's end token does not end the answer.
    logprobs: None for none, k >= 0 for the chosen token's log-probability and the k most likely ones.
    prompt_logprobs: the same for prompt tokens, from token index logprob_start on (0 is the first token).
    jump_forward: what becomes of text that a constraint forces. "on": it is appended unasked, as canonical tokens;
    "exact": it is proposed to the model and verified, so the ids are those of "off", where every token is drawn.
    speculative: "on" lets the runtime guess tokens ahead and verify them, which changes no answer, only its speed.
    heal: the last token of the literal before the answer is taken back and drawn anew together with what follows, so
    that the seam between prompt and answer does not force an unusual tokenization (token healing).
    logit_bias: per token id (a dict, or pairs) what is added to its logit, -100..100. priority: higher goes first.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    n: int = 1
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_start: int = 0
    jump_forward: str = "on"
    heal: bool = False
    speculative: str = "on"
    logit_bias: tuple[tuple[int, float], ...] = ()
    priority: int = 0


KNOBS = frozenset(SamplingParams.__struct_fields__)
_TUPLES = frozenset({"stop", "stop_token_ids", "stop_regex"})
_FLAGS = frozenset({"ignore_eos", "heal"})
_REAL = frozenset({"temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"})
_WORDS = {"jump_forward": ("exact", "on", "off"), "speculative": ("on", "off")}
_RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 2**31),
    "min_tokens": (0, 2**31),
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "top_k": (-1, 2**31),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
    "n": (1, 1024),
    "logprobs": (0, 64),
    "prompt_logprobs": (0, 64),
    "logprob_start": (0, 2**31),
    "seed": (0, 2**63 - 1),
    "priority": (-(2**31), 2**31),
}


def normalise(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the knobs that are set (not None), with tuples where one string or a list may be given.

    Raises TypeError for an unknown knob and ValueError for one out of range, naming both.
    """
    clean: dict[str, Any] = {}
    for name, value in knobs.items():
        if name not in KNOBS:
            raise TypeError(f"unknown sampling parameter {name!r}; known: {', '.join(sorted(KNOBS))}")
        if value is None:
            continue
        if name == "logit_bias":
            clean[name] = _biases(value)
            continue
        if name in _TUPLES:
            clean[name] = _ids(name, value) if name == "stop_token_ids" else _texts(name, value)
            continue
        elif name in _FLAGS:
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be a bool, got {value!r}")
        elif name in _WORDS:
            if value not in _WORDS[name]:
                raise ValueError(f"{name}={value!r} is none of {', '.join(_WORDS[name])}")
        else:
            value = _number(name, value)
        clean[name] = value
    return clean


def _number(name: str, value: Any) -> int | float:
    """Exactly an int or a float, as messages carry them: numpy has numbers that are neither."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if name in _REAL:
        exact: int | float = float(value)
    elif isinstance(value, numbers.Integral):
        exact = int(value)
    else:
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    low, high = _RANGES[name]
    if not low <= exact <= high:
        raise ValueError(f"{name}={exact!r} is outside {low:g}..{high:g}")
    return exact


def _texts(name: str, given: Any) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{name} takes non-empty str values, got {given!r}")
    return texts


def _ids(name: str, given: Any) -> tuple[int, ...]:
    """Token ids, of which a message carries 32 bits."""
    ids = tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(
        isinstance(one, numbers.Integral) and not isinstance(one, bool) and 0 <= int(one) < 2**31 for one in ids
    ):
        raise ValueError(f"{name} takes token ids, whole numbers from 0, got {given!r}")
    return tuple([int(one) for one in ids])  # the one empty tuple, which messages leave out as the default


def _biases(given: Any) -> tuple[tuple[int, float], ...]:
    pairs = list(given.items()) if isinstance(given, Mapping) else [tuple(pair) for pair in given]
    ids = _ids("logit_bias", [token for token, _ in pairs])
    biases = [float(bias) for _, bias in pairs]
    if not all(-100.0 <= bias <= 100.0 for bias in biases):
        raise ValueError(f"logit_bias takes numbers from -100 to 100, got {given!r}")
    return tuple(zip(ids, biases, strict=True))


def merge(*layers: Mapping[str, Any]) -> SamplingParams:
    """The parameters of one gen: later layers win over earlier ones (run-level defaults first, then the gen's own).

    Raises TypeError and ValueError like `normalise`.
    """
    knobs: dict[str, Any] = {}
    for layer in layers:
        knobs.update(normalise(layer))
    params = SamplingParams(**knobs)
    if params.min_tokens > params.max_tokens:
        raise ValueError(f"min_tokens={params.min_tokens} is more than max_tokens={params.max_tokens}")
    return params
