"""Small patterns, and those with look-ahead, as deterministic byte automata, by subset construction with obligations.

Knows: trees of regular expressions, UTF-8. Must not know: tokens, tables, constraints.

A look-ahead says of all that follows (up to the end of its Scope) that it is, or is not, a text of another automaton.
So a thread is a state of the pattern's automaton and its obligations: the states that those others have reached since.
An obligation that can no longer fail is dropped, one that has failed ends its thread, and where the scope ends each
must hold. A deterministic state is a set of threads. Source: alternating automata (Chandra, Kozen, Stockmeyer, 1981).
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import msgspec

from branchwork.lang.constraint import TooBig
from branchwork.lang.regex import ANYTHING, Chars, Concat, Either, Look, Many, Ranges, Scope, Text, Tree

TREE = "tree:"  # begins a pattern that is a tree in JSON
MAX_NFA = 100_000  # states of the nondeterministic automaton
MAX_THREADS = 2_000_000  # of all deterministic states together

Spans = list[tuple[int, int, int]]  # (first byte, last byte, state)


def decode(pattern: str) -> Tree:
    tree: Tree = msgspec.json.decode(pattern[len(TREE) :], type=Tree)
    return tree


class Obligation(NamedTuple):
    scope: int
    look: int
    state: int


Thread = tuple[int, frozenset[Obligation]]


class Ahead(NamedTuple):
    """A look-ahead's own automaton. certain: states that accept whatever follows."""

    spans: list[Spans]
    accepting: frozenset[int]
    certain: frozenset[int]
    negative: bool


class Nfa:
    """Thompson's construction over bytes. Edges without a byte: plain, through a look-ahead, out of a scope."""

    def __init__(self, tree: Tree, limit: int) -> None:
        self.limit = limit
        self.bytes: list[Spans] = []
        self.plain: list[list[int]] = []
        self.looks: list[list[tuple[int, int, int]]] = []  # (scope, look, state)
        self.exits: list[list[tuple[int, int]]] = []  # (scope, state)
        self.aheads: list[Ahead] = []
        self.anything: list[int] = []  # states in which any text whatever may follow and come back here
        self.scopes = 0
        self.start = self._state()
        self.end = self._add(tree, self.start, 0)

    def _state(self) -> int:
        if len(self.bytes) >= MAX_NFA:
            raise TooBig(f"the pattern needs more than {MAX_NFA:,} states before it is even determinised")
        self.bytes.append([])
        self.plain.append([])
        self.looks.append([])
        self.exits.append([])
        return len(self.bytes) - 1

    def _add(self, tree: Tree, at: int, scope: int) -> int:
        """Lay `tree` behind state `at`; returns the state behind it."""
        match tree:
            case Text(text):
                for byte in text.encode():
                    at = self._byte(at, byte, byte)
            case Chars(ranges):
                return self._chars(ranges, at)
            case Concat(parts):
                for part in parts:
                    at = self._add(part, at, scope)
            case Either(options):
                end = self._state()
                for option in options:
                    begin = self._state()
                    self.plain[at].append(begin)
                    self.plain[self._add(option, begin, scope)].append(end)
                return end
            case Many():
                return self._many(tree, at, scope)
            case Scope(part):
                self.scopes += 1
                inner, begin, end = self.scopes, self._state(), self._state()
                self.plain[at].append(begin)
                self.exits[self._add(part, begin, inner)].append((inner, end))
                return end
            case Look(rest, negative):
                end = self._state()
                self.aheads.append(_ahead(rest, negative, self.limit))
                self.looks[at].append((scope, len(self.aheads) - 1, end))
                return end
        return at

    def _many(self, tree: Many, at: int, scope: int) -> int:
        for _ in range(tree.least):
            at = self._add(tree.part, at, scope)
        end = self._state()
        if tree.most < 0:
            loop = self._state()
            self.plain[at].append(loop)
            self.plain[self._add(tree.part, loop, scope)].append(loop)
            self.plain[loop].append(end)
            if tree.part == ANYTHING.part:
                self.anything.append(loop)
            return end
        for _ in range(tree.most - tree.least):
            self.plain[at].append(end)
            at = self._add(tree.part, at, scope)
        self.plain[at].append(end)
        return end

    def _byte(self, at: int, first: int, last: int) -> int:
        target = self._state()
        self.bytes[at].append((first, last, target))
        return target

    def _chars(self, ranges: Ranges, at: int) -> int:
        end = self._state()
        behind: dict[tuple[tuple[int, int], ...], int] = {(): end}  # by what is left of an encoding: ends are shared
        for sequence in utf8(ranges):
            for i in reversed(range(len(sequence))):
                rest = sequence[i + 1 :]
                if i == 0:
                    self.bytes[at].append((*sequence[0], behind[rest]))
                elif sequence[i:] not in behind:
                    behind[sequence[i:]] = here = self._state()
                    self.bytes[here].append((*sequence[i], behind[rest]))
        return end


@lru_cache(maxsize=512)
def utf8(ranges: Ranges) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The characters' encodings as sequences of byte ranges."""
    found: list[tuple[tuple[int, int], ...]] = []
    stack = list(reversed(ranges))
    while stack:
        first, last = stack.pop()
        for top in (0x7F, 0x7FF, 0xFFFF):  # the same length for all
            if first <= top < last:
                stack.append((top + 1, last))
                last = top
        for width in (6, 12, 18):  # whole blocks of continuation bytes, or none
            low = (1 << width) - 1
            if first > 0x7F and first & ~low != last & ~low:
                if first & low:
                    stack.append(((first | low) + 1, last))
                    last = first | low
                elif last & low != low:
                    stack.append((last & ~low, last))
                    last = (last & ~low) - 1
        found.append(tuple(zip(chr(first).encode(), chr(last).encode())))
    return tuple(found)


