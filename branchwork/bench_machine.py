"""How fast this machine reads memory and multiplies matrices, measured in a process of its own with given threads.

Knows: torch, the native library's plain read. Must not know: models, the runtime, what the figures are compared with.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from branchwork.kernels.cpu import native

LEAST, MOST = 1 << 20, 512 << 20  # bytes of the buffer that is read
SECONDS = 0.6  # how long each figure is measured, at least three times; the quickest counts
_SIDE, _ROWS = 2048, 512  # of the product: weights [SIDE, SIDE], large enough for any cache's edge not to matter


class Rates(NamedTuple):
    """read: bytes a second of a plain read of `buffer` bytes, by `reader`. matrix: operations a second of torch's
    product in `dtype`, a multiplication and an addition counting as two. threads: of both."""

    threads: int
    read: float
    buffer: int
    reader: str
    matrix: float
    dtype: str


def measure(threads: int, buffer: int, dtype: str) -> Rates:
    """The rates of a process with this many threads. buffer: bytes to read, cut to between 1 MiB and 512 MiB.

    Raises RuntimeError with the process's own words when it fails.
    """
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "branchwork.bench_machine", str(threads), str(buffer), dtype]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"the machine's speed could not be measured: {done.stderr.strip()[-500:]}")
    return Rates(**json.loads(done.stdout))


def rates(threads: int, buffer: int, dtype: str) -> Rates:
    """The same in this process, whose threads are set."""
    torch.set_num_threads(threads)
    buffer = min(max(buffer, LEAST), MOST)
    held = torch.ones(buffer // 4, dtype=torch.int32)
    if native.available:
        out = ctypes.c_uint32()
        read, reader = native.library().bw_read, "native"
        where, into = held.data_ptr(), ctypes.addressof(out)
        seconds = least(lambda: read(where, buffer, into))
    else:
        floats = held.view(torch.float32)
        reader, seconds = "torch", least(floats.max)  # reads faster than its sum
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    x, weight = torch.randn(_ROWS, _SIDE).to(kind), torch.randn(_SIDE, _SIDE).to(kind)
    product = least(lambda: torch.nn.functional.linear(x, weight))
    matrix = 2 * _ROWS * _SIDE * _SIDE / product
    return Rates(threads, buffer / seconds, buffer, reader, matrix, str(kind).removeprefix("torch."))


def least(work: Callable[[], object]) -> float:
    """Seconds of the quickest of many runs."""
    times: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < until:
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def main() -> None:
    """Entry of the process: prints the rates as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("threads", type=int)
    parser.add_argument("buffer", type=int, help="bytes to read")
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    given = parser.parse_args()
    print(json.dumps(rates(given.threads, given.buffer, given.dtype)._asdict()))


if __name__ == "__main__":
    main()
