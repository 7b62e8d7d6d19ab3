"""Patterns of JSON Schema (ECMA 262) as Python's, as llguidance's, and as sets of texts that can be put together.

Knows: three spellings of regular expressions, set algebra on them. Must not know: schemas, shapes, grammars.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from branchwork.lang.constraint import Invalid, Unsupported
from branchwork.lang.regex import ANYTHING, NOTHING, Either, Text, Tree
from branchwork.lang.regex import search as searched
from branchwork.runtime.grammar.algebra import combine
from branchwork.runtime.grammar.algebra import disjoint as _disjoint
from branchwork.runtime.grammar.emptiness import disjoint as _asked
from branchwork.runtime.grammar.emptiness import takes_pattern
from branchwork.runtime.grammar.frontend import rust, simplify

_PIECE = re.compile(
    r"""\\(?P<outside>[pP])\{(?P<category>[\w=]+)\} | \\u\{(?P<point>[0-9A-Fa-f]+)\}
    | \\c(?P<control>[A-Za-z]) | \\k<(?P<back>\w+)>
    | (?P<slash>\\/)
    | (?P<escape>\\.) | \(\?<(?P<name>[A-Za-z_$]\w*)> | (?P<count>\{,) | (?P<any>\[\^\]) | (?P<none>\[\])
    | (?P<end>\$) | (?P<open>\[\^?) | (?P<close>\]) """,
    re.X | re.S,
)
_CATEGORIES = {"Letter": r"[^\W\d_]", "L": r"[^\W\d_]", "digit": r"\d", "Nd": r"\d", "Lu": "[A-Z]", "Ll": "[a-z]"}
_LONG = {"Letter": "L", "digit": "Nd", "Number": "N", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll"}


@lru_cache(maxsize=2048)
def python(pattern: str, end: str = r"\Z") -> str:
    """The pattern as Python's `re` reads it. end: what a $ becomes."""
    inside = False

    def spelled(found: re.Match[str]) -> str:
        nonlocal inside
        text = found[0]
        match found.lastgroup:
            case "open" if not inside:
                inside = True
            case "open":
                return "\\" + text
            case "close":
                inside = False
            case "category" if found["outside"] == "P":
                return r"\x20-\U0010ffff" if inside else r"[\x20-\U0010ffff]"
            case "category":
                known = _CATEGORIES.get(found["category"], r"\w")
                return {"[": known[1:-1], "\\": known}[known[0]] if inside and known[1] != "^" else known
            case "point":
                return re.escape(chr(int(found["point"], 16)))
            case "control":
                return re.escape(chr(ord(found["control"]) % 32))
            case "back":
                return f"(?P={found['back']})"
            case "slash":
                return "/"
            case "name" if not inside:
                return f"(?P<{found['name']}>"
            case "count" if not inside:
                return r"\{,"
            case "any" if not inside:
                return r"[\s\S]"
            case "none" if not inside:
                return "(?!)"
            case "end" if not inside:
                return end
        return text

    return _PIECE.sub(spelled, pattern)


@lru_cache(maxsize=2048)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(python(pattern), re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise Invalid(f"the pattern {pattern!r} is no regular expression: {error}") from None


def searches(pattern: str, text: str) -> bool:
    """Whether a pattern is found in the text, \\d and \\w being ASCII."""
    return _compiled(pattern).search(text) is not None


@lru_cache(maxsize=2048)
def translate(pattern: str) -> str | None:
    """The pattern in a spelling that llguidance reads; None when there is none."""
    spellings = [pattern, pattern.replace("(?<", "(?P<").replace("\\/", "/")]
    named = re.sub(r"\\p\{(\w+)\}", lambda found: f"\\p{{{_LONG.get(found[1], found[1])}}}", pattern)
    spellings.append(re.sub(r"\\u\{?([0-9A-Fa-f]{4,6})\}?", r"\\x{\1}", named))
    found = next((spelling for spelling in spellings if takes_pattern(spelling)), None)
    if found is None:
        tree = texts((pattern,))
        found = None if tree is None else written(tree)
    return found


@lru_cache(maxsize=2048)
def taken_apart(pattern: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patterns that must all be found, and that must not: together the pattern, without look-ahead at its beginning."""
    must: list[str] = []
    never: list[str] = []
    rest = pattern
    while rest.startswith(("^(?=", "^(?!")):
        end = _closed(rest, 1)
        if end < 0:
            return (pattern,), ()
        (must if rest[3] == "=" else never).append(f"^(?:{rest[4:end]})")
        rest = "^" + rest[end + 1 :]
        if rest[1:2] in ("*", "+", "?", "{"):
            return (pattern,), ()
    return (*must, rest), tuple(never)


def _closed(pattern: str, at: int) -> int:
    """Where the parenthesis at `at` is closed; -1 when it is not, or the pattern has alternatives outside of it."""
    depth, inside, end, i = 0, False, -1, 0
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            i += 1
        elif inside or char == "[":
            inside = char != "]"
        elif char in "()":
            depth += 1 if char == "(" else -1
            end = i if depth == 0 and end < 0 and i > at else end
        elif char == "|" and depth == 0:
            return -1
        i += 1
    return end


# --- as sets of texts


@lru_cache(maxsize=1024)
def _tree(pattern: str) -> Tree | None:
    if re.search(r"\\[pP]\{", pattern):  # Python has no such classes: `python` has something like them
        return None
    try:
        return searched(python(pattern, "$"))
    except (Unsupported, Invalid):
        return None


@lru_cache(maxsize=1024)
def texts(patterns: tuple[str, ...], nots: tuple[str, ...] = ()) -> Tree | None:
    """The texts in which all of `patterns` are found and none of `nots`; None when that takes too much."""
    must, never = [_tree(one) for one in patterns], [_tree(one) for one in nots]
    return together([one or NOTHING for one in must], never) if None not in must else None


def together(must: Sequence[Tree], never: Iterable[Tree | None] = ()) -> Tree | None:
    """The texts of all of `must` and none of `never`; NOTHING when there is none, None when that takes too much."""
    outside = list(never)
    kept = [one for one in outside if one is not None]
    return combine(list(must) or [ANYTHING], kept) if len(kept) == len(outside) else None


def among(names: Iterable[str]) -> Tree:
    found = tuple(Text(name) for name in names)
    return NOTHING if not found else found[0] if len(found) == 1 else Either(found)


def written(tree: Tree) -> str:
    """A pattern of llguidance that the whole text must match."""
    return f"^(?:{rust(simplify(tree))})$"


@lru_cache(maxsize=4096)
def disjoint(left: str, right: str) -> bool:
    """Whether no text has both patterns in it. Says no where it cannot tell."""
    try:
        found = _disjoint(python(left, "$"), python(right, "$"))
    except (Invalid, Unsupported):
        found = None
    if found is None:
        spelled = [translate(left), translate(right)]
        found = None not in spelled and _asked(str(spelled[0]), str(spelled[1]))
    return found


def anything_but(excluded: Sequence[str]) -> str:
    """A pattern of all texts but these: along each, either it ends early or late, or it departs from all."""

    def below(tails: list[str]) -> str:
        heads = sorted({tail[0] for tail in tails if tail})
        parts = [] if "" in tails else [""]
        if not heads:
            return "(?s:.)+"
        parts.append("[^" + "".join(map(point, heads)) + "](?s:.*)")
        parts += [f"{point(head)}(?:{below([tail[1:] for tail in tails if tail[:1] == head])})" for head in heads]
        return "|".join(parts)

    def point(char: str) -> str:
        return "\\x{" + f"{ord(char):x}" + "}"

    return f"^(?:{below(list(excluded))})$"