def determinise(tree: Tree, limit: int, threads: int = MAX_THREADS) -> tuple[list[Spans], list[int]]:
    """Each state's edges and the accepting states; state 0 is the start, all are reached from it. Raises TooBig past
    `limit` states or `threads` threads in all of them."""
    edges, accepting, _ = _subsets(Nfa(tree, limit), limit, threads)
    return edges, accepting


def _ahead(rest: Tree, negative: bool, limit: int) -> Ahead:
    nfa = Nfa(rest, limit)
    edges, accepting, sets = _subsets(nfa, limit)
    free = {state for state in nfa.anything if (nfa.end, frozenset()) in _closure(nfa, (state, frozenset()))}
    certain = [i for i, threads in enumerate(sets) if any(state in free and not owed for state, owed in threads)]
    return Ahead(edges, frozenset(accepting), frozenset(certain), negative)


def _subsets(nfa: Nfa, limit: int, most: int = MAX_THREADS) -> tuple[list[Spans], list[int], list[frozenset[Thread]]]:
    start = _closure(nfa, (nfa.start, frozenset()))
    number, sets = {start: 0}, [start]
    closures: dict[Thread, frozenset[Thread]] = {}
    edges: list[Spans] = []
    threads = 0
    for current in sets:
        spans: Spans = []
        for first, last, moved in _moves(nfa, current):
            for thread in moved:
                if thread not in closures:
                    closures[thread] = _closure(nfa, thread)
            target = closures[moved[0]].union(*(closures[thread] for thread in moved[1:]))
            if target:
                state = number.setdefault(target, len(sets))
                if state == len(sets):
                    sets.append(target)
                if spans and spans[-1][1] == first - 1 and spans[-1][2] == state:
                    spans[-1] = (spans[-1][0], last, state)
                else:
                    spans.append((first, last, state))
        edges.append(spans)
        threads += len(current)
        if len(sets) > limit or threads > most:
            raise TooBig(f"the automaton has more than {min(len(sets), limit):,} states, {limit:,} are allowed")
    accepting = [i for i, current in enumerate(sets) if any(_ends(nfa, thread) for thread in current)]
    return edges, accepting, sets


def _closure(nfa: Nfa, thread: Thread) -> frozenset[Thread]:
    """All threads that one becomes without a byte."""
    found, stack = {thread}, [thread]
    while stack:
        state, owed = stack.pop()
        after: list[Thread] = [(target, owed) for target in nfa.plain[state]]
        for scope, look, target in nfa.looks[state]:
            held = _settle(nfa, [*owed, Obligation(scope, look, 0)])
            if held is not None:
                after.append((target, held))
        for scope, target in nfa.exits[state]:
            if all(_holds(nfa, one) for one in owed if one.scope == scope):
                after.append((target, frozenset(one for one in owed if one.scope != scope)))
        for other in after:
            if other not in found:
                found.add(other)
                stack.append(other)
    # only threads that read a byte or end here make a difference
    return frozenset(one for one in found if nfa.bytes[one[0]] or one[0] == nfa.end)


def _settle(nfa: Nfa, owed: list[Obligation]) -> frozenset[Obligation] | None:
    """The obligations still open, None when one has failed. State -1 is that of no way to accept."""
    kept = []
    for one in owed:
        ahead = nfa.aheads[one.look]
        if one.state < 0 or one.state in ahead.certain:
            if (one.state >= 0) == ahead.negative:
                return None
        else:
            kept.append(one)
    return frozenset(kept)


def _holds(nfa: Nfa, one: Obligation) -> bool:
    ahead = nfa.aheads[one.look]
    return (one.state in ahead.accepting) != ahead.negative


def _ends(nfa: Nfa, thread: Thread) -> bool:
    return thread[0] == nfa.end and all(_holds(nfa, one) for one in thread[1])


def _moves(nfa: Nfa, threads: frozenset[Thread]) -> list[tuple[int, int, list[Thread]]]:
    """(first byte, last byte, threads after it), for each run of bytes that all threads treat alike."""
    if len(threads) == 1:
        ((state, owed),) = threads
        spans = nfa.bytes[state]
        if not owed and all(left[1] < right[0] for left, right in pairwise(spans)):
            return [(first, last, [(target, owed)]) for first, last, target in spans]
    lists = [nfa.bytes[state] for state, _ in threads]
    lists += [nfa.aheads[one.look].spans[one.state] for _, owed in threads for one in owed]
    cuts = sorted({cut for spans in lists for first, last, _ in spans for cut in (first, last + 1)})
    moves = []
    for first, behind in pairwise(cuts):
        moved: list[Thread] = []
        for state, owed in threads:
            targets = [target for low, high, target in nfa.bytes[state] if low <= first <= high]
            if targets:
                advanced = [one._replace(state=_step(nfa.aheads[one.look].spans[one.state], first)) for one in owed]
                held = _settle(nfa, advanced)
                if held is not None:
                    moved += [(target, held) for target in targets]
        if moved:
            moves.append((first, behind - 1, moved))
    return moves


def _step(spans: Spans, byte: int) -> int:
    i = bisect_right(spans, (byte, 256, 0)) - 1
    return spans[i][2] if i >= 0 and spans[i][0] <= byte <= spans[i][1] else -1
