"""Grammars as they are read: rules by name, of characters, texts, rows, alternatives and repetitions.

Knows: nothing. Must not know: any syntax, engines.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chars:
    """One character in (or, if negated, not in) the ranges."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Name:
    name: str


@dataclass(frozen=True)
class Times:
    part: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class Row:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Either:
    parts: tuple[Node, ...]


Node = Chars | Text | Name | Times | Row | Either
