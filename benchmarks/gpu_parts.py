"""The suite's parts that speak of kernels: what is here, whether kernels compute what they should, how long they take.

Knows: cases, rooflines. Must not know: processes, engines, peers, the table at the end.
A part gives Items one by one; whoever runs them decides how long, and what a fault of one means for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import gpu_cases
import torch
from gpu_case import Case
from gpu_report import Figure
from gpu_setting import COPY, MATMUL, Item, Setting
from gpu_timing import Rooflines, Timing, copy_bandwidth, described, matmul_rate, timed


def environment(setting: Setting) -> Iterator[Item]:
    def seen() -> list[Figure]:
        return [Figure("environment", name, note=text) for name, text in described(setting.where).items()]

    def copied() -> list[Figure]:
        size = 2**20 if setting.tiny else 4 * 2**30
        return [Figure("environment", COPY, copy_bandwidth(setting.where, size, 1.0), "B/s")]

    def multiplied() -> list[Figure]:
        size = 64 if setting.tiny else 8192
        return [Figure("environment", MATMUL, matmul_rate(setting.where, size, 1.0), "op/s")]

    yield Item("device", seen)
    yield Item(COPY, copied)
    yield Item(MATMUL, multiplied)


def numerics(setting: Setting) -> Iterator[Item]:
    """Every case and type of element: odd shapes first, then those of real models."""
    for case in gpu_cases.tiny() if setting.tiny else [*gpu_cases.edges(), *gpu_cases.timed()]:
        for dtype in case.dtypes:
            name = f"{case.name}, {str(dtype).removeprefix('torch.')}"
            yield Item(name, partial(_agrees, name, case, dtype, setting.where))


def _agrees(name: str, case: Case, dtype: torch.dtype, device: torch.device) -> list[Figure]:
    return [Figure("numerics", name, case.fault(device, dtype), "", case.allowed(dtype), most=True)]


def kernels(setting: Setting) -> Iterator[Item]:
    """Those with an aim first."""
    cases = gpu_cases.tiny() if setting.tiny else gpu_cases.timed()
    for case in sorted(cases, key=lambda case: not case.aims):
        yield Item(case.name, partial(_measured, case, setting))


def _measured(case: Case, setting: Setting) -> list[Figure]:
    """Our time, its share of the roofline, and each rival's time as a multiple of ours."""
    device, dtype = setting.where, case.dtypes[0]
    aims = dict(case.aims)
    inputs = case.make(device, dtype)
    moved = case.moved(dtype.itemsize)
    ours = timed(lambda: case.once(inputs), device, setting.each)
    rates = f"{moved / ours.seconds / 1e9:,.0f} GB/s, {case.operations / ours.seconds / 1e12:,.1f} Top/s"
    least, bound = Rooflines(setting.known[COPY], setting.known[MATMUL]).seconds(moved, case.operations)
    spent = Figure("kernels", case.name, ours.seconds * 1e6, "us", aims.get("microseconds"), most=True)
    share = Figure("kernels", f"{case.name}: share of {bound}", least / ours.seconds, "", aims.get("roofline"))
    figures = [spent._replace(note=f"{rates}, {ours.how}"), share]
    for rival, prepare in case.rivals.items():
        name = f"{case.name}: {rival}'s time over ours"
        try:
            theirs = timed(prepare(inputs), device, setting.each)
        except Exception as error:  # a rival that does not run here says nothing about us
            figures.append(Figure("kernels", name, aim=aims.get(rival), note=_why(error)))
        else:
            figures.append(_ratio(name, theirs, ours, aims.get(rival)))
    return figures


def _ratio(name: str, theirs: Timing, ours: Timing, aim: float | None) -> Figure:
    note = f"{theirs.seconds * 1e6:,.1f} us, {theirs.how}"
    return Figure("kernels", name, theirs.seconds / ours.seconds, "x", aim, note=note)


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"not run: {type(error).__name__}: {lines[-1] if lines else ''}"[:300]
