"""Time on a device: one call's, with cold caches, and the two rooflines that calls are held against.

Knows: torch's events and graphs. Must not know: kernels, models.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FLUSH = 256 * 2**20  # bytes written between two runs: more than any chip's cache holds
FEWEST, MOST = 5, 200  # runs of one call


class Rooflines(NamedTuple):
    """copy: bytes read and written a second by a large copy. matmul: bf16 operations a second of 8192^3."""

    copy: float
    matmul: float

    def seconds(self, moved: float, operations: float) -> tuple[float, str]:
        """The least time, and which of the two bounds it."""
        memory, units = moved / self.copy, operations / self.matmul
        return (memory, "copy bandwidth") if memory >= units else (units, "matmul rate")


class Timing(NamedTuple):
    """seconds: the median run's. runs: how many. how: graph | eager | cpu."""

    seconds: float
    runs: int
    how: str


def timed(call: Callable[[], object], device: torch.device, seconds: float) -> Timing:
    """`call` on `device`, for about so long. On a GPU as a captured graph where it can be captured, so that the time is
    the device's alone; its second-level cache is overwritten between runs."""
    if device.type == "cpu":
        begun = time.perf_counter()
        call()
        return Timing(time.perf_counter() - begun, 1, "cpu")
    call()  # compiles
    call()
    torch.cuda.synchronize()
    replay, how = _captured(call)
    dirt = torch.empty(FLUSH // 4, dtype=torch.int32, device=device)
    first = _run(replay, dirt)[0]
    runs = min(MOST, max(FEWEST, int(seconds / (first + FLUSH / 2e12))))
    return Timing(statistics.median(_run(replay, dirt, runs)), runs, how)


def _run(call: Callable[[], object], dirt: Tensor, runs: int = 1) -> list[float]:
    """Seconds of each run, between events; the host is ahead of the device by what overwriting the cache takes."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for begin, end in events:
        dirt.zero_()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1000 for begin, end in events]


def _captured(call: Callable[[], object]) -> tuple[Callable[[], object], str]:
    """The call as a graph; itself where something in it cannot be captured (a wait, a size read on the host)."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call, "eager"
    return graph.replay, "graph"


def copy_bandwidth(device: torch.device, size: int, seconds: float) -> float:
    """Bytes read and written a second by copies of `size` bytes."""
    source = torch.zeros(size // 4, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source), device, seconds).seconds


def matmul_rate(device: torch.device, size: int, seconds: float) -> float:
    """bf16 operations a second of a product of two random matrices [size, size]."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, device, seconds).seconds


def described(device: torch.device) -> dict[str, str]:
    """Device, driver, clocks, memory and versions, by name."""
    found = {"torch": str(torch.__version__)}
    try:
        import triton
    except ImportError:
        found["triton"] = "not installed"
    else:
        found["triton"] = triton.__version__
    if device.type == "cpu":
        return {"device": "cpu", **found}
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    found |= {
        "device": properties.name,
        "multiprocessors": str(properties.multi_processor_count),
        "memory free, of": f"{free / 2**30:.1f} GiB, {total / 2**30:.1f} GiB",
        "toolkit": str(torch.version.hip or torch.version.cuda),
    }
    if shutil.which("nvidia-smi"):
        fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
        if done.returncode == 0:
            values = done.stdout.splitlines()[0].split(", ")
            found |= dict(zip(fields.split(","), values))
    return found
