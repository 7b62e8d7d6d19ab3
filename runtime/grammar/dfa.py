"""Byte automata: built from patterns and strings, and the grammar that follows one.

Knows: bytes, outlines-core as a compiler of patterns, masks. Must not know: constraints, requests, how patterns arise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from branchwork.lang.constraint import Invalid, TooBig, Unsupported
from branchwork.runtime.grammar import automaton, walk
from branchwork.runtime.grammar.jump import chop
from branchwork.runtime.grammar.matcher import Closed, Report, Row
from branchwork.runtime.grammar.vocabulary import Vocabulary

TREE = automaton.TREE  # a pattern that begins with it is a tree in JSON
MAX_STATES = 50_000


class Table:
    """A deterministic automaton over bytes; state 0 is the start and every state can reach an accepting one.

    transitions: int32 [states, 256], -1 for none. accepting: bool [states].
    """

    def __init__(self, transitions: NDArray[np.int32], accepting: NDArray[np.bool_]) -> None:
        self.transitions = np.ascontiguousarray(transitions, np.int32)
        self.accepting = np.ascontiguousarray(accepting, np.bool_)

    def __len__(self) -> int:
        return len(self.accepting)

    def accepts(self, data: bytes) -> bool:
        state = self.follow(0, data)
        return state >= 0 and bool(self.accepting[state])

    def follow(self, state: int, data: bytes) -> int:
        """The state after `data`, -1 when it is refused."""
        rows = self.rows
        for byte in data:
            state = rows[state, byte]
            if state < 0:
                return -1
        return state

    @cached_property
    def rows(self) -> memoryview:
        """The transitions as a memoryview [state, byte]: single elements come faster out of it than out of an array."""
        return self.transitions.data

    @cached_property
    def final(self) -> NDArray[np.bool_]:
        """States where the text may end and nothing may follow: bool [states]."""
        ends: NDArray[np.bool_] = self.accepting & (self.transitions < 0).all(1)
        return ends

    @cached_property
    def forced(self) -> NDArray[np.int16]:
        """The byte that must follow each state, -1 where there are several or the text may end."""
        open_ = self.transitions >= 0
        single = (open_.sum(1) == 1) & ~self.accepting
        return np.where(single, open_.argmax(1), -1).astype(np.int16)

    def to_bytes(self) -> bytes:
        """For a file or a pipe: equal columns once."""
        number: dict[bytes, int] = {}
        turned = np.ascontiguousarray(self.transitions.T)
        classes = [number.setdefault(column.tobytes(), len(number)) for column in turned]
        first = [classes.index(known) for known in range(len(number))]
        columns = np.ascontiguousarray(self.transitions[:, first], "<i4")
        head = np.array([len(self), len(first)], "<i4").tobytes()
        return head + bytes(classes) + columns.tobytes() + np.packbits(self.accepting).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Table:
        """Raises ValueError for bytes that to_bytes did not write."""
        if len(data) < 8:
            raise ValueError("not an automaton: too short")
        states, width = (int(number) for number in np.frombuffer(data, "<i4", 2))
        end = 8 + 256 + 4 * states * width
        if states < 1 or not 1 <= width <= 256 or len(data) != end + -(-states // 8):
            raise ValueError(f"not an automaton: {len(data)} bytes for {states} states")
        classes = np.frombuffer(data, np.uint8, 256, 8)
        columns = np.frombuffer(data, "<i4", states * width, 264).reshape(states, width)
        if classes.max() >= width or columns.min(initial=0) < -1 or columns.max(initial=-1) >= states:
            raise ValueError("not an automaton: a transition leads nowhere")
        accepting = np.unpackbits(np.frombuffer(data, np.uint8, -1, end), count=states).astype(bool)
        return cls(columns[:, classes].astype(np.int32), accepting)

    def __reduce__(self) -> tuple[Any, ...]:
        return Table.from_bytes, (self.to_bytes(),)


def assemble(rows: Sequence[dict[int, int]], accepting: Iterable[int], start: int = 0) -> Table:
    """A table out of byte -> state rows: only states on a way from `start` to acceptance, in breadth-first order.

    Raises Invalid when there is none.
    """
    before: list[list[int]] = [[] for _ in rows]
    for state, row in enumerate(rows):
        for target in set(row.values()):
            before[target].append(state)
    alive = set(accepting)
    ends, queue = frozenset(alive), list(alive)
    for state in queue:
        for source in before[state]:
            if source not in alive:
                alive.add(source)
                queue.append(source)
    if start not in alive:
        raise Invalid("no text at all satisfies this constraint")
    order = {start: 0}
    for state in (queue := [start]):
        for target in rows[state].values():
            if target in alive and target not in order:
                order[target] = len(order)
                queue.append(target)
    transitions = np.full((len(order), 256), -1, np.int32)
    for state, number in order.items():
        row = {byte: order[target] for byte, target in rows[state].items() if target in alive}
        transitions[number, list(row)] = list(row.values())
    return Table(transitions, np.fromiter((state in ends for state in order), bool, len(order)))


def lay(edges: Sequence[automaton.Spans], accepting: Iterable[int]) -> Table:
    """A table out of each state's (first byte, last byte, state) edges, all reached from state 0. States that lead
    nowhere are left out. Raises Invalid when that is all."""
    before: list[list[int]] = [[] for _ in edges]
    for state, spans in enumerate(edges):
        for _, _, target in spans:
            before[target].append(state)
    queue = list(accepting)
    alive = np.zeros(len(edges), bool)
    alive[queue] = True
    ends = alive.copy()
    for state in queue:
        for source in before[state]:
            if not alive[source]:
                alive[source] = True
                queue.append(source)
    if not alive[0]:
        raise Invalid("no text at all satisfies this constraint")
    sources = np.repeat(np.arange(len(edges)), [len(spans) for spans in edges])
    first, last, target = np.array([span for spans in edges for span in spans], np.int64).reshape(-1, 3).T
    number = np.where(alive, np.cumsum(alive) - 1, -1).astype(np.int32)
    sizes = last + 1 - first
    places = np.repeat(sources * 256 + first - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    transitions = np.full(len(edges) * 256, -1, np.int32)
    transitions[places] = np.repeat(number[target], sizes)
    return Table(transitions.reshape(-1, 256)[alive], ends[alive])


def of_strings(strings: Iterable[bytes]) -> Table:
    """The smallest automaton of a list of strings: their trie with equal endings merged. Raises TooBig."""
    trie: list[dict[int, int]] = [{}]
    ends: set[int] = set()
    for string in strings:
        node = 0
        for byte in string:
            if byte not in trie[node]:
                trie[node][byte] = len(trie)
                trie.append({})
            node = trie[node][byte]
        ends.add(node)
    merged: dict[tuple[Any, ...], int] = {}
    number: dict[int, int] = {}
    rows: list[dict[int, int]] = []
    accepting = []
    for node in reversed(range(len(trie))):  # children come after their parent
        row = {byte: number[child] for byte, child in trie[node].items()}
        key = (node in ends, *sorted(row.items()))
        if key not in merged:
            merged[key] = len(rows)
            rows.append(row)
            accepting += [merged[key]] if node in ends else []
        number[node] = merged[key]
    if len(rows) > MAX_STATES:
        raise TooBig(f"the automaton of these choices has {len(rows):,} states, {MAX_STATES:,} are allowed")
    return assemble(rows, accepting, number[0])


def build(pattern: str, *, states: int = MAX_STATES) -> Table:
    """The automaton of a pattern (Rust's syntax, for the whole text; or TREE and JSON), of at most `states` states.

    Time and memory are not bounded here, and the compiler cannot be interrupted: call it in a process that can be
    killed. Exact but for the noncharacter U+10FFFF. Raises Invalid, Unsupported, TooBig.
    """
    if pattern.startswith(TREE):
        return lay(*automaton.determinise(automaton.decode(pattern), states))
    return _compiled(pattern, states)


_SENTINEL = 256


@cache
def _bytes_as_vocabulary() -> Any:
    """One token per byte, and the end sentinel: U+10FFFF as a single token."""
    from outlines_core import Vocabulary as Outlines  # type: ignore[import-untyped, unused-ignore]

    tokens: dict[str | bytes, list[int]] = {bytes([byte]): [byte] for byte in range(256)}
    tokens["\U0010ffff".encode()] = [_SENTINEL]
    return Outlines(_SENTINEL + 1, tokens)


def _compiled(pattern: str, limit: int) -> Table:
    """By outlines-core's Index over single bytes.

    Index alone is leftmost-first and loses tokens that end just behind a match. Behind the pattern stands a sentinel
    that no text has, so that a match is only complete there: then neither happens, and the text may end where the
    sentinel leads to a final state. What its own four bytes lead to is dropped with it.
    """
    from outlines_core import Index

    try:
        index = Index(f"(?:{pattern})\U0010ffff", _bytes_as_vocabulary())
    except ValueError as error:
        raise Unsupported("this regular expression", -1, f"the compiler says: {str(error)[:200]}") from None
    found, final = index.get_transitions(), index.get_final_states()
    if len(found) > 2 * limit + 64:
        raise TooBig(f"the automaton has about {len(found):,} states, {limit:,} are allowed")
    number = {index.get_initial_state(): 0}
    for state in found:
        if state not in final:
            number.setdefault(state, len(number))
    rows: list[dict[int, int]] = [{} for _ in number]
    accepting = []
    for state, edges in found.items():
        if state in final:
            continue
        here = number[state]
        rows[here] = {byte: number[target] for byte, target in edges.items() if byte < _SENTINEL and target in number}
        if edges.get(_SENTINEL) in final:
            accepting.append(here)
    table = assemble(rows, accepting)
    if len(table) > limit:
        raise TooBig(f"the automaton has {len(table):,} states, {limit:,} are allowed")
    return table


class DfaGrammar:
    """A table read with one vocabulary's tokens."""

    def __init__(
        self, table: Table, vocabulary: Vocabulary, report: Report | None = None, masks: walk.Masks = walk.MASKS
    ) -> None:
        self.table, self.vocabulary = table, vocabulary
        self.report = report or Report("dfa", states=len(table))
        self.walker = walk.Walker(table.transitions, vocabulary.trie, vocabulary.words)
        self.walker.prepare()
        self.masks = masks.client()
        self.blind: set[int] = set()  # states behind which there is no token, found so far

    def start(self) -> DfaMatcher:
        return DfaMatcher(self)

    def validate_text(self, text: str) -> str:
        return ""

    def device_table(self) -> dict[str, Any] | None:
        return {"transitions": self.table.transitions, "accepting": self.table.accepting}

    def mask(self, state: int) -> NDArray[np.int32]:
        """Tokens that may follow a state, end tokens among them where the text may end. Not to be written to."""
        mask = self.masks.get(state)
        if mask is None:
            mask = self.walker.mask(state)
            if self.table.accepting[state]:
                mask |= self.vocabulary.eos_mask
            if not mask.any():
                self.blind.add(state)
            mask = self.masks.put(state, mask)
        return mask

    def fill(self, states: int, more: Callable[[], bool]) -> None:
        """Have the masks of the first states ready, as long as `more` says so. For a thread with nothing else to do;
        those nearest to the start come first."""
        for state in range(min(states, len(self.table))):
            if not more():
                return
            self.mask(state)

    def forced(self, state: int) -> tuple[bytes, int]:
        """The only way on from `state`, and where it leads."""
        run, byte, rows = bytearray(), self.table.forced, self.table.rows
        while byte[state] >= 0:
            run.append(byte[state])
            state = rows[state, byte[state]]
        return bytes(run), state


class _Step(msgspec.Struct, frozen=True):
    """The place after a token, and the step before it: matchers share their past."""

    state: int  # -1: ended by an end token
    before: _Step | None
    count: int


class DfaMatcher:
    """A state of the table and the steps that led there."""

    __slots__ = ("at", "error", "grammar")

    def __init__(self, grammar: DfaGrammar, at: _Step | None = None, error: str = "") -> None:
        self.grammar, self.error = grammar, error
        self.at = at or _Step(0, None, 0)

    def mask_into(self, row: Row) -> None:
        words, state = self.grammar.vocabulary.words, self.at.state
        row[words:] = 0
        if state < 0 or self.error:
            row[:] = 0
            return
        row[:words] = self.grammar.mask(state)
        if state in self.grammar.blind:
            self.error = (
                "the grammar goes on, but no token of this vocabulary does: it lacks the bytes "
                f"{self._missing(state)} that would have to come next"
            )

    def _missing(self, state: int) -> str:
        allowed = np.flatnonzero(self.grammar.table.transitions[state] >= 0).tolist()
        return ", ".join(f"0x{byte:02X}" for byte in allowed[:8]) + (" ..." if len(allowed) > 8 else "")

    def accept(self, tokens: Sequence[int]) -> int:
        taken, self.at = self._follow(tokens)
        return taken

    def validate(self, tokens: Sequence[int]) -> int:
        return self._follow(tokens)[0]

    def _follow(self, tokens: Sequence[int]) -> tuple[int, _Step]:
        at, table, vocabulary = self.at, self.grammar.table, self.grammar.vocabulary
        if self.error:
            return 0, at
        for taken, token in enumerate(tokens):
            if at.state < 0 or not 0 <= token < vocabulary.size:
                return taken, at
            data = vocabulary.tokens[token]
            if data:
                state = table.follow(at.state, data)
                if state < 0:
                    return taken, at
            elif token in vocabulary.eos and table.accepting[at.state]:
                state = -1
            else:
                return taken, at
            at = _Step(state, at, at.count + 1)
        return len(tokens), at

    def rollback(self, count: int) -> None:
        if not 0 <= count <= self.at.count:
            raise ValueError(f"cannot undo {count} tokens: {self.at.count} were accepted")
        for _ in range(count):
            assert self.at.before is not None
            self.at = self.at.before
        self.error = ""  # of this engine an error is the place's, and the place is another

    def fork(self) -> DfaMatcher:
        return DfaMatcher(self.grammar, self.at, self.error)

    def forced(self) -> bytes:
        if self.error or self.at.state < 0:
            return b""
        return self.grammar.forced(self.at.state)[0]

    def jump(self, tail: Sequence[int]) -> list[int]:
        if self.error or self.at.state < 0:
            return []
        run, end = self.grammar.forced(self.at.state)
        if not run:
            return []
        walker = self.grammar.walker
        tokens = chop(self.grammar.vocabulary, tail, run, lambda forced: walker.first_extension(forced, end))
        return tokens if self.validate(tokens) == len(tokens) else []

    @property
    def is_accepting(self) -> bool:
        return self.at.state >= 0 and not self.error and bool(self.grammar.table.accepting[self.at.state])

    @property
    def is_done(self) -> bool:
        if self.at.state < 0:
            return True
        return not self.error and bool(self.grammar.table.final[self.at.state])

    def closed(self) -> list[Closed]:
        return []

    def finish(self) -> list[Closed]:
        return []
