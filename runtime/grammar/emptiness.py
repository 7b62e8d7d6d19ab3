"""Questions about regular languages that llguidance answers: does anything match, do two patterns overlap.

Knows: llguidance's first mask over single bytes. Must not know: schemas, vocabularies.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


class _Bytes:
    """256 tokens of one byte and an end token."""

    eos_token_id, bos_token_id = 256, None
    tokens = [*(bytes([value]) for value in range(256)), b"<eos>"]  # noqa: RUF012  # llguidance reads it from the class
    special_token_ids = [256]  # noqa: RUF012

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@lru_cache(maxsize=1)
def _tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=257)


def ask(lark: str) -> LLMatcher:
    """A matcher over bytes; it may be in error."""
    return LLMatcher(_tokenizer(), lark, log_level=0)


def nothing_matches(expression: str) -> bool:
    """Whether a Lark terminal or %json is the empty language. May say no when it is."""
    rules = f"start: {expression}\n" if expression.startswith("%") else f"start: T\nT: {expression}\n"
    asked = ask(rules)
    if asked.is_error():
        return "Unsatisfiable" in asked.get_error().split("\n")[0]
    return not any(asked.compute_bitmask()[:32]) and not asked.is_accepting()


@lru_cache(maxsize=4096)
def disjoint(left: str, right: str) -> bool:
    """Whether no text has both patterns of JSON Schema in it."""
    parts = [{"type": "string", "pattern": pattern} for pattern in (left, right)]
    return nothing_matches(f"%json {json.dumps({'allOf': parts})}")


@lru_cache(maxsize=4096)
def takes_pattern(pattern: str) -> bool:
    """Whether llguidance reads a pattern of JSON Schema."""
    schema: dict[str, Any] = {"type": "string", "pattern": pattern}
    return not ask(f"start: %json {json.dumps(schema)}\n").is_error()


@lru_cache(maxsize=4096)
def verdict(schema: str) -> str:
    """What llguidance says against a JSON Schema: "" for nothing, "empty", "undecided", or its own words."""
    asked = ask(f"start: %json {schema}\n")
    if not asked.is_error():
        return ""
    said = str(asked.get_error())
    return "undecided" if "Unable to determine" in said else "empty" if "Unsatisfiable" in said else said


def slashed(pattern: str) -> str:
    """A regular expression between the slashes of a Lark terminal."""
    out, escaped = "", False
    for char in pattern:
        if char == "\n":
            out += "n" if escaped else r"\n"
        elif char == "/" and not escaped:
            out += r"\/"
        else:
            out += char
        escaped = char == "\\" and not escaped
    return f"/{out}/"


def swallows(pattern: str, first: str) -> bool:
    """Whether a text of `pattern` can go on with something in `first` and be a text of `pattern` again later."""
    whole = slashed(f"(?:{pattern})")
    more = slashed(f"(?:{pattern})(?:{first})(?s:.*)")
    return not nothing_matches(f"{whole} & {more}")
