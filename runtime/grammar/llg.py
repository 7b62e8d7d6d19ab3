"""Constraints over llguidance: the engine for JSON Schema, context-free grammars, and turns that hold any of them.

Knows: llguidance's matcher and its habits, token ids, mask words. Must not know: tensors, requests, other engines.

llguidance's own mask is never trusted for the end: special tokens are masked off and end tokens set from is_accepting,
because the mask of a matcher that broke is "end of text only". Each compiled grammar keeps one matcher that is never
moved; cursors are deep copies of it (1-20 us) and share its lexer, which gets warmer with use.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from branchwork.lang.constraint import Constraint
from branchwork.runtime.grammar.assemble import Assembly, assemble, refusal
from branchwork.runtime.grammar.jump import chop, first_extension
from branchwork.runtime.grammar.matcher import Closed, Report, Row
from branchwork.runtime.grammar.schema import complaint
from branchwork.runtime.grammar.vocabulary import Vocabulary

FUEL = 50_000_000  # steps that building the lexer may take; the default died in mid-text on a real schema
_STEP_FUEL = 5_000_000
_STATES = 5_000_000
_tokenizers: dict[str, LLTokenizer] = {}
_singles: dict[str, dict[int, int]] = {}
_building = threading.Lock()


class _Encoder:
    """A vocabulary as llguidance wants one: special tokens are blank, so no text can spell them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = list(vocabulary.tokens)
        self.eos_token_id = vocabulary.eos[0] if vocabulary.eos else len(self.tokens)
        if not vocabulary.eos:  # llguidance must have one: an id past the end, which no mask row has
            self.tokens.append(b"")
        self.tokens[self.eos_token_id] = b"<eos>"
        self.bos_token_id = None
        self.special_token_ids = [i for i, token in enumerate(self.tokens) if not token or i == self.eos_token_id]
        self._encode = vocabulary.encode

    def __call__(self, text: bytes) -> list[int]:
        return list(self._encode(text))


def prepare(vocabulary: Vocabulary) -> LLTokenizer:
    """llguidance's form of the vocabulary, built once per fingerprint.

    Takes 0.5 s at 50k tokens and 1-4 s at 152k, and holds the GIL: call it when a process starts, not when it serves.
    """
    with _building:
        found = _tokenizers.get(vocabulary.fingerprint)
        if found is None:
            encoder = _Encoder(vocabulary)
            found = LLTokenizer(TokenizerWrapper(encoder), n_vocab=len(encoder.tokens))
            _tokenizers[vocabulary.fingerprint] = found
    return found


def single_bytes(vocabulary: Vocabulary) -> dict[int, int]:
    """The token of each byte that has one of its own."""
    found = _singles.get(vocabulary.fingerprint)
    if found is None:
        found = {token[0]: number for number, token in enumerate(vocabulary.tokens) if len(token) == 1}
        _singles[vocabulary.fingerprint] = found
    return found


def limits(fuel: int = FUEL) -> LLParserLimits:
    return LLParserLimits(
        initial_lexer_fuel=fuel,
        step_lexer_fuel=_STEP_FUEL,
        max_lexer_states=_STATES,
        step_max_items=1_000_000,
        max_items_in_row=20_000,
        verbose_errors=False,
    )


class _Scratch(threading.local):
    """Where llguidance writes a mask, one for each thread: its address costs as much to ask for as a mask to fill."""

    def __init__(self, written: int, words: int) -> None:
        whole = np.zeros(max(written, words), np.int32)
        self.words = whole[:words]
        self.pointer, self.size = whole.ctypes.data, 4 * written


