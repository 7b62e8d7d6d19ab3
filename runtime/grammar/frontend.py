"""Regular constraints as one pattern for the DFA compiler, and the parts of it that other engines want.

Knows: constraint values, trees of regular expressions, Rust's regex syntax. Must not know: tokens, engines, automata.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from functools import reduce

import msgspec

from branchwork.lang.constraint import (
    Capture,
    Choice,
    Constraint,
    Free,
    Invalid,
    Literal,
    Maybe,
    OneOf,
    Regex,
    Repeat,
    Sequence,
    TooBig,
    Unsupported,
)
from branchwork.lang.regex import (
    ANY,
    ANYTHING,
    EMPTY,
    NOTHING,
    Chars,
    Concat,
    Either,
    Look,
    Many,
    Ranges,
    Scope,
    Text,
    Tree,
    complement,
    concat,
    looks,
    parse,
    singles,
    union,
)
from branchwork.runtime.grammar import automaton
from branchwork.runtime.grammar.dfa import MAX_STATES, TREE, Table, build, lay, of_strings

MAX_STRINGS = 20_000  # texts of a constraint that is a plain list of them; more, and it goes the way of patterns
MAX_LISTED = 200_000  # characters of those texts together
MAX_PATTERN = 2_000_000  # characters of a pattern
_MAX_FREE = 4_000  # nodes of a stop-free text's tree before look-ahead is the shorter way to say it
_THREADS = 60_000  # of a subset construction: a tenth of a second, and exponential shapes are given up
_PREFIXES = 512  # beginnings looked at to say whether a constraint begins with a stop


class Regular(msgspec.Struct, frozen=True):
    """A constraint as one regular expression.

    pattern: what dfa.build takes: Rust's syntax, for the whole text; or, where there is look-ahead, TREE and JSON.
    size: states a nondeterministic automaton would have, about. fsm: the automaton itself, where it came for free.
    """

    pattern: str
    size: int
    fsm: Table | None = None

    @property
    def rust(self) -> bool:
        """Whether `pattern` is Rust syntax, which other engines take too."""
        return not self.pattern.startswith(TREE)


def regular(constraint: Constraint, limit: int = 3000) -> Regular | None:
    """The constraint as a pattern; None when part of it is not regular (JsonSchema, Grammar, Tagged).

    Raises Invalid and Unsupported as `parse` does, Invalid for a Free that nothing ends and for what no text matches,
    TooBig past MAX_PATTERN, and past a size of `limit` where there is look-ahead, which no other engine has.
    """
    check_free(constraint)
    tree = tree_of(constraint)
    if tree is None:
        return None
    tree = simplify(tree)
    if tree == NOTHING:
        raise Invalid("no text at all satisfies this constraint")
    size = count(tree)
    if looks(tree):
        if size > limit:
            raise TooBig(
                f"a pattern with look-ahead may have {limit:,} characters with their repeats, this has {size:,}"
            )
        return Regular(TREE + msgspec.json.encode(tree).decode(), size)
    strings = expand(tree, MAX_STRINGS)
    listed = strings is not None and sum(map(len, strings)) <= MAX_LISTED
    fsm = of_strings([text.encode() for text in strings or ()]) if listed else _automaton(tree, size, limit)
    pattern = rust(tree)
    if len(pattern) > MAX_PATTERN:
        raise TooBig(f"the constraint is a pattern of {len(pattern):,} characters, {MAX_PATTERN:,} are allowed")
    return Regular(pattern, size, fsm)


def _automaton(tree: Tree, size: int, limit: int) -> Table | None:
    """The automaton by our own construction, None when it takes too long.

    outlines-core also builds what is needed to find a match that begins anywhere, which takes seconds for a pattern as
    short as [1-9][0-9]{0,17}: the beginnings that overlap are counted in 2**17 sets.
    """
    if size > limit:
        return None
    try:
        return lay(*automaton.determinise(tree, MAX_STATES, _THREADS))
    except TooBig:
        return None


def table(pattern: str, *, states: int, limit: int = 3000) -> Table:
    """The automaton of a Rust pattern such as `rust` writes: no shorthand classes, no flags. Raises as dfa.build."""
    spelled = _CODES.sub(lambda found: f"{found[1]}\\U{int(found[2], 16):08x}", pattern)
    tree = simplify(parse(spelled))
    found = None if looks(tree) else _automaton(tree, count(tree), limit)
    return build(pattern, states=states) if found is None else found


_CODES = re.compile(r"(?<!\\)((?:\\\\)*)\\x\{([0-9A-Fa-f]+)\}")


def regex_text(regex: Regex) -> str:
    """The pattern in Rust's syntax, without look-ahead and safe between the slashes of a Lark terminal."""
    tree = _plain(simplify(parse(regex.pattern, regex.unicode)))
    if tree is None:
        position = max(regex.pattern.find("(?="), regex.pattern.find("(?!"))
        raise Unsupported("look-ahead", position, "here only automata of limited size have it: simplify the regex")
    if tree == NOTHING:
        raise Invalid(f"no text at all matches {regex.pattern!r}")
    return rust(tree)


