"""A text as it comes, without what was said already at its front and from its first stop on.

Knows: texts. Must not know: APIs.
"""

from __future__ import annotations


class Trim:
    """lead: taken off the front of the text where it is repeated. stops: the first of them ends it and is cut off.

    `matched`: the stop that was found.
    """

    def __init__(self, lead: str = "", stops: tuple[str, ...] = ()) -> None:
        self.matched: str | None = None
        self._lead, self._stops = lead, stops
        self._held = ""

    def feed(self, text: str) -> str:
        """The part of the text that is certain now."""
        if self.matched is not None:
            return ""
        self._held += text
        if self._lead:
            if self._lead.startswith(self._held) and self._held != self._lead:
                return ""
            self._held = self._held.removeprefix(self._lead)
            self._lead = ""
        found = [(self._held.find(stop), -len(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            at, _, self.matched = min(found)
            certain, self._held = self._held[:at], ""
            return certain
        keep = max((self._begun(stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def end(self) -> str:
        """What was held back until now, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _begun(self, stop: str) -> int:
        """How many characters at the end could be the beginning of a stop."""
        return next((size for size in range(len(stop) - 1, 0, -1) if self._held.endswith(stop[:size])), 0)
