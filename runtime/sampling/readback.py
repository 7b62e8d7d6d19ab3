"""Results on their way from a device: the copy starts at once, and whoever reads waits for it alone.

Knows: tensors, events. Must not know: what is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """A tensor that is being copied to the host. A CPU's own tensors are there already."""

    __slots__ = ("_arrived", "_host")

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> Tensor:
        """The tensor on the host; waits for what the device was given before, no longer."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host