def free_regex(free: Free) -> str:
    """A Free's text as a Rust pattern. Raises Unsupported where that takes look-ahead."""
    tree = _plain(simplify(_free(free)))
    if tree is None:
        raise Unsupported("max_chars with longer stops", -1, "use stops of one character, or no max_chars, here")
    return rust(tree)


def _plain(tree: Tree) -> Tree | None:
    """Without look-ahead, None where that would take too long."""
    if not looks(tree):
        return tree
    from branchwork.runtime.grammar import algebra  # and interegular with it, which few constraints need

    found = algebra.plain(tree)
    return found and simplify(found)


# --- constraints to trees


def tree_of(constraint: Constraint) -> Tree | None:
    """The constraint as a tree, None when part of it is not regular."""
    match constraint:
        case Regex(pattern, unicode):
            return parse(pattern, unicode)
        case Literal(text):
            return Text(_text(text))
        case Choice(options):
            if not options:
                raise Invalid("a choice needs at least one option")
            return Either(tuple(Text(_text(option)) for option in options))
        case Free():
            return _free(constraint)
        case Sequence(parts):
            trees = [tree_of(part) for part in parts]
            known = [tree for tree in trees if tree is not None]
            return concat(known) if len(known) == len(trees) else None
        case OneOf(parts):
            trees = [tree_of(part) for part in parts]
            known = [tree for tree in trees if tree is not None]
            return Either(tuple(known)) if known and len(known) == len(trees) else None
        case Capture(part=part):
            return tree_of(part)
        case Maybe(part):
            tree = tree_of(part)
            return tree and Many(tree, 0, 1)
        case Repeat(part, least, most, separator):
            tree = tree_of(part)
            return tree and repeated(tree, least, most, separator)
    return None


def repeated(tree: Tree, least: int, most: int, separator: str) -> Tree:
    """`tree` least .. most times (most 0: no limit) with `separator` between."""
    if least < 0 or (most and most < least):
        raise Invalid(f"a repeat of least {least} and most {most} is impossible")
    top = most or -1
    if not separator:
        return Many(tree, least, top)
    more = Many(concat([Text(separator), tree]), max(least - 1, 0), top - 1 if top > 0 else -1)
    some = concat([tree, more])
    return some if least else Many(some, 0, 1)


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"lone surrogate in {text!r}", error.start) from None
    return text


def _free(free: Free) -> Tree:
    """Text with none of the stops in it."""
    if "" in free.stop:
        raise Invalid("an empty stop string ends every text at once")
    if all(len(stop) == 1 for stop in free.stop):
        return Many(Chars(complement(singles(free.stop))), 0, free.max_chars or -1)
    tree = None if free.max_chars else _without(free.stop)
    if tree is None:
        found = concat([ANYTHING, Either(tuple(Text(_text(stop)) for stop in free.stop)), ANYTHING])
        tree = Scope(concat([Look(found, True), Many(ANY, 0, free.max_chars or -1)]))
    return tree