class LlgMatcher:
    """A cursor; see matcher.Matcher."""

    __slots__ = ("_count", "_ended", "_grammar", "_inner", "error")

    def __init__(self, grammar: LlgGrammar, inner: LLMatcher, count: int = 0, ended: bool = False) -> None:
        self._grammar, self._inner, self._count, self._ended = grammar, inner, count, ended
        self.error = ""

    def mask_into(self, row: Row) -> None:
        inner, grammar = self._inner, self._grammar
        if self.error or self._ended or inner.is_stopped():
            row.fill(0)
        else:
            scratch = grammar.scratch
            inner.unsafe_compute_mask_ptr(scratch.pointer, scratch.size)
            np.bitwise_and(scratch.words, grammar.ordinary, out=row[: grammar.words])
            if len(row) > grammar.words:
                row[grammar.words :] = 0
        if self._broken():
            row.fill(0)
        elif not self._ended and inner.is_accepting():
            for word, bit in grammar.ends:
                row[word] |= bit

    def accept(self, tokens: Sequence[int]) -> int:
        if self.error or self._ended:
            return 0
        run = self._ordinary(tokens)
        taken = self._inner.try_consume_tokens(run) if run and not self._inner.is_stopped() else 0
        self._count += taken
        if self._broken() or taken < len(run):
            return taken
        if taken < len(tokens) and tokens[taken] in self._grammar.vocabulary.eos and self._inner.is_accepting():
            self._ended = True
            self._count += 1
            return taken + 1
        return taken

    def validate(self, tokens: Sequence[int]) -> int:
        if self.error or self._ended:
            return 0
        run = self._ordinary(tokens)
        taken = self._inner.validate_tokens(run) if run and not self._inner.is_stopped() else 0
        if taken < len(run) or taken == len(tokens) or tokens[taken] not in self._grammar.vocabulary.eos:
            return taken
        return self.fork().accept(tokens)

    def rollback(self, count: int) -> None:
        if not 0 <= count <= self._count:
            raise ValueError(f"cannot undo {count} tokens: {self._count} have been accepted")
        if count == 0:
            return
        inner = count - self._ended
        if inner and not self._inner.rollback(inner):
            raise ValueError(f"cannot undo {count} tokens: {self._inner.get_error().splitlines()[0]}")
        self._ended = False
        self._count -= count

    def fork(self) -> LlgMatcher:
        twin = LlgMatcher(self._grammar, self._inner.deep_copy(), self._count, self._ended)
        twin.error = self.error
        return twin

    def forced(self) -> bytes:
        if self.error or self._ended or self._inner.is_stopped() or self._inner.is_accepting():
            return b""
        return bytes(self._inner.compute_ff_bytes())

    def jump(self, tail: Sequence[int]) -> list[int]:
        forced = self.forced()
        if not forced:
            return []
        vocabulary = self._grammar.vocabulary
        behind, single = self._inner.deep_copy(), self._grammar.single
        if not all(value in single for value in forced) or not behind.consume_tokens([single[x] for x in forced]):
            return []

        def allows(rest: bytes) -> bool:
            if not all(value in single for value in rest):
                return True
            return bool(behind.validate_tokens([single[value] for value in rest]) == len(rest))

        tokens = chop(vocabulary, tail, forced, lambda text: first_extension(vocabulary.trie, text, allows))
        return tokens if self.validate(tokens) == len(tokens) else []

    @property
    def is_accepting(self) -> bool:
        return not self.error and not self._ended and bool(self._inner.is_accepting())

    @property
    def is_done(self) -> bool:
        return self._ended or (not self.error and bool(self._inner.is_stopped()))

    def closed(self) -> list[Closed]:
        return []

    def finish(self) -> list[Closed]:
        return []

    def _ordinary(self, tokens: Sequence[int]) -> list[int]:
        """The tokens before the first that is special or not in the vocabulary."""
        spelled = self._grammar.vocabulary.tokens
        run: list[int] = []
        for token in tokens:
            if not 0 <= token < len(spelled) or not spelled[token] or token in self._grammar.vocabulary.eos:
                break
            run.append(token)
        return run

    def _broken(self) -> bool:
        if self._inner.is_error():
            self.error = (self._inner.get_error().strip() or "llguidance stopped").splitlines()[0]
        return bool(self.error)


class LlgGrammar:
    """A compiled constraint; see matcher.Grammar. It is rebuilt from `assembly` where it cannot travel itself."""

    def __init__(self, assembly: Assembly, vocabulary: Vocabulary, fuel: int = FUEL) -> None:
        """Raises Invalid, Unsupported, TooBig: what llguidance says against the grammar."""
        began = time.perf_counter()
        self.assembly, self.vocabulary = assembly, vocabulary
        self._prototype = LLMatcher(prepare(vocabulary), assembly.text, log_level=0, limits=limits(fuel))
        if self._prototype.is_error():
            raise refusal(self._prototype.get_error(), assembly.text)
        unnamed = tuple(f"llguidance: {warning}" for warning in self._prototype.get_grammar_warnings())
        self.report = Report(
            "llguidance",
            assembly.approximations + unnamed,
            assembly.loose or bool(unnamed),
            assembly.seconds + time.perf_counter() - began,
        )
        self._prototype.compute_bitmask()  # the first mask warms the lexer
        self.words = vocabulary.words
        self.scratch = _Scratch(-(-prepare(vocabulary).vocab_size // 32), self.words)
        self.ordinary = vocabulary.ordinary_mask
        if self._prototype.is_error():
            raise refusal(self._prototype.get_error(), assembly.text)
        self.ends = [(int(word), vocabulary.eos_mask[word]) for word in np.flatnonzero(vocabulary.eos_mask)]
        self.single = single_bytes(vocabulary)

    def start(self) -> LlgMatcher:
        return LlgMatcher(self, self._prototype.deep_copy())

    def validate_text(self, text: str) -> str:
        """Looks for the JSON values where the grammar has them, and at each with its schema as it was written."""
        leaves = self.assembly.leaves
        if not leaves or not self.report.loose:
            return ""
        if self.assembly.whole:
            return complaint(leaves[0].schema, text)
        cursor = self._prototype.deep_copy()
        tokens = prepare(self.vocabulary).greedy_tokenize(text)
        if cursor.try_consume_tokens(tokens) < len(tokens):
            return "the text does not follow the grammar"
        by_name = {leaf.name: leaf.schema for leaf in leaves}
        for name, found in cursor.get_captures():
            if name in by_name and (why := complaint(by_name[name], bytes(found).decode("utf-8", "replace"))):
                return why
        return ""

    def device_table(self) -> dict[str, Any] | None:
        return None


def compile_llguidance(
    constraint: Constraint, vocabulary: Vocabulary, *, strict: bool = False, fuel: int = FUEL
) -> LlgGrammar:
    """Any constraint as one llguidance grammar. strict: raise Unsupported rather than approximate anything."""
    assembly = assemble(constraint, strict=strict)
    return LlgGrammar(assembly, vocabulary, fuel)


def encode_assembly(assembly: Assembly) -> bytes:
    """For the disk cache and for workers."""
    return msgspec.json.encode(assembly)


def decode_assembly(data: bytes) -> Assembly:
    return msgspec.json.decode(data, type=Assembly)
