"""Every line that needs a GPU's driver: free memory, pinned buffers and marks, captured work.

Knows: torch.cuda, which AMD's builds of torch answer to as well. Must not know: models, plans, what is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from branchwork.runtime.execution.driver import Recorded


def free_memory(device: torch.device) -> int:
    """Bytes that no process holds, and those that torch's allocator holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class CudaDriver:
    """A GPU's current stream. All that is recorded shares one pool of memory, as nothing recorded runs at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def buffer(self, size: int) -> Tensor:
        """See Driver: pinned, so that a copy from it does not wait."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Callable[[], None]:
        """See Driver."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event.synchronize

    def record(self, body: Callable[[], None], room: int) -> Recorded:
        """See Driver: a CUDA or HIP graph. Waits for the device.

        Other threads may use the device meanwhile ("thread_local"). Unused memory is given back before it is counted:
        while work is captured the allocator cannot do that, and running out of memory then can spoil more than the
        capture.
        """
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before, _ = torch.cuda.mem_get_info()
            if before < room:
                raise torch.OutOfMemoryError(f"{before >> 20} MiB are free, and {room >> 20} may be needed")
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    body()
            finally:
                torch.cuda.set_stream(stream)  # a capture that ends in an error leaves its own
            after, _ = torch.cuda.mem_get_info()
        return Recorded(graph.replay, max(0, before - after))