def _without(stops: tuple[str, ...]) -> Tree | None:
    """The stop-free texts as a plain tree: the prefix automaton of the stops, solved by Arden's rule from its far end.

    Every state R_i = edges(i, j) R_j ... + empty, since a text may end anywhere. None when that grows too large.
    """
    prefixes = sorted({stop[:n] for stop in stops for n in range(len(stop))}, key=lambda prefix: (len(prefix), prefix))
    prefixes = [prefix for prefix in prefixes if not any(stop in prefix for stop in stops)]
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    alphabet = {char for stop in stops for char in stop}
    rows: list[dict[int, Tree]] = []
    for prefix in prefixes:
        by_target: dict[int, Ranges] = {0: complement(singles(alphabet))}
        for char in alphabet:
            text = prefix + char
            if not any(text.endswith(stop) for stop in stops):
                target = next(number[text[n:]] for n in range(len(text) + 1) if text[n:] in number)
                by_target[target] = union(by_target.get(target, ()), singles(char))
        rows.append({target: Chars(ranges) for target, ranges in by_target.items() if ranges})
    ends: list[Tree] = [EMPTY] * len(rows)
    for i in reversed(range(len(rows))):
        loop = rows[i].pop(i, None)
        again = [] if loop is None else [Many(loop, 0, -1)]
        solved = {j: concat([*again, edge]) for j, edge in rows[i].items()}
        end = concat([*again, ends[i]])
        for k in range(i):
            edge = rows[k].pop(i, None)
            if edge is not None:
                for j, tree in solved.items():
                    through = concat([edge, tree])
                    rows[k][j] = Either((rows[k][j], through)) if j in rows[k] else through
                ends[k] = Either((ends[k], concat([edge, end])))
        if i == 0:
            return end if _nodes(end) <= _MAX_FREE else None
        if sum(map(_nodes, rows[0].values())) > _MAX_FREE:
            return None
    return None


def _nodes(tree: Tree) -> int:
    match tree:
        case Concat(parts) | Either(parts):
            return 1 + sum(map(_nodes, parts))
        case Many(part=part) | Look(rest=part) | Scope(part=part):
            return 1 + _nodes(part)
    return 1


def check_free(constraint: Constraint, after: tuple[Constraint, ...] = ()) -> None:
    """Raises Invalid when a Free is followed by something that may begin without one of its stops: where it ends would
    then be a guess. after: what follows the constraint. Whatever may be empty is looked through."""
    match constraint:
        case Sequence(parts):
            for i, part in enumerate(parts):
                check_free(part, (*parts[i + 1 :], *after))
        case Capture(part=part) | Maybe(part=part):
            check_free(part, after)
        case OneOf(parts):
            for part in parts:
                check_free(part, after)
        case Repeat(part, most=most, separator=separator):
            again: tuple[Constraint, ...] = () if most == 1 else (Maybe(Sequence((Literal(separator), part))),)
            check_free(part, (*again, *after))
        case Free(stop) if after:
            for beginning, whole in _beginnings(after, max(map(len, stop), default=0)):
                if not beginning.startswith(stop or "\0\0") and not (whole and not beginning):
                    said = " or ".join(map(repr, stop)) if stop else "(it has no stop)"
                    raise Invalid(
                        f"free text before {beginning!r} would have no certain end: what follows it must begin with "
                        f"one of its stops, {said}; name the first characters of the next literal as a stop"
                    )


def _beginnings(parts: tuple[Constraint, ...], length: int) -> Iterator[tuple[str, bool]]:
    """(beginning of at most `length` characters, whether that is all) of the texts of `parts` in a row."""
    trees: list[Tree] = []
    for part in parts:
        tree = tree_of(part)
        if tree is None:
            trees.append(ANY)  # a schema or a grammar: it may begin with anything
            break
        trees.append(tree)
    found = {"": True}
    return iter(_extend(concat(trees), found, max(length, 1)).items())


def _extend(tree: Tree, done: dict[str, bool], length: int) -> dict[str, bool]:
    """Beginnings after `tree`, from those before it: text -> whether it is complete. Sets of characters stand for
    their first few members, since one that is not a stop is enough to object."""
    growing = [text for text in done if len(text) < length]
    kept = {text: False for text in done if len(text) >= length}
    pieces: list[str] = []
    match tree:
        case Text(text):
            pieces = [text]
        case Chars(ranges):
            pieces = [chr(code) for first, last in ranges for code in range(first, min(last, first + 24) + 1)][:200]
        case Concat(parts):
            return reduce(lambda found, part: _extend(part, found, length), parts, done)
        case Either(options):
            return {text: whole for option in options for text, whole in _extend(option, done, length).items()}
        case Scope(part):
            return _extend(part, done, length)
        case Look():
            return done
        case Many(part, least, most):
            found, at = dict(done) if least == 0 else {}, done
            for turn in range(1, length + 1 if most < 0 else min(most, length + least) + 1):
                at = _extend(part, at, length)
                if turn >= least:
                    found |= at
                if len(found) > _PREFIXES or all(len(text) >= length for text in at):
                    break
            return found or at
    grown = {(before + piece)[:length]: True for before in growing for piece in pieces}
    return kept | dict(list(grown.items())[:_PREFIXES])


