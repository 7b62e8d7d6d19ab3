"""What generated text must look like: constraints as frozen values that travel from the program to the engine.

Knows: text, patterns, schemas, how constraints are put together. Must not know: tokens, engines, how any is enforced.
A constraint is a leaf (Regex, Choice, JsonSchema, Grammar, Literal, Free) or is made of others (Sequence, OneOf,
Capture, Maybe, Repeat, Tagged). A whole turn is one constraint with named captures.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from branchwork.lang.errors import BranchworkError


class ConstraintError(BranchworkError, ValueError):
    """A constraint cannot be enforced. The subclasses say why; `code` is what travels over the wire."""

    code = "constraint"


class Invalid(ConstraintError):
    """The constraint itself is wrong: no regular expression, no JSON, no grammar. position: in its text, or -1."""

    code = "invalid_constraint"

    def __init__(self, message: str, position: int = -1) -> None:
        super().__init__(message)
        self.position = position


class Unsupported(ConstraintError):
    """A construct that no engine here enforces. construct: its name; position: in the text, or -1; hint: what to do."""

    code = "unsupported_constraint"

    def __init__(self, construct: str, position: int = -1, hint: str = "") -> None:
        where = f" at position {position}" if position >= 0 else ""
        super().__init__(f"{construct}{where} is not supported" + (f"; {hint}" if hint else ""))
        self.construct, self.position, self.hint = construct, position, hint


class TooBig(ConstraintError):
    """Compiling took more time or memory than allowed. The message has the limit and the figure."""

    code = "constraint_too_big"


MAX_DEPTH = 64  # levels of parts within parts


class Leaf(msgspec.Struct, frozen=True, tag_field="k"):
    """Base of every constraint."""


class Regex(Leaf, frozen=True, tag="regex"):
    """The whole text matches `pattern` (Python's `re` syntax, fullmatch). unicode: \\w \\d \\s beyond ASCII."""

    pattern: str
    unicode: bool = False


class Choice(Leaf, frozen=True, tag="choice"):
    """The whole text is one of `options`."""

    options: tuple[str, ...]


class JsonSchema(Leaf, frozen=True, tag="json"):
    """A JSON value that the schema (JSON text) accepts, its properties in the schema's order.

    whitespace: "spaced" (", " and ": ", as most text has it), "compact" (none outside strings) or "flexible".
    strict: refuse what can only be approximated; otherwise approximations are named in the grammar's report and the
    finished text is validated.
    """

    schema: str
    whitespace: str = "spaced"
    strict: bool = False


class Grammar(Leaf, frozen=True, tag="grammar"):
    """A context-free grammar. syntax: "lark", "gbnf" (llama.cpp) or "ebnf" (W3C style, `root ::= ...`)."""

    text: str
    syntax: str = "lark"


class Literal(Leaf, frozen=True, tag="literal"):
    """Exactly this text."""

    text: str


class Free(Leaf, frozen=True, tag="free"):
    """Any text that does not contain one of `stop`. What follows in a Sequence ends it, so that must begin with one
    of them; at the end of everything the model's end token does. max_chars: 0 for no limit."""

    stop: tuple[str, ...] = ()
    max_chars: int = 0


class Sequence(Leaf, frozen=True, tag="seq"):
    """The parts, one after the other."""

    parts: tuple[Constraint, ...]


class OneOf(Leaf, frozen=True, tag="one"):
    """One of the parts, whichever the model begins."""

    parts: tuple[Constraint, ...]


class Capture(Leaf, frozen=True, tag="capture"):
    """`part`, and its text is the value of variable `name`; inside a Repeat the value is a list."""

    name: str
    part: Constraint


class Maybe(Leaf, frozen=True, tag="maybe"):
    """`part` or nothing. Its captures are absent when it is left out."""

    part: Constraint


class Repeat(Leaf, frozen=True, tag="repeat"):
    """`part` least .. most times (most 0: no limit), with `separator` between."""

    part: Constraint
    least: int = 0
    most: int = 0
    separator: str = ""


class Tag(msgspec.Struct, frozen=True, array_like=True):
    """Once `begin` has been written, `content` and then `end` must follow."""

    begin: str
    content: Constraint
    end: str


class Tagged(Leaf, frozen=True, tag="tags"):
    """Free text in which `tags` may occur (structural tags): where a tag's `begin` appears, its content is constrained.

    at_least_one: the text may not end before a tag has been completed. exempt: (begin, end) pairs around sections, such
    as ("<think>", "</think>"), in which nothing is constrained and tags do not count.
    """

    tags: tuple[Tag, ...]
    at_least_one: bool = False
    exempt: tuple[tuple[str, str], ...] = ()


Constraint = (
    Regex | Choice | JsonSchema | Grammar | Literal | Free | Sequence | OneOf | Capture | Maybe | Repeat | Tagged
)


def children(constraint: Constraint) -> tuple[Constraint, ...]:
    """The constraints that one is directly made of."""
    match constraint:
        case Sequence(parts) | OneOf(parts):
            return parts
        case Capture(part=part) | Maybe(part=part) | Repeat(part=part):
            return (part,)
        case Tagged(tags):
            return tuple(tag.content for tag in tags)
    return ()


def walk(constraint: Constraint) -> Iterator[Constraint]:
    """The constraint and everything it is made of, outermost first, in order of the text."""
    left = [constraint]
    while left:
        found = left.pop()
        yield found
        left += reversed(children(found))


def capture_names(constraint: Constraint | None) -> tuple[str, ...]:
    """Names of its captures in order of appearance, each once."""
    if constraint is None:
        return ()
    return tuple(dict.fromkeys(found.name for found in walk(constraint) if isinstance(found, Capture)))


def listed_captures(constraint: Constraint) -> frozenset[str]:
    """Names of captures that stand inside a Repeat: their values are lists."""
    return _captures_inside(constraint, (Repeat,))


def optional_captures(constraint: Constraint) -> frozenset[str]:
    """Names of captures that a finished text may lack."""
    return _captures_inside(constraint, (Repeat, Maybe, OneOf, Tagged))


def _captures_inside(constraint: Constraint, kinds: tuple[type, ...]) -> frozenset[str]:
    names, left = set(), [(constraint, False)]
    while left:
        found, inside = left.pop()
        if inside and isinstance(found, Capture):
            names.add(found.name)
        inside = inside or isinstance(found, kinds)
        left += [(child, inside) for child in children(found)]
    return frozenset(names)


def check(constraint: Constraint) -> None:
    """What can be seen without compiling. Raises Invalid, and TooBig for constraints nested deeper than MAX_DEPTH."""
    level, depth = [constraint], 0
    while level := [child for found in level for child in children(found)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise TooBig(f"the constraint is nested deeper than {MAX_DEPTH} levels")
    names: set[str] = set()
    for found in walk(constraint):
        match found:
            case Choice(options) if not options:
                raise Invalid("a choice without options allows no text")
            case Choice(options) if "" in options:
                raise Invalid("an option of a choice is empty; an optional part is the way to allow nothing")
            case OneOf(parts) if not parts:
                raise Invalid("one of no parts allows no text")
            case Free(stop) if "" in stop:
                raise Invalid("an empty stop would end the text before it begins")
            case Capture(name) if not name or name in names:
                raise Invalid(f"two captures are named {name!r}; every name must differ" if name else "unnamed capture")
            case Capture(name):
                names.add(name)
            case Repeat(least=least, most=most) if least < 0 or most < 0 or 0 < most < least:
                raise Invalid(f"a repeat of at least {least} and at most {most} (0: no limit) times is impossible")
            case Tagged(tags) if not tags:
                raise Invalid("tagged text without tags; give at least one")
            case Tagged(tags, exempt=exempt):
                if not all(tag.begin for tag in tags) or not all(begin and end for begin, end in exempt):
                    raise Invalid("the begin of a tag, and both ends of an exempt section, need text")
