"""Texts whose vectors somebody inside the gateway waits for.

Knows: the wire. Must not know: programs, sockets, tokenizers, what vectors are for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from branchwork.runtime import wire


class EmbedFailed(Exception):
    """A text's vector will not come; code as of wire.Failed. index: which of the texts it is."""

    def __init__(self, code: str, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.code, self.message, self.index = code, message, index


class _Asked(NamedTuple):
    message: wire.Embed
    outcome: asyncio.Future[wire.Embedded | wire.Failed]


class Embeds:
    """send: to the engine."""

    def __init__(self, send: Callable[[wire.ToEngine], None]) -> None:
        self._send = send
        self._asked: dict[int, _Asked] = {}

    def __len__(self) -> int:
        return len(self._asked)

    async def ask(self, messages: Sequence[wire.Embed]) -> list[wire.Embedded]:
        """The vectors of all of them, in their order. Leaving early cancels what is under way. Raises EmbedFailed as
        soon as one of them fails."""
        loop = asyncio.get_running_loop()
        asked = [_Asked(message, loop.create_future()) for message in messages]
        found: list[wire.Embedded] = []
        try:
            for one in asked:
                self._asked[one.message.id] = one
                self._send(one.message)
            for index, one in enumerate(asked):
                outcome = await one.outcome
                if isinstance(outcome, wire.Failed):
                    raise EmbedFailed(outcome.code, outcome.message, index)
                found.append(outcome)
        finally:
            for one in asked:
                came = one.outcome.done() and not one.outcome.cancelled()  # what is awaited when we leave is cancelled
                if self._asked.pop(one.message.id, None) is not None and not came:
                    self._send(wire.Cancel(one.message.id))
        return found

    def hear(self, event: wire.FromEngine) -> bool:
        """Take an engine's event; whether it was for one of these."""
        if not isinstance(event, (wire.Embedded, wire.Failed)) or event.id not in self._asked:
            return False
        outcome = self._asked[event.id].outcome
        if not outcome.done():
            outcome.set_result(event)
        return True

    def restart(self) -> list[wire.ToEngine]:
        """What a new engine has to be asked again."""
        return [one.message for one in self._asked.values() if not one.outcome.done()]

    def lose(self, message: str) -> None:
        """The engine is gone for good: whoever waits hears of it."""
        for number, one in self._asked.items():
            if not one.outcome.done():
                one.outcome.set_result(wire.Failed(number, "runtime_lost", message))
