"""Set algebra on patterns: whether two meet, and what several together leave, as one pattern again.

Knows: trees of regular expressions, interegular's products of automata. Must not know: schemas, bytes, engines.

Characters that no pattern here tells apart are one symbol, so that automata stay small whatever the alphabet. All is
bounded: None says that the answer would take too long. Two things of interegular are kept away from: isdisjoint takes
state 0 for none, and reduce may take exponential time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from interegular.fsm import FSM as Fsm
from interegular.fsm import Alphabet as Alphabet_

from branchwork.lang.constraint import TooBig, Unsupported
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
    concat,
    singles,
    union,
)
from branchwork.lang.regex import search as searched
from branchwork.runtime.grammar import automaton

_STATES = 512  # of one pattern's automaton, and what finding them may take
_THREADS = 20_000
_WORK = 8_000_000  # interegular compares each new state with all others, for each symbol: a second, about
_NODES = 1_500  # of a tree that is written out of an automaton

FSM: Any = Fsm  # what it says of its types does not hold
Alphabet: Any = Alphabet_


def disjoint(left: str, right: str) -> bool | None:
    """Whether no text has both patterns in it (JSON Schema's `pattern`: found anywhere, ^ and $ at the edges)."""
    found = remaining((left, right))
    return None if found is None else found == NOTHING


@lru_cache(maxsize=512)
def remaining(patterns: tuple[str, ...], nots: tuple[str, ...] = (), low: int = 0, high: int = -1) -> Tree | None:
    """The texts that have all `patterns` in them, none of `nots`, and low .. high characters (-1: no limit), as a tree
    without look-ahead; NOTHING when there is none, None when that is too much work or no automaton has a pattern.

    Patterns are Python's, \\w \\d \\s ASCII; $ is the very end. Raises Invalid for what is no regular expression.
    """
    try:
        must, never = [searched(one) for one in patterns], [searched(one) for one in nots]
    except Unsupported:
        return None
    if low or high >= 0:
        must.append(Many(ANY, low, high))
    return combine(must or [ANYTHING], never)


def plain(tree: Tree) -> Tree | None:
    """The same texts without look-ahead."""
    return combine([tree], [])


def combine(must: Sequence[Tree], never: Sequence[Tree]) -> Tree | None:
    """The texts of all trees of `must` and of none of `never`."""
    classes = _classes([*must, *never])
    if len(classes) > 128:
        return None
    try:
        machines = [_machine(tree, classes) for tree in (*must, *never)]
    except TooBig:
        return None
    size = 1
    for machine in machines:
        size *= len(machine.states) + (len(machines) > 1)  # and the state of having left it
    if len(machines) > 1 and size * size * len(classes) > _WORK:
        return None
    found = machines[0] if len(must) == 1 else FSM.intersection(*machines[: len(must)])
    if never:
        found = FSM.difference(found, *machines[len(must) :])
    return _written(*_minimal(found), classes)


# --- characters to symbols


def _classes(trees: Iterable[Tree]) -> list[Ranges]:
    """The characters in classes that no tree tells apart."""
    sets = {ranges for tree in trees for ranges in _sets(tree)} | {ANY.ranges}
    cuts = sorted({cut for ranges in sets for first, last in ranges for cut in (first, last + 1)})
    alike: dict[tuple[bool, ...], list[tuple[int, int]]] = {}
    for first, behind in pairwise(cuts):
        member = tuple(_inside(first, ranges) for ranges in sets)
        if any(member):
            alike.setdefault(member, []).append((first, behind - 1))
    return [union(ranges) for ranges in alike.values()]


def _sets(tree: Tree) -> Iterable[Ranges]:
    match tree:
        case Text(text):
            yield from (singles(char) for char in text)
        case Chars(ranges):
            yield ranges
        case Concat(parts) | Either(parts):
            for part in parts:
                yield from _sets(part)
        case Many(part=part) | Look(rest=part) | Scope(part=part):
            yield from _sets(part)


def _inside(code: int, ranges: Ranges) -> bool:
    i = bisect_right(ranges, (code, 0x110000)) - 1
    return i >= 0 and code <= ranges[i][1]


def _symbols(tree: Tree, classes: list[Ranges], ahead: bool = False) -> Tree:
    """The tree over the characters 0 .. classes - 1 in place of the classes. In a look-ahead, what allows any character
    is left as it is: the automaton knows by it when nothing can go wrong any more."""

    def of(ranges: Ranges) -> Ranges:
        return singles(chr(i) for i, known in enumerate(classes) if _inside(known[0][0], ranges))

    match tree:
        case Text(text):
            return concat([Chars(of(singles(char))) for char in text])
        case Chars(ranges):
            return tree if ahead and tree == ANY else Chars(of(ranges))
        case Concat(parts):
            return Concat(tuple(_symbols(part, classes, ahead) for part in parts))
        case Either(options):
            return Either(tuple(_symbols(option, classes, ahead) for option in options))
        case Many(part, least, most):
            return Many(_symbols(part, classes, ahead), least, most)
        case Look(rest, negative):
            return Look(_symbols(rest, classes, True), negative)
        case Scope(part):
            return Scope(_symbols(part, classes, ahead))


def _machine(tree: Tree, classes: list[Ranges]) -> Any:
    """Its automaton over symbols, states from 1. Raises TooBig."""
    found, accepting = automaton.determinise(_symbols(tree, classes), _STATES, _THREADS)
    size = len(classes)
    edges = {
        i + 1: {byte: to + 1 for first, last, to in spans for byte in range(first, min(last + 1, size))}
        for i, spans in enumerate(found)
    }
    alphabet = Alphabet({chr(i): i for i in range(size)})
    return FSM(alphabet, set(edges), 1, {state + 1 for state in accepting}, edges)


# --- an automaton to a tree

_Edges = dict[int, dict[int, int]]  # state -> symbol -> state


def _minimal(machine: Any) -> tuple[_Edges, set[int], int]:
    """Edges, accepting states and start of the smallest automaton: only states on a way to acceptance, equal ones once
    (Moore's refinement: split the states until those that are left together go on alike)."""
    symbol = {key: ord(found[0]) for key, found in machine.alphabet.by_transition.items()}  # products number them anew
    edges: _Edges = {s: {symbol[key]: to for key, to in machine.map.get(s, {}).items()} for s in machine.states}
    alive = set(machine.finals)
    while more := {s for s, row in edges.items() if s not in alive and not alive.isdisjoint(row.values())}:
        alive |= more
    edges = {s: {by: to for by, to in row.items() if to in alive} for s, row in edges.items() if s in alive}
    block = {state: int(state in machine.finals) for state in edges}
    while True:
        keys = {s: (block[s], frozenset((by, block[to]) for by, to in row.items())) for s, row in edges.items()}
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
        refined = {state: numbers[key] for state, key in keys.items()}
        if len(numbers) == len(set(block.values())):
            break
        block = refined
    merged = {block[s]: {by: block[to] for by, to in row.items()} for s, row in edges.items()}
    return merged, {block[s] for s in machine.finals}, block.get(machine.initial, -1)


def _written(edges: _Edges, accepting: set[int], start: int, classes: list[Ranges]) -> Tree | None:
    """The texts of an automaton as a tree: states are taken away one by one, the least connected first, and the ways
    through them written on the edges around them (Brzozowski, McCluskey, 1963)."""
    if start < 0:
        return NOTHING
    ways: dict[int, dict[int, Tree]] = {state: {} for state in edges}
    for state, row in edges.items():
        sets: dict[int, list[Ranges]] = {}
        for symbol, to in row.items():
            sets.setdefault(to, []).append(classes[symbol])
        ways[state] = {to: Chars(union(*found)) for to, found in sets.items()}
    begin, end = -1, -2
    ways[begin] = {start: EMPTY}
    for state in accepting:
        ways[state][end] = EMPTY
    left = set(edges)
    while left:
        sources = {s: [b for b, row in ways.items() if s in row and b != s] for s in left}
        state = min(left, key=lambda s: (len(sources[s]) * len(ways[s]), s))
        left.discard(state)
        through = ways.pop(state)
        loop = through.pop(state, None)
        again = [] if loop is None else [Many(loop, 0, -1)]
        for before in sources[state]:
            into = ways[before].pop(state)
            for to, out in through.items():
                ways[before][to] = _either(ways[before].get(to), concat([into, *again, out]))
        if sum(_nodes(tree) for row in ways.values() for tree in row.values()) > _NODES:
            return None
    return ways[begin][end]


def _either(left: Tree | None, right: Tree) -> Tree:
    if left is None:
        return right
    if left == EMPTY or right == EMPTY:
        return Many(right if left == EMPTY else left, 0, 1)
    if isinstance(left, Chars) and isinstance(right, Chars):
        return Chars(union(left.ranges, right.ranges))
    options = [*(left.options if isinstance(left, Either) else (left,)), right]
    return Either(tuple(dict.fromkeys(options)))


def _nodes(tree: Tree) -> int:
    match tree:
        case Concat(parts) | Either(parts):
            return 1 + sum(map(_nodes, parts))
        case Many(part=part) | Look(rest=part) | Scope(part=part):
            return 1 + _nodes(part)
    return 1
