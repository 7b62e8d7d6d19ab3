"""Every line that needs a GPU's driver: free memory, pinned buffers and their events, captured work.

Knows: torch.cuda, which AMD's builds of torch answer to as well. Must not know: models, plans, what is captured.
"""

from __future__ import annotations

import torch


def free_memory(device: torch.device) -> int:
    """Bytes that no process holds, and those that torch's allocator holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