# --- trees


def simplify(tree: Tree) -> Tree:
    """The same texts, without parts that no text can go through; NOTHING when there is no text at all."""
    match tree:
        case Chars(ranges):
            return tree if ranges else NOTHING
        case Concat(parts):
            simple = [simplify(part) for part in parts]
            return NOTHING if NOTHING in simple else concat(simple)
        case Either(options):
            simple = [option for option in map(simplify, options) if option != NOTHING]
            return simple[0] if len(simple) == 1 else Either(tuple(dict.fromkeys(simple)))
        case Many(part, least, most):
            part = simplify(part)
            if most == 0 or part == EMPTY or (part == NOTHING and least == 0):
                return EMPTY
            return part if part == NOTHING or (least, most) == (1, 1) else Many(part, least, most)
        case Scope(part):
            part = simplify(part)
            return Scope(part) if looks(part) else part
        case Look(rest, negative):
            rest = simplify(rest)
            if rest == NOTHING:
                return EMPTY if negative else NOTHING
            return Look(rest, negative)
    return tree


def count(tree: Tree) -> int:
    """Positions of characters, each times the repeats around it: the size of a nondeterministic automaton."""
    match tree:
        case Text(text):
            return len(text)
        case Concat(parts) | Either(parts):
            return sum(map(count, parts))
        case Many(part, least, most):
            return count(part) * (max(most, least, 1) if most >= 0 else least + 1)
        case Look(rest=part) | Scope(part=part):
            return count(part)
    return 1


def expand(tree: Tree, limit: int) -> list[str] | None:
    """All texts of the tree, None when they are more than `limit` or not plainly listed."""
    match tree:
        case Text(text):
            return [text]
        case Either(options):
            lists = [expand(option, limit) for option in options]
            known = [texts for texts in lists if texts is not None]
            if len(known) < len(lists) or sum(map(len, known)) > limit:
                return None
            return [text for texts in known for text in texts]
        case Concat(parts):
            found = [""]
            for part in parts:
                texts = expand(part, limit)
                if texts is None or len(texts) * len(found) > limit:
                    return None
                found = [before + text for before in found for text in texts]
            return found
        case Many(part, 0, 1):
            texts = expand(part, limit)
            return None if texts is None or len(texts) >= limit else ["", *texts]
    return None


def rust(tree: Tree) -> str:
    """The tree in Rust's regex syntax: no flags, no shorthand classes, and nothing that ends a /slashed/ terminal."""
    match tree:
        case Text(text):
            return "".join(map(_character, text))
        case Chars(ranges):
            wide = bool(ranges) and ranges[-1][1] == 0x10FFFF
            inner = "".join(map(_range, complement(ranges) if wide else ranges))
            return f"[{'^' if wide else ''}{inner}]" if inner else r"[\x{0}-\x{10FFFF}]"
        case Concat(parts):
            return "".join(f"(?:{rust(part)})" if isinstance(part, Either) else rust(part) for part in parts)
        case Either(options):
            return "|".join(map(rust, options))
        case Many(part, least, most):
            single = isinstance(part, Chars) or (isinstance(part, Text) and len(part.text) == 1)
            inner = rust(part) if single else f"(?:{rust(part)})"
            signs = {(0, -1): "*", (1, -1): "+", (0, 1): "?"}
            bounds = f"{{{least}}}" if least == most else f"{{{least},{most if most >= 0 else ''}}}"
            return inner + signs.get((least, most), bounds)
        case Scope(part):
            return rust(part)
    raise Unsupported("look-ahead", -1, "this engine has none")


_PLAIN = frozenset(string.ascii_letters + string.digits + " _:;,\"'<>=!@%`")


def _range(pair: tuple[int, int]) -> str:
    first, last = (_character(chr(code), True) for code in pair)
    return first if first == last else f"{first}-{last}"


def _character(char: str, in_class: bool = False) -> str:
    if char in _PLAIN or (ord(char) > 0xA0 and char.isprintable() and not in_class):
        return char
    return "\\" + char if char in "\\.+*?()|[]{}^$" else f"\\x{{{ord(char):X}}}"
