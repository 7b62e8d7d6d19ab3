"""What a program may use, and how much of it is gone.

Knows: tokens, seconds. Must not know: who counts them, who stops the program.
"""

from __future__ import annotations

import numbers
import time

import msgspec

from branchwork.lang.calls import Call
from branchwork.lang.protocol import Budget

SLACK = 1e-3 + time.get_clock_info("monotonic").resolution  # seconds that a timer may come early


class Spending:
    """One program's account, from its opening on."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._since = time.monotonic()
        self.tokens = 0

    def spend(self, tokens: int) -> None:
        self.tokens += tokens

    def admit(self, call: Call) -> Call | None:
        """The call with no more tokens than are left, for its samples together; None when there are none.

        A sample gets one at least. A select generates nothing.
        """
        if self._budget.tokens is None or call.kind != "gen":
            return call
        left = self._budget.tokens - self.tokens
        if left <= 0:
            return None
        params = call.params
        most = min(params.max_tokens, max(1, left // params.n))
        capped = msgspec.structs.replace(params, max_tokens=most, min_tokens=min(params.min_tokens, most))
        return msgspec.structs.replace(call, params=capped)

    def exceeded(self) -> str:
        """Why the program has to stop, "" while it need not: the limit and the figure."""
        used = time.monotonic() - self._since
        if self._budget.tokens is not None and self.tokens > self._budget.tokens:
            return self.spent()
        if self._budget.seconds is not None and used >= self._budget.seconds - SLACK:
            return f"the program ran {used:.2f} s, its budget is {self._budget.seconds:g} s"
        return ""

    def spent(self) -> str:
        return f"the program generated {self.tokens} tokens, its budget is {self._budget.tokens}"


def checked(budget: Budget) -> Budget:
    """Its limits as messages carry them. Raises TypeError for what is no budget, ValueError where it allows nothing."""
    if not isinstance(budget, Budget):
        raise TypeError(f"budget={budget!r} is no Budget; give bw.Budget(tokens=..., seconds=...)")
    tokens, seconds = budget.tokens, budget.seconds
    if not (tokens is None or isinstance(tokens, numbers.Integral)):
        raise TypeError(f"a budget is of a whole number of tokens or None, got {tokens!r}")
    if not (seconds is None or isinstance(seconds, numbers.Real)):
        raise TypeError(f"a budget is of a number of seconds or None, got {seconds!r}")
    for name, limit in (("tokens", tokens), ("seconds", seconds)):
        if limit is not None and not limit > 0:
            raise ValueError(f"a budget of {limit!r} {name} allows nothing; give a positive number or None")
    return Budget(None if tokens is None else int(tokens), None if seconds is None else float(seconds))
