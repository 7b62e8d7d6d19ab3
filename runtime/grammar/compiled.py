"""The half of compiling that needs the vocabulary: from a recipe to a grammar whose matchers tell captures.

Knows: recipes, the engines' grammars. Must not know: processes, caches, deadlines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import numpy as np

from branchwork.lang.constraint import (
    Capture,
    Choice,
    Constraint,
    ConstraintError,
    Free,
    Invalid,
    JsonSchema,
    Unsupported,
    capture_names,
)
from branchwork.runtime.grammar import dfa, llg, walk, xgr
from branchwork.runtime.grammar.captures import Program, Tracker
from branchwork.runtime.grammar.leaves import Followed, Json, Machine, Rows, Words, byte_vocabulary
from branchwork.runtime.grammar.matcher import Closed, Grammar, Matcher, Report, Row
from branchwork.runtime.grammar.recipe import (
    DfaRecipe,
    LlgRecipe,
    Recipe,
    Tokens,
    XgrRecipe,
    follows_parts,
    leaf_key,
)
from branchwork.runtime.grammar.vocabulary import Vocabulary

_FORMAT = "3"  # of recipes: raise it when what they hold changes its meaning
_FILLED = 100  # masks of states near the start that are made before anybody asks
_LLG_BYTES = 1 << 20  # a guess at what a compiled llguidance grammar holds, next to its text


@cache
def versions() -> bytes:
    """What made the recipes: they are not used by anything else."""
    names = ("branchwork", "outlines-core", "llguidance", "interegular", "xgrammar")
    return " ".join([_FORMAT, *(f"{name}={_version(name)}" for name in names)]).encode()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def prepare(vocabulary: Vocabulary) -> None:
    """Build the engines' forms of the vocabulary. Takes seconds for a large one."""
    llg.prepare(vocabulary)
    for name in ("trie", "ordinary_mask", "eos_mask", "fingerprint"):
        getattr(vocabulary, name)  # made at the first look


def xgrammar_may(constraint: Constraint, error: ConstraintError) -> bool:
    """Whether xgrammar is worth a try after llguidance refused. What is wrong in itself, also a schema that nothing
    satisfies, stays refused, and so does a reference that leads out of the schema: xgrammar would take it for anything.
    """
    if not isinstance(constraint, JsonSchema) or constraint.strict or not _version("xgrammar"):
        return False
    outside = isinstance(error, Unsupported) and ("reference" in error.construct or "$" in error.construct)
    return not outside and not isinstance(error, Invalid)


def size(recipe: Recipe) -> int:
    """About how many bytes its grammar takes."""
    leaves = sum(map(len, recipe.leaves.values()))
    match recipe:
        case DfaRecipe(table):
            return leaves + 1024 * int.from_bytes(table[:4], "little")  # rows of 256 int32
        case XgrRecipe(prepared):
            return leaves + len(prepared)
    return leaves + _LLG_BYTES


def tokens(vocabulary: Vocabulary) -> Tokens:
    lengths = np.fromiter(map(len, vocabulary.tokens), np.int32, vocabulary.size)
    return Tokens(b"".join(vocabulary.tokens), lengths.tobytes(), vocabulary.eos)


def realise(recipe: Recipe, constraint: Constraint, vocabulary: Vocabulary, masks: walk.Masks) -> Grammar:
    """The engine's own grammar. masks: where those of automata are kept. Raises ConstraintError."""
    match recipe:
        case DfaRecipe(table):
            found = dfa.Table.from_bytes(table)
            return dfa.DfaGrammar(found, vocabulary, Report("dfa", states=len(found)), masks)
        case LlgRecipe(assembly):
            return llg.LlgGrammar(llg.decode_assembly(assembly), vocabulary)
        case XgrRecipe(prepared):
            return xgr.load(prepared, constraint, vocabulary)


def finish(
    grammar: Grammar, recipe: Recipe, constraint: Constraint, vocabulary: Vocabulary, seconds: float
) -> Compiled:
    """With the time it took in its report, and matchers that tell captures when it has any."""
    report = msgspec.structs.replace(grammar.report, seconds=seconds)
    program = None
    if capture_names(constraint):
        program = Program(constraint if follows_parts(constraint) else _outline(constraint), _Leaves(recipe.leaves))
    return Compiled(grammar, report, program, vocabulary.tokens)


