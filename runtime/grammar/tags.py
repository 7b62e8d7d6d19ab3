"""Structural tags: free text in which something, once begun, is constrained until its end.

Knows: Lark rules, lazy lexemes. Must not know: vocabularies, matchers, models' tool-call formats.

    text: ( free text up to a begin, content, end | free text up to an exempt begin, anything up to its end )* free text

A lexeme that is lazy ends at the first place where it may, so the first begin in the text is the one that counts. The
free text at the end has no begin in it: a begun tag is never left open.
"""

from __future__ import annotations

import re
from typing import Protocol

from branchwork.lang.constraint import Constraint, Invalid, Literal, Sequence, Tagged

_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~/]")


class Rules(Protocol):
    """Where rules are collected."""

    def expression(self, constraint: Constraint) -> str: ...

    def rule(self, body: str, options: str = "") -> str: ...

    def lexeme(self, body: str) -> str: ...


def tagged(constraint: Tagged, rules: Rules) -> str:
    """The right side of a rule for it."""
    contents: dict[str, list[str]] = {}
    for tag in constraint.tags:
        if not tag.begin:
            raise Invalid("a tag needs a begin: it could start anywhere")
        body = rules.expression(_joined(tag.content, tag.end))
        contents.setdefault(tag.begin, []).append(body)
    for begin, end in constraint.exempt:
        if not begin or not end or begin in contents:
            raise Invalid("an exempt section needs a begin and an end of its own")
    begins = sorted({*contents, *(begin for begin, _ in constraint.exempt)}, key=len)
    heads = [text for text in begins if not any(text != other and text.startswith(other) for other in begins)]
    after: dict[str, list[str]] = {head: [] for head in heads}
    for begin, bodies in contents.items():
        head = next(head for head in heads if begin.startswith(head))
        rest = _literal(begin[len(head) :])
        after[head] += [f"{rest} {body}".strip() for body in bodies]
    lead = {head: rules.rule(f"/(?s:.*){_escape(head)}/", "[lazy]") for head in heads}
    tags = [rules.rule(f"{lead[head]} ({' | '.join(bodies)})") for head, bodies in after.items() if bodies]
    exempt, tails = [], [rules.lexeme(_without(begins))]
    for begin, end in constraint.exempt:
        head = next(head for head in heads if begin.startswith(head))
        rest = _literal(begin[len(head) :])
        until = rules.rule(f"/(?s:.*){_escape(end)}/", "[lazy]")
        exempt.append(rules.rule(f"{lead[head]} {rest} {until}"))
        tails.append(rules.rule(f"{lead[head]} {rest} {rules.lexeme(_without([end]))}"))
    any_tag, any_part, tail = " | ".join(tags), " | ".join([*tags, *exempt]), " | ".join(tails)
    if not constraint.at_least_one:
        return f"({any_part})* ({tail})" if any_part else f"({tail})"
    if not tags:
        raise Invalid("at_least_one asks for a tag, and there are none")
    before = f"({' | '.join(exempt)})* " if exempt else ""
    return f"{before}({any_tag}) ({any_part})* ({tail})"


def _joined(content: Constraint, end: str) -> Constraint:
    if not end:
        return content
    parts = content.parts if isinstance(content, Sequence) else (content,)
    return Sequence((*parts, Literal(end)))


def _escape(text: str) -> str:
    """Text inside the slashes of a terminal, taken literally."""
    return _SPECIAL.sub(lambda found: "\\" + found[0], text).replace("\n", r"\n").replace("\r", r"\r")


def _literal(text: str) -> str:
    return f"/{_escape(text)}/" if text else ""


def _without(texts: list[str]) -> str:
    """Any text in which none of `texts` stands."""
    if not texts:
        return "/(?s:.*)/"
    return f"/(?s:.*)/ & ~/(?s:.*)({'|'.join(map(_escape, texts))})(?s:.*)/"
