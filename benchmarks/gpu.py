"""Everything that only a GPU can prove, in one command under 8 minutes: results, kernels, engine runs, peers.

Knows: the parts, their share of the time. Must not know: what any part does.
Usage: python benchmarks/gpu.py [--only numerics,kernels,engine,peers] [--seconds N] [--json FILE] [--tiny]
Needs nothing but the checkout and what is installed. Exit status 1 where a kernel computes something else than the
definition, or where a part fails; the rest runs all the same. --tiny: small shapes, on a CPU in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.update({"TRITON_INTERPRET": "1"} if "--tiny" in sys.argv else {})  # before anything imports Triton
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from gpu_processes import Part, apart, here
from gpu_report import Figure, line, show, write
from gpu_setting import Setting
from rich.console import Console

WIDTH = 170  # of the table, at least: its rows are long
ROOM = 40 * 2**30  # bytes: the models' files, and as much again
SECONDS = 430.0  # of all parts; what one leaves, the later ones have
PARTS = {
    "environment": Part("gpu_parts", "environment", 15),
    "numerics": Part("gpu_parts", "numerics", 90, lanes=4),
    "kernels": Part("gpu_parts", "kernels", 85),
    "engine": Part("gpu_engine", "engine", 130),
    "peers": Part("gpu_peers", "peers", 110),
}


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit status."""
    given = _given(arguments)
    if given.tiny:
        _repair_interpreter()
    figures: list[Figure] = []
    console = Console(width=max(Console().width, WIDTH))
    begun = time.monotonic()
    stopped = False
    with tempfile.TemporaryDirectory(prefix="branchwork-gpu-", dir=given.scratch or _roomy(given.tiny)) as scratch:
        setting = Setting("cpu" if given.tiny else "cuda", given.tiny, {}, 0.25, Path(scratch))
        try:
            for name in given.only:
                _run(name, given, setting, figures, begun)
                setting = setting._replace(known={f.name: f.value for f in figures if f.value is not None})
        except KeyboardInterrupt:
            stopped = True
    show(figures, console)
    console.print(f"{time.monotonic() - begun:.0f} s")
    if given.json:
        write(given.json, {"seconds": time.monotonic() - begun, "parts": given.only}, figures)
    return 130 if stopped else int(any(figure.failed for figure in figures))


def _run(name: str, given: argparse.Namespace, setting: Setting, figures: list[Figure], begun: float) -> None:
    """One part, with its share of the time that is left."""
    later = given.only[given.only.index(name) :]
    left = given.seconds - (time.monotonic() - begun)
    seconds = max(left, 0.0) * PARTS[name].share / sum(PARTS[other].share for other in later)
    if given.tiny:
        seconds = left
    run = here if given.tiny else apart
    for figure in run(name, PARTS[name]._replace(lanes=1) if given.tiny else PARTS[name], setting, seconds):
        figures.append(figure)
        if figure.part != "numerics" or figure.failed:
            print(line(figure), flush=True)


def _given(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--scratch", type=Path, help="folder for models of 20 GB that are made and removed")
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU, kernels interpreted")
    given = parser.parse_args(arguments)
    asked = {"environment", *filter(None, given.only.split(","))}  # which holds the rooflines of the others
    given.only = [part for part in PARTS if part in asked]
    if unknown := asked - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    if not given.tiny and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --tiny runs the suite small on the CPU")
    return given


def _roomy(tiny: bool) -> str | None:
    """Where the models' files go by default: memory, where there is so much of it, else the folder of such files."""
    shared = Path("/dev/shm")
    return str(shared) if not tiny and shared.is_dir() and shutil.disk_usage(shared).free > ROOM else None


def _repair_interpreter() -> None:
    """Stock, Triton's interpreter rounds and masks wrongly; the tests' repairs make it faithful."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from tests.kernels.triton import harness

    harness.install()


if __name__ == "__main__":
    sys.exit(main())