def _outline(constraint: Constraint) -> Constraint:
    """Captures of the whole text around anything: what is inside them need not be followed."""
    return Capture(constraint.name, _outline(constraint.part)) if isinstance(constraint, Capture) else Free()


class _Leaves:
    """The machine for a leaf: its table, or else what follows its extent well enough (JSON), or llguidance."""

    def __init__(self, tables: dict[bytes, bytes]) -> None:
        self.tables = tables

    def __call__(self, leaf: Constraint) -> Machine:
        table = self.tables.get(leaf_key(leaf))
        if table is not None:
            found = dfa.Table.from_bytes(table)
            return Rows(found.transitions, found.accepting)
        if isinstance(leaf, JsonSchema):
            return Json()
        if isinstance(leaf, Choice):
            return Words([option.encode() for option in leaf.options])
        return Followed(llg.compile_llguidance(leaf, byte_vocabulary()))


class Compiled:
    """An engine's grammar as compile() hands it out; see matcher.Grammar. tokens: the bytes of each."""

    def __init__(self, inner: Grammar, report: Report, program: Program | None, tokens: Sequence[bytes]) -> None:
        self.inner, self.report, self.program, self.tokens = inner, report, program, tokens

    def start(self) -> Matcher:
        matcher = self.inner.start()
        return matcher if self.program is None else CapturingMatcher(matcher, Tracker(self.program), self.tokens)

    def validate_text(self, text: str) -> str:
        return self.inner.validate_text(text) if self.report.loose else ""

    def fill(self, more: Callable[[], bool]) -> None:
        """Prepare masks that are likely to be needed first."""
        if isinstance(self.inner, dfa.DfaGrammar):
            self.inner.fill(_FILLED, more)

    def device_table(self) -> dict[str, Any] | None:
        return self.inner.device_table()


class CapturingMatcher:
    """A matcher that tells captures. The tracker is behind: it reads what was accepted when it is asked for captures,
    so that tokens accepted since (and those of drafts) can be undone."""

    __slots__ = ("_inner", "_tokens", "_tracker", "_unread", "error")

    def __init__(self, inner: Matcher, tracker: Tracker, tokens: Sequence[bytes]) -> None:
        self._inner, self._tracker, self._tokens = inner, tracker, tokens
        self._unread: list[int] = []
        self.error = inner.error or tracker.error

    def mask_into(self, row: Row) -> None:
        self._inner.mask_into(row)
        self.error = self._inner.error or self.error
        if self._tracker.error:
            row.fill(0)

    def accept(self, tokens: Sequence[int]) -> int:
        if self._tracker.error:
            return 0
        taken = self._inner.accept(tokens)
        self._unread += tokens[:taken]
        self.error = self._inner.error or self.error
        return taken

    def validate(self, tokens: Sequence[int]) -> int:
        return self._inner.validate(tokens)

    def rollback(self, count: int) -> None:
        if count > len(self._unread):
            raise ValueError(f"cannot undo {count} tokens: captures were asked for {len(self._unread)} tokens ago")
        self._inner.rollback(count)
        self.error = self._inner.error or self._tracker.error
        del self._unread[len(self._unread) - count :]

    def fork(self) -> CapturingMatcher:
        twin = CapturingMatcher(self._inner.fork(), self._tracker.copy(), self._tokens)
        twin._unread = list(self._unread)
        return twin

    def forced(self) -> bytes:
        return self._inner.forced()

    def jump(self, tail: Sequence[int]) -> list[int]:
        return self._inner.jump(tail)

    @property
    def is_accepting(self) -> bool:
        return self._inner.is_accepting

    @property
    def is_done(self) -> bool:
        return self._inner.is_done

    def closed(self) -> list[Closed]:
        self._read()
        return self._tracker.closed()

    def finish(self) -> list[Closed]:
        self._read()
        return self._tracker.finish()

    def _read(self) -> None:
        self._tracker.feed(b"".join(self._tokens[token] for token in self._unread if token < len(self._tokens)))
        self._unread.clear()
        self.error = self.error or self._tracker.error
