"""How much memory KV pages take and whether it is there.

Knows: sizes, the machine's free memory and its container's limit. Must not know: requests, plans.
"""

from __future__ import annotations

from pathlib import Path

import torch

from branchwork import kernels
from branchwork.runtime.cache import kv_pool
from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.config import free_memory as system_free_memory
from branchwork.runtime.execution import cuda
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.spec import ModelSpec

_LIBRARIES = 256 * 2**20  # bytes: compiled kernels, workspaces of the vendor's products
_TOKEN = 128  # bytes: ids, positions, slots, order and other integers of a token, rounded up
_DRAW = 65_536  # bytes: a draw's list of likely tokens and its alternatives
_SCORED = 256  # known tokens whose logits exist at the same time
_CUTS = 2**17  # rows of parts when every processor of a large chip (256) gets 4 tiles of the greatest height, 128
_GRAPHS = 2 * 2**30  # bytes for captured steps at most
_GRAPHED_LAYER = 32 * 2**20  # bytes of a layer in all captured sizes; an estimate that no device has confirmed
_SHRINK = 16  # a pool that cannot be had is tried again smaller by this part
_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")
_FILES = (  # limit, use and statistics of a control group, version 2 and version 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def kv_dtype(wanted: str, compute: torch.dtype, device: torch.device) -> torch.dtype:
    """The type of KV pools for kv_dtype= auto | float32 | bfloat16 | int8 | float8 of a model that computes in
    `compute` on a device.

    Raises LoadError (kv_dtype) for a type that attention in `compute` cannot read there.
    """
    if wanted == "float8":
        if not kernels.serves_float8(device.type):
            raise LoadError("kv_dtype", "kv_dtype=float8 is for GPUs; on a CPU give kv_dtype=int8, of nearly its size")
        return torch.float8_e4m3fn
    dtype = compute if wanted == "auto" else getattr(torch, wanted)
    if dtype not in (compute, torch.int8):
        name = str(compute).removeprefix("torch.")
        raise LoadError(
            "kv_dtype",
            f"kv_dtype={wanted} does not go with a model that computes in {name}; "
            f"give kv_dtype=auto or int8, or dtype={wanted}",
        )
    return dtype


def bytes_per_page(spec: ModelSpec, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one KV page over all layers."""
    a = spec.attention
    return kv_pool.bytes_per_page(spec.layers, a.kv_heads, page_size, a.head_dim, dtype)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`: on a GPU what no process holds and what torch's allocator holds
    unused; on a CPU no more than the container's limit leaves."""
    if device.type == "cuda":
        return cuda.free_memory(device)
    return min(system_free_memory(), *(_container_room(group) for group in _groups(_CGROUP, _OWN_GROUP)))


def working_memory(spec: ModelSpec, dtype: torch.dtype, budget: int, rows: int, graphs: bool = False) -> int:
    """Upper bound, in bytes, of what steps allocate on a GPU beside weights and KV pages.

    budget: tokens of the largest step. rows: draws of the largest step, those after guesses counted. graphs: whether
    decoding steps are captured. To be subtracted from free memory before KV pages are counted.
    """
    a, c = spec.attention, spec.hidden
    each = dtype.itemsize
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    # a token, at the widest place of a layer: the residual stream and its norm, then attention or feed-forward
    attending = 2 * c + (q + 2 * kv) + 2 * q + c
    feeding = 2 * c + 3 * spec.ffn + 2 * c
    if spec.experts is not None:  # a token's rows among those sorted by expert
        feeding = max(feeding, 4 * c + spec.experts.top_k * (3 * spec.experts.ffn + 2 * c))
    tokens = budget * (max(attending, feeding) * each + 6 * a.head_dim + _TOKEN)
    # a chosen place: the head's product, float32 logits, and what sampling lists; scores of known tokens likewise
    places = (rows + _SCORED) * (spec.vocab * (each + 2 * 4) + _DRAW)
    # attention's parts, float32: those of a token in each of its tiles, and those of tiles cut for idle processors
    parts = (2 * (budget + rows) * a.heads + _CUTS) * (a.head_dim + 1) * 4
    return _LIBRARIES + tokens + places + parts + (graph_memory(spec, rows) if graphs else 0)


def graph_memory(spec: ModelSpec, rows: int) -> int:
    """Bytes that captured decoding steps of up to `rows` rows may take, their logits included.

    Graphs takes it as its allowance: when so much is spent, further sizes run uncaptured.
    """
    return rows * spec.vocab * 4 + min(_GRAPHS, spec.layers * _GRAPHED_LAYER)


def allocate(
    spec: ModelSpec, pages: int, page_size: int, dtype: torch.dtype, device: torch.device, scratch: bool = False
) -> KVPool:
    """The pool of a model; scratch: as KVPool's. Raises LoadError (memory) with both figures when it cannot fit.

    The check comes first because a system that overcommits grants any size and kills the process later.
    """
    wanted = (pages + scratch) * bytes_per_page(spec, page_size, dtype)
    free = free_memory(device)
    a = spec.attention
    try:
        if wanted <= free:
            return KVPool(spec.layers, pages, a.kv_heads, page_size, a.head_dim, dtype, device, scratch)
    except RuntimeError as error:  # torch's allocators raise nothing narrower on a CPU
        raise _too_large(pages, page_size, wanted, free) from error
    raise _too_large(pages, page_size, wanted, free)


def allocate_most(
    spec: ModelSpec,
    pages: int,
    least: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    scratch: bool = False,
) -> tuple[KVPool, str]:
    """The largest pool of at most `pages` and at least `least` pages that can be had, and a note if it is smaller.

    Another process may take memory after it was counted as free. Raises LoadError (memory) where `least` do not fit.
    """
    count = pages
    while True:
        try:
            pool = allocate(spec, count, page_size, dtype, device, scratch)
            break
        except LoadError:
            if count <= least:
                raise
        count = max(least, count - max(1, count // _SHRINK))  # outside the handler: it holds what was half allocated
    if count == pages:
        return pool, ""
    return pool, (
        f"KV cache: {count} pages of {page_size} tokens instead of {pages}: the memory that was free when they were "
        "counted is not free any more; memory= (GiB) or pages= asks for less from the start"
    )


def _too_large(pages: int, page_size: int, wanted: int, free: int) -> LoadError:
    return LoadError(
        "memory",
        f"{pages} KV pages of {page_size} tokens need {wanted / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free; "
        "give fewer pages=, less memory= or kv_dtype=int8",
    )


def _groups(root: Path, own: Path) -> list[Path]:
    """Folders of the control groups that hold this process, from its own to the root: each has a limit of its own."""
    found = [root, root / "memory"]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            base = root / controllers
            here = base / path.strip("/")
            found += [here, *(parent for parent in here.parents if base in parent.parents)]
    return found


def _container_room(group: Path) -> int:
    """Bytes under one control group's limit that are not in use; no limit reads as 2**62.

    File pages that nobody has touched for a while (a model's file that was just read) go when memory is needed: they do
    not count as in use.
    """
    for names in _FILES:
        try:
            limit, used = ((group / name).read_text().strip() for name in names[:2])
        except OSError:
            continue
        if limit == "max":
            return 2**62
        return max(0, int(limit) - max(0, int(used) - _statistic(group / "memory.stat", names[2])))
    return 2**62


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name + " ")), 0)
