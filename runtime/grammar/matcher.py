"""The cursor that every constraint engine offers, and the compiled grammar it starts from.

Knows: token ids, bytes, int32 mask words. Must not know: requests, tensors, which engine stands behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.int32]  # ceil(vocabulary / 32) words; bit i % 32 of word i // 32 stands for token i


class Report(msgspec.Struct, frozen=True):
    """How a constraint is enforced.

    backend: dfa | llguidance | xgrammar. approximations: in words, everything that is enforced more loosely (the text
    may break it) or more strictly (some right texts cannot be written) than written; empty when exact. loose: whether
    any of them lets wrong text through, so that a finished text has to be validated. seconds: of compiling, 0.0 when
    it came from a cache. states: of a DFA, 0 otherwise.
    """

    backend: str
    approximations: tuple[str, ...] = ()
    loose: bool = False
    seconds: float = 0.0
    states: int = 0


class Closed(msgspec.Struct, frozen=True, array_like=True):
    """A capture's text is bytes first .. last-1 of what the matcher has accepted."""

    name: str
    first: int
    last: int


class Matcher(Protocol):
    """A position in a text under construction. Not thread-safe; different matchers may be used by different threads.

    Tokens that are refused change nothing. `error` is "" or why the engine broke in mid-text: from then on nothing is
    accepted and masks are empty (never EOS).
    """

    error: str

    def mask_into(self, row: Row) -> None:
        """Overwrite `row` with the tokens that may come next. Special tokens are never among them, except the end
        tokens where the text may end."""

    def accept(self, tokens: Sequence[int]) -> int:
        """Take tokens in order; how many were allowed. Stops before the first that is not. An end token is allowed
        where the text may end, and then nothing more is."""

    def validate(self, tokens: Sequence[int]) -> int:
        """What accept would return, without moving."""

    def rollback(self, count: int) -> None:
        """Undo the last `count` accepted tokens. Raises ValueError when there are not so many."""

    def fork(self) -> Matcher:
        """An independent cursor at the same place."""

    def forced(self) -> bytes:
        """The bytes that must come next: as far as there is only one way on. b"" when the text may end here."""

    def jump(self, tail: Sequence[int]) -> list[int]:
        """Tokens that may be appended without asking the model, [] for none. Does not move.

        tail: the last committed ids (prompt and answer), for the tokenization's sake. They are canonical: encoding
        the bytes of tail and forced text gives tail and then these. The rest of the forced text stays in the grammar.
        """

    @property
    def is_accepting(self) -> bool:
        """The text may end here."""

    @property
    def is_done(self) -> bool:
        """The text has ended, by an end token or because nothing may follow."""

    def closed(self) -> list[Closed]:
        """Captures whose extent has become certain since the last call, in order of their ends. Never undone by a
        rollback: ask only for accepted text that stays."""

    def finish(self) -> list[Closed]:
        """The text ends here: all captures, including those that `closed` gave before. Open ones end here."""


class Grammar(Protocol):
    """A compiled constraint: immutable, shared by any number of matchers and threads."""

    report: Report

    def start(self) -> Matcher: ...

    def validate_text(self, text: str) -> str:
        """ "" when a finished text obeys the constraint as written (also what could only be approximated), else why
        not. Only JSON Schema leaves are looked at; cheap when nothing was approximated."""

    def device_table(self) -> dict[str, Any] | None:
        """For a kernel: {"transitions": int32 [states, 256], "accepting": bool [states]} of a DFA, else None."""
