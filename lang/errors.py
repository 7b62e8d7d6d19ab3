"""The errors a user of the language sees. Every message says what happened, where, and what to do.

Knows: nothing else. Must not know: how any of it came about.
"""

from __future__ import annotations

from functools import partial
from typing import Any


class BranchworkError(Exception):
    """Base of all errors of this package."""


class ProgramError(BranchworkError):
    """A value of a program is not there and never will be.

    code: short and stable (unknown_variable, branch_failed, context_length, cancelled, runtime_lost, ...).
    node: number of the node that failed, None when there is none. source: "file:line" that laid it, or "".
    cause: the error of the node where it began, when that is another one. transcript: text of its branch so far.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        node: int | None = None,
        source: str = "",
        cause: ProgramError | None = None,
        transcript: str = "",
    ) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.node, self.source = node, source
        self.cause, self.transcript = cause, transcript

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it reaches another process whole, which takes exceptions apart into their arguments."""
        rest: dict[str, Any] = {
            "node": self.node,
            "source": self.source,
            "cause": self.cause,
            "transcript": self.transcript,
        }
        return partial(ProgramError, **rest), (self.code, self.message)

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.message}" + (f" [{self.source}]" if self.source else "")]
        if self.cause is not None:
            lines.append(f"  it began at {self.cause.source}: {self.cause.code}: {self.cause.message}")
        if self.transcript:
            shown = self.transcript if len(self.transcript) <= 300 else "..." + self.transcript[-300:]
            lines.append(f"  transcript so far: {shown!r}")
        return "\n".join(lines)


class BackendError(BranchworkError, RuntimeError):
    """Something between this process and whoever executes programs."""


class CapabilityError(BackendError):
    """This backend cannot execute a node as it is written; raised at the line that lays it."""


class RuntimeUnavailable(BackendError):
    """Nobody usable answers at an endpoint."""


class RuntimeStartError(BackendError):
    """A runtime that this process started ended before it was ready."""


class RuntimeLost(BackendError):
    """The runtime was there and is gone."""


class Refused(BackendError):
    """The runtime, or this client before it, refuses to talk. code is short and stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.reason = code, message

    def __reduce__(self) -> tuple[Any, ...]:
        return Refused, (self.code, self.reason)
