"""How much memory KV pages take and whether it is there.

Knows: sizes, the machine's free memory and its container's limit. Must not know: requests, plans.
"""

from __future__ import annotations

from pathlib import Path

import torch

from branchwork.runtime.cache import kv_pool
from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.config import free_memory as system_free_memory
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.spec import ModelSpec

_CGROUP = Path("/sys/fs/cgroup")


def bytes_per_page(spec: ModelSpec, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one KV page over all layers."""
    a = spec.attention
    return kv_pool.bytes_per_page(spec.layers, a.kv_heads, page_size, a.head_dim, dtype)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; on a CPU no more than the container's limit leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(system_free_memory(), _container_room(_CGROUP))


def allocate(spec: ModelSpec, pages: int, page_size: int, dtype: torch.dtype, device: torch.device) -> KVPool:
    """The pool of a model. Raises LoadError (memory) with both figures when it cannot fit.

    The check comes first because a system that overcommits grants any size and kills the process later.
    """
    wanted = pages * bytes_per_page(spec, page_size, dtype)
    free = free_memory(device)
    a = spec.attention
    try:
        if wanted <= free:
            return KVPool(spec.layers, pages, a.kv_heads, page_size, a.head_dim, dtype, device)
    except RuntimeError as error:  # torch's allocators raise nothing narrower on a CPU
        raise _too_large(pages, page_size, wanted, free) from error
    raise _too_large(pages, page_size, wanted, free)


def _too_large(pages: int, page_size: int, wanted: int, free: int) -> LoadError:
    return LoadError(
        "memory",
        f"{pages} KV pages of {page_size} tokens need {wanted / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free; "
        "give fewer pages= or less memory=",
    )


def _container_room(root: Path) -> int:
    """Bytes under the control group's limit that are not in use; no limit reads as 2**62."""
    try:
        limit, used = ((root / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return 2**62
    return 2**62 if limit == "max" else max(0, int(limit) - int(used))
