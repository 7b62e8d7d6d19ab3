"""Compiles every GPU kernel for every chip, without one, and holds registers, spills and shared memory to its limits.

Knows: Triton's compiler, its bundled ptxas, the chips' limits. Must not know: what a kernel computes.

python -m branchwork.kernels.compile_all [--targets sm_90,gfx942,...] [--kernels WORD] [--json FILE] [--jobs N]
Exit status 1 where a kernel does not compile, spills or wants more shared memory than a block may have; 130 when
stopped by Ctrl-C, after the rows that were done. Every row of every chip's file of launch parameters has a kernel here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from branchwork.kernels import triton as package
from branchwork.kernels.triton.language import available, why
from branchwork.kernels.triton.tuning import CHIPS, Specimen, launch

# bytes of shared memory one block may have: NVIDIA's opt-in maximum, AMD's local data share of a work-group
SHARED = {"sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "sm_120": 101376}
SHARED |= {"gfx90a": 65536, "gfx942": 65536, "gfx950": 163840, "gfx1100": 65536, "gfx1201": 65536}
_SECONDS = 300  # one compile; a hopeless tile takes minutes on some chips
_OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}


class Compiled(NamedTuple):
    """One kernel on one chip. spills: bytes to memory (NVIDIA), registers (AMD). error: empty where all is well."""

    kernel: str
    target: str
    registers: int
    spills: int
    shared: int
    shared_limit: int
    error: str


def specimens() -> dict[str, Specimen]:
    """Every module's SPECIMENS by name. Raises RuntimeError without Triton, ValueError for a name that occurs twice."""
    if not available:
        raise RuntimeError(why)
    found: dict[str, Specimen] = {}
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for entry in getattr(loaded, "SPECIMENS", ()):
            specimen = Specimen(*entry)
            if specimen.name in found:
                raise ValueError(f"two specimens are named {specimen.name!r}")
            found[specimen.name] = specimen
    return found


def compiled(name: str, target: str, row: Mapping[str, int] | None = None) -> Compiled:
    """Compile one specimen for one chip, here and now, and say what it takes. row: instead of the chip's own."""
    specimen, limit = specimens()[name], SHARED[target]
    parameters = _parameters(specimen.rows, target)
    try:
        with _deadline(_SECONDS):
            registers, spills, shared = _resources(specimen, target, {**parameters, **(row or {})})
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip(" ^")]
        return Compiled(name, target, 0, 0, 0, limit, f"{type(error).__name__}: {lines[-1] if lines else ''}")
    faults = [f"{shared} bytes of shared memory, {limit} allowed"] if shared > limit else []
    if spills and target not in specimen.spills:
        faults.append(f"{spills} spilled")
    return Compiled(name, target, registers, spills, shared, limit, "; ".join(faults))


Task = tuple[str, str, Mapping[str, int] | None]  # what `compiled` takes


def compile_all(names: list[str], targets: list[str], jobs: int = 2) -> Iterator[Compiled]:
    """Every specimen named for every target with the target's own rows, as they finish, in `jobs` processes."""
    # chip by chip, so that a process need not switch code generators for each kernel
    yield from (row for _, row in compile_tasks([(name, target, None) for target in targets for name in names], jobs))


def compile_tasks(tasks: Sequence[Task], jobs: int = 2) -> Iterator[tuple[int, Compiled]]:
    """(index, what came of it) of every task, as they finish, in `jobs` processes; one job is done here.

    A compiler that ends its process ends one task. Whoever stops listening ends the processes, whatever they compile.
    """
    if jobs == 1:
        yield from ((i, compiled(*task)) for i, task in enumerate(tasks))
        return
    left = dict(enumerate(tasks))
    while left:
        try:
            for i, row in _side_by_side(left, jobs):
                del left[i]
                yield i, row
        except BrokenProcessPool:
            for i in list(left)[:jobs]:  # those that were under way: each gets a process of its own
                name, target, _ = task = left.pop(i)
                try:
                    yield from _side_by_side({i: task}, 1)
                except BrokenProcessPool:
                    yield i, Compiled(name, target, 0, 0, 0, SHARED[target], "the compiler ended its process")


def _side_by_side(tasks: Mapping[int, Task], jobs: int) -> Iterator[tuple[int, Compiled]]:
    """Begun in the order of tasks. Raises BrokenProcessPool where a process ends."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_deaf)
    try:
        futures = {pool.submit(compiled, *task): i for i, task in tasks.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()


def _deaf() -> None:
    """Leaves Ctrl-C to the process that listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _parameters(rows: tuple[str, str] | Mapping[str, Mapping[str, Any]], target: str) -> dict[str, Any]:
    if isinstance(rows, tuple):
        return launch(rows[0], target, rows[1] or None)
    return {"enable_fp_fusion": True, **rows["default"], **rows.get(target, {})}


