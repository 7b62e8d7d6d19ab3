"""What feeding and capturing need of a device: memory that copies leave from, marks in its work, recorded work.

Knows: torch. Must not know: which device it is (cuda.py is the one that matters), models, plans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Recorded(NamedTuple):
    """Work that can be done again. bytes: what keeping it costs the device."""

    replay: Callable[[], None]
    bytes: int


class Driver(Protocol):
    """A device as its host sees it: work is queued, and done later in that order."""

    def buffer(self, size: int) -> Tensor:
        """uint8 [size] on the host; a copy from it is queued, too."""

    def mark(self) -> Callable[[], None]:
        """A function that waits until all that is queued by now is done."""

    def record(self, body: Callable[[], None], room: int) -> Recorded:
        """What `body` queues, for replay; it is not done now. Every tensor it reads or writes stays where it is.

        Raises RuntimeError where that fails; torch.OutOfMemoryError, before it begins, unless `room` bytes are free.
        """


class PlainDriver:
    """A CPU: nothing is queued. Recorded work is the body, run again."""

    def buffer(self, size: int) -> Tensor:
        """See Driver."""
        return torch.empty(size, dtype=torch.uint8)

    def mark(self) -> Callable[[], None]:
        """See Driver."""
        return _done

    def record(self, body: Callable[[], None], room: int) -> Recorded:
        """See Driver."""
        return Recorded(body, 0)


def _done() -> None:
    """Nothing is under way."""
