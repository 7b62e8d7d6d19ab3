"""A step's arrays from the host to its device, all in one copy.

Knows: numpy arrays, tensors, a Driver. Must not know: what the arrays mean, plans, models.

    buffer on the host    [ array 0 | array 1 . | array 2 ...  ]   each begins at 16 bytes: kernels count on that
    the same on the device, in one copy; a Sent gives views of it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from branchwork.runtime.execution.driver import Driver

Array = NDArray[Any]
Part = Array | Sequence[Array]  # several are joined

ALIGNED = 16  # bytes
BUFFERS = 3  # in rotation: a step's copy may still be under way while the next one is packed
_TYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64}


class Place(NamedTuple):
    """Where an array lies, in bytes, and what it holds."""

    begin: int
    end: int
    dtype: np.dtype[Any]


class Sent(Sequence[Tensor]):
    """Arrays on the device, in the order in which they were sent: int32 and int64 [n], views of one tensor."""

    def __init__(self, flat: Tensor, places: Sequence[Place]) -> None:
        self._flat = flat
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        begin, end, dtype = self._places[index]
        return self._flat[begin:end].view(_TYPES[dtype])

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


class Sends(Protocol):
    """Brings arrays to where a model computes."""

    def send(self, parts: Sequence[Part]) -> Sequence[Tensor]: ...


class Local:
    """For a model that computes on the host: arrays become tensors where they lie."""

    def send(self, parts: Sequence[Part]) -> list[Tensor]:
        """One tensor a part; what arrives may be written to, and nobody else reads it."""
        return [torch.from_numpy(part if isinstance(part, np.ndarray) else np.concatenate(part)) for part in parts]


class Feed:
    """Packs arrays into a buffer of the driver's and queues its copy; the buffers are used in turn."""

    def __init__(self, driver: Driver, device: torch.device) -> None:
        self._driver = driver
        self._device = device
        self._buffers: list[tuple[Tensor, Array] | None] = [None] * BUFFERS
        self._marks: list[Callable[[], None] | None] = [None] * BUFFERS
        self._turn = 0

    def send(self, parts: Sequence[Part], into: Tensor | None = None, places: Sequence[Place] | None = None) -> Sent:
        """The arrays, int32 and int64, on the device; in the first bytes of `into` where that is given. places: the
        parts' layout, where it is known."""
        places = places or layout(parts)
        size = places[-1].end
        buffer, packed = self._buffer(size)
        for part, (begin, end, dtype) in zip(parts, places, strict=True):
            target = packed[begin:end].view(dtype)
            if isinstance(part, np.ndarray):
                target[:] = part
            else:
                np.concatenate(part, out=target)
        flat = torch.empty(size, dtype=torch.uint8, device=self._device) if into is None else into
        flat[:size].copy_(buffer[:size], non_blocking=True)
        self._marks[self._turn] = self._driver.mark()
        return Sent(flat, places)

    def _buffer(self, size: int) -> tuple[Tensor, Array]:
        """The next buffer, of `size` bytes or more, whose last copy is done; also as numpy sees it."""
        self._turn = (self._turn + 1) % BUFFERS
        mark, held = self._marks[self._turn], self._buffers[self._turn]
        if mark is not None:
            mark()
        if held is None or len(held[0]) < size:
            buffer = self._driver.buffer(max(1 << 16, 1 << (size - 1).bit_length()))
            held = self._buffers[self._turn] = (buffer, buffer.numpy())
        return held


def layout(parts: Sequence[Part]) -> list[Place]:
    """Where each part lies; depends on the lengths of those before it alone."""
    places, end = [], 0
    for part in parts:
        begin = -(-end // ALIGNED) * ALIGNED
        first, count = (part, len(part)) if isinstance(part, np.ndarray) else (part[0], sum(map(len, part)))
        end = begin + count * first.itemsize
        places.append(Place(begin, end, first.dtype))
    return places
