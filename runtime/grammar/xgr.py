"""xgrammar, an optional extra: the last resort for a JSON Schema or GBNF that llguidance refuses.

Knows: xgrammar's compiler (in a worker) and matcher. Must not know: tensors, requests, processes, other engines.

xgrammar loosens what it cannot enforce and says so on stderr only, so its report is always loose: the finished text is
validated. Its vocabulary is made of raw bytes with special tokens blank; made the usual way it lets them into strings.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from branchwork.lang.constraint import Constraint, Grammar, Invalid, JsonSchema, Unsupported
from branchwork.runtime.grammar.matcher import Closed, Report, Row
from branchwork.runtime.grammar.schema import complaint
from branchwork.runtime.grammar.vocabulary import Vocabulary

_NOTE = "xgrammar may enforce less than the schema says"


def _information(tokens: list[bytes], eos: Sequence[int]) -> Any:
    try:
        import xgrammar
    except ImportError:
        raise Unsupported("this constraint", hint="llguidance refuses it; the package xgrammar may take it") from None
    kind = xgrammar.VocabType.RAW
    return xgrammar.TokenizerInfo(tokens, vocab_type=kind, vocab_size=len(tokens), stop_token_ids=list(eos))


@lru_cache(maxsize=2)
def _compiler(joined: bytes, lengths: bytes, eos: tuple[int, ...]) -> Any:
    import xgrammar

    ends = np.cumsum(np.frombuffer(lengths, np.int32)).tolist()
    information = _information([joined[first:last] for first, last in zip([0, *ends], ends)], eos)
    return xgrammar.GrammarCompiler(information, max_threads=1, cache_enabled=False)


_informations: dict[str, Any] = {}
_building = threading.Lock()


def _known(vocabulary: Vocabulary) -> Any:
    with _building:
        if vocabulary.fingerprint not in _informations:
            _informations[vocabulary.fingerprint] = _information(vocabulary.tokens, vocabulary.eos)
        return _informations[vocabulary.fingerprint]


class XgrMatcher:
    """A cursor; see matcher.Matcher."""

    __slots__ = ("_count", "_ended", "_grammar", "_inner", "error")

    def __init__(self, grammar: XgrGrammar, inner: Any, count: int = 0, ended: bool = False) -> None:
        self._grammar, self._inner, self._count, self._ended, self.error = grammar, inner, count, ended, ""

    def mask_into(self, row: Row) -> None:
        row.fill(0)
        if self._ended:
            return
        vocabulary = self._grammar.vocabulary
        if not self._inner.is_terminated():
            words = self._grammar.scratch()
            self._inner.fill_next_token_bitmask(words)
            np.bitwise_and(words[0], vocabulary.ordinary_mask, out=row[: vocabulary.words])
        if self.is_accepting:
            np.bitwise_or(row[: vocabulary.words], vocabulary.eos_mask, out=row[: vocabulary.words])

    def accept(self, tokens: Sequence[int]) -> int:
        if self._ended:
            return 0
        spelled, taken = self._grammar.vocabulary.tokens, 0
        for token in tokens:
            if token in self._grammar.vocabulary.eos and self.is_accepting:
                self._ended = True
                self._count += 1
                return taken + 1
            if not 0 <= token < len(spelled) or not spelled[token] or not self._inner.accept_token(token):
                break
            taken += 1
            self._count += 1
        return taken

    def validate(self, tokens: Sequence[int]) -> int:
        return self.fork().accept(tokens)

    def rollback(self, count: int) -> None:
        if not 0 <= count <= self._count:
            raise ValueError(f"cannot undo {count} tokens: {self._count} have been accepted")
        if count > self._ended:
            self._inner.rollback(count - self._ended)
        if count:
            self._ended = False
        self._count -= count

    def fork(self) -> XgrMatcher:
        return XgrMatcher(self._grammar, self._inner.fork(), self._count, self._ended)

    def forced(self) -> bytes:
        if self._ended or self._inner.is_terminated() or self.is_accepting:
            return b""
        return str(self._inner.find_jump_forward_string()).encode()

    def jump(self, tail: Sequence[int]) -> list[int]:
        return []  # what may follow the forced text is not to be had, so where to cut it neither

    @property
    def is_accepting(self) -> bool:
        return not self._ended and bool(self._inner.is_completed())

    @property
    def is_done(self) -> bool:
        return self._ended or bool(self._inner.is_terminated())

    def closed(self) -> list[Closed]:
        return []

    def finish(self) -> list[Closed]:
        return []


class XgrGrammar:
    """A compiled constraint; see matcher.Grammar."""

    def __init__(self, compiled: Any, vocabulary: Vocabulary, schema: str) -> None:
        self.compiled, self.vocabulary, self._schema = compiled, vocabulary, schema
        self.report = Report("xgrammar", (_NOTE,) if schema else (), bool(schema))

    def scratch(self) -> Any:
        return np.zeros((1, self.vocabulary.words), np.int32)

    def start(self) -> XgrMatcher:
        import xgrammar

        return XgrMatcher(self, xgrammar.GrammarMatcher(self.compiled, terminate_without_stop_token=True))

    def validate_text(self, text: str) -> str:
        return complaint(self._schema, text) if self._schema else ""

    def device_table(self) -> dict[str, Any] | None:
        return None


def prepare(constraint: Constraint, joined: bytes, lengths: bytes, eos: tuple[int, ...]) -> bytes:
    """A JSON Schema or a GBNF grammar alone, compiled for the tokens of a vocabulary (see recipe.Tokens). Takes any
    amount of time and memory. Raises Invalid for what xgrammar refuses, Unsupported for the rest."""
    flexible = isinstance(constraint, JsonSchema) and constraint.whitespace == "flexible"
    _information([b"a"], ())  # says so when there is no xgrammar
    compiler = _compiler(joined, lengths, eos)
    try:
        if isinstance(constraint, JsonSchema):
            separators = {"compact": (",", ":"), "spaced": (", ", ": ")}.get(constraint.whitespace)
            compiled = compiler.compile_json_schema(
                constraint.schema, any_whitespace=flexible, separators=separators, strict_mode=False
            )
        elif isinstance(constraint, Grammar) and constraint.syntax == "gbnf":
            compiled = compiler.compile_grammar(constraint.text)
        else:
            raise Unsupported(f"{type(constraint).__name__} with xgrammar")
    except RuntimeError as error:
        raise Invalid(f"xgrammar: {str(error).splitlines()[0]}") from None
    return str(compiled.serialize_json()).encode()


def load(prepared: bytes, constraint: Constraint, vocabulary: Vocabulary) -> XgrGrammar:
    """What `prepare` made for the tokens of this vocabulary."""
    information = _known(vocabulary)
    import xgrammar

    compiled = xgrammar.CompiledGrammar.deserialize_json(prepared.decode(), information)
    return XgrGrammar(compiled, vocabulary, constraint.schema if isinstance(constraint, JsonSchema) else "")