def _resources(specimen: Specimen, target: str, row: dict[str, Any]) -> tuple[int, int, int]:
    """Registers of a thread, what spilled, bytes of shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = specimen.kernel
    given = {name: value(row) if callable(value) else value for name, value in specimen.constexprs.items()}
    constexprs = {**{k: v for k, v in row.items() if k in kernel.arg_names}, **given}
    types = {name: kind.removesuffix(":16") for name, kind in specimen.signature.items()}
    aligned = {name for name, kind in specimen.signature.items() if kind.startswith("*") or kind.endswith(":16")}
    signature = {name: "constexpr" if name in constexprs else types[name] for name in kernel.arg_names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name in aligned and name not in constexprs
    }
    arch = target.removeprefix("sm_")
    nvidia = target.startswith("sm_")
    wave = 32 if nvidia or target.startswith(("gfx11", "gfx12")) else 64
    chip = GPUTarget("cuda", int(arch), 32) if nvidia else GPUTarget("hip", target, wave)
    source = ASTSource(kernel, signature, constexprs, attributes)
    done = triton.compile(source, target=chip, options={k: v for k, v in row.items() if k in _OPTIONS})
    registers, spills = _nvidia(done.asm["ptx"], int(arch)) if nvidia else _amd(done.asm["amdgcn"])
    return registers, spills, int(done.metadata.shared)


def _nvidia(ptx: str, arch: int) -> tuple[int, int]:
    """What ptxas says of the assembly: registers, and bytes spilled (or local arrays, which are as slow)."""
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx, encoding="utf-8")
        done = subprocess.run(
            [
                get_ptxas(arch).path,
                "-v",
                f"--gpu-name=sm_{arch}{'a' if arch >= 90 else ''}",
                file,
                "-o",
                Path(folder, "kernel.cubin"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"ptxas: {done.stderr.strip()}")

    def total(pattern: str) -> int:
        return sum(int(number) for number in re.findall(pattern, done.stderr + done.stdout))

    return total(r"Used (\d+) registers"), total(r"(\d+) bytes spill") + total(r"(\d+) bytes stack frame")


def _amd(assembly: str) -> tuple[int, int]:
    """Vector registers (accumulators included) and how many of them spilled; scalar ones spill to vector ones."""

    def value(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    return value("vgpr_count") + value("agpr_count"), value("vgpr_spill_count")


class _deadline:
    """Raises TimeoutError in the main thread after so many seconds, or as soon as native code returns after them."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._late)
        signal.alarm(self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)

    def _late(self, *_: object) -> None:
        raise TimeoutError(f"not compiled in {self.seconds} s")


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser("branchwork.kernels.compile_all", description=__doc__.split("\n")[0])
    parser.add_argument("--targets", default=",".join(CHIPS), help="chips, of " + ", ".join(SHARED))
    parser.add_argument("--kernels", default="", help="only kernels whose name holds this")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile side by side")
    given = parser.parse_args(arguments)
    targets = list(dict.fromkeys(filter(None, given.targets.replace(" ", "").split(","))))
    if unknown := set(targets) - set(SHARED):
        parser.error(f"unknown targets {', '.join(sorted(unknown))}; known are {', '.join(SHARED)}")
    if not available:
        parser.error(why)
    if given.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {given.jobs}")
    os.environ.pop("TRITON_INTERPRET", None)
    names = [name for name in specimens() if given.kernels in name]
    if not names or not targets:
        parser.error(f"nothing to compile; kernels are {', '.join(specimens())}")
    rows: list[Compiled] = []
    stopped = False
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("compiling", total=len(names) * len(targets))
            for row in compile_all(names, targets, given.jobs):
                rows.append(row)
                progress.update(task, advance=1, description=f"{row.kernel}, {row.target}")
    except KeyboardInterrupt:
        stopped = True
    rows.sort(key=lambda row: (names.index(row.kernel), targets.index(row.target)))
    _print(rows)
    if stopped:
        print(f"stopped: {len(names) * len(targets) - len(rows)} were not compiled", file=sys.stderr)
    if given.json:
        given.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n", encoding="utf-8")
    return 130 if stopped else int(any(row.error for row in rows))


def _print(rows: list[Compiled]) -> None:
    table = Table(*Compiled._fields)
    for row in rows:
        table.add_row(*(str(value) for value in row), style="red" if row.error else "")
    Console(width=200 if not sys.stdout.isatty() else None).print(table)
    print(f"{len(rows)} compiled, {sum(1 for row in rows if row.error)} with errors")


if __name__ == "__main__":
    sys.exit(main())
