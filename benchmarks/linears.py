"""Times the CPU's matrix products per kind of weight and number of rows, beside torch's, and the memory they read.

Knows: kernels.linear, torch's own packed products, how to time both in turns. Must not know: models, the runtime.
Weights are many enough to leave the caches; what is printed is the least of many runs, since others use the machine."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from branchwork import kernels

KINDS = ("float32", "bfloat16", "int8", "int4")
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0625, "int4": 0.625}  # of a weight, scales and offsets included
COLD = 128 << 20  # bytes of weights that a run goes through: more than the caches hold
Run = Callable[[Tensor], object]


def ours(weight: Tensor, kind: str) -> Run:
    """Our product of x with the weight, packed."""
    if kind in ("int8", "int4"):
        packed = kernels.pack_linear(kernels.quantize(weight, 8 if kind == "int8" else 4))
    else:
        packed = kernels.pack_linear(weight)
    return lambda x: kernels.linear(x, packed)


def torchs(weight: Tensor, kind: str) -> tuple[str, Run]:
    """The fastest product of torch's for this kind, and its name."""
    if kind == "int8":
        scales = weight.float().abs().amax(1) / 127
        values = (weight.float() / scales[:, None]).round().to(torch.int8)
        return "int8pack", lambda x: torch.ops.aten._weight_int8pack_mm(x, values, scales.bfloat16())
    if kind == "int4":
        nibbles = torch.randint(0, 16, weight.shape, dtype=torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)
        facts = torch.rand(weight.shape[1] // 32, weight.shape[0], 2).bfloat16()
        return "int4pack", lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 32, facts)
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight)
        return "onednn", lambda x: torch.ops.mkldnn._linear_pointwise(x, reordered, None, "none", [], "")
    return "torch", lambda x: F.linear(x, weight)


def least(work: Sequence[Callable[[], object]], seconds: float) -> float:
    """Seconds of one of `work`, all of which are done in turn, in the fastest round."""
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        begun = time.perf_counter()
        for one in work:
            one()
        best = min(best, (time.perf_counter() - begun) / len(work))
        if time.perf_counter() > end:
            return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(4096, 4096), metavar=("N", "K"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 64, 256, 1024])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each figure")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    figures: list[dict[str, float | str]] = []
    for threads in given.threads:
        torch.set_num_threads(threads)
        for kind in given.kinds:
            figures += measure(kind, tuple(given.size), given.rows, threads, given.seconds)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def measure(
    kind: str, size: tuple[int, int], rows: Sequence[int], threads: int, seconds: float
) -> list[dict[str, float | str]]:
    """Print and return the figures of one kind of weight."""
    outputs, inputs = size
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    copies = max(1, round(COLD / (outputs * inputs * BYTES[kind])))
    weights = [torch.randn(outputs, inputs, dtype=dtype) for _ in range(copies)]
    mine, theirs = [ours(weight, kind) for weight in weights], [torchs(weight, kind) for weight in weights]
    plain = torch.ones(COLD // 4, dtype=torch.float32)
    read = least([plain.sum], seconds) / plain.nbytes  # seconds a byte
    table = Table("rows", "us", "GB/s", "of reading", "GFLOP/s", theirs[0][0] + " us", "ours against it")
    table.title = f"{kind} {outputs} x {inputs}, {threads} threads, reading {1e-9 / read:.1f} GB/s"
    figures: list[dict[str, float | str]] = []
    for count in rows:
        x = torch.randn(count, inputs, dtype=dtype)
        taken = least([partial(run, x) for run in mine], seconds)
        other = least([partial(run, x) for _, run in theirs], seconds)
        size_read = outputs * inputs * BYTES[kind]
        share, rate = read * size_read / taken, 2e-9 * count * outputs * inputs / taken
        table.add_row(
            str(count), f"{taken * 1e6:.0f}", f"{size_read / taken / 1e9:.1f}", f"{share:.0%}", f"{rate:.0f}",
            f"{other * 1e6:.0f}", f"{other / taken:.2f}",
        )  # fmt: skip
        figures.append(
            {"kind": kind, "threads": threads, "rows": count, "us": taken * 1e6, "share": share, "gflops": rate,
             "peer": theirs[0][0], "peer_us": other * 1e6}
        )  # fmt: skip
    Console().print(table)
    return figures


if __name__ == "__main__":
    main()
