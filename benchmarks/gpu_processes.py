"""Runs a part of the GPU suite in processes of its own: a part that hangs or loses its device ends alone.

Knows: parts by name, pipes. Must not know: what an item does.
An item that fails is a figure with its fault. When the device is lost with it, a new process goes on after it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from gpu_report import Figure
from gpu_setting import Setting, tidy

GRACE = 45.0  # seconds beyond a part's time after which its process is ended
PROCESSES = 8  # for one part, counting those that had to be started again


class Part(NamedTuple):
    """function: of module, from a Setting to Items. share: of the suite's time. lanes: processes side by side."""

    module: str
    function: str
    share: float
    lanes: int = 1


def here(part: str, what: Part, setting: Setting, seconds: float) -> Iterator[Figure]:
    """The part's figures as they come, in this process."""
    for _, figures in _figures(part, what, setting, 0, seconds):
        yield from figures


def apart(part: str, what: Part, setting: Setting, seconds: float) -> Iterator[Figure]:
    """The same in `lanes` processes, each with every lanes-th item."""
    lanes = {lane: _Lane(part, what, setting, lane, 0, seconds) for lane in range(what.lanes)}
    try:
        yield from _listen(lanes, part, what, setting, seconds)
    finally:
        for lane in lanes.values():
            lane.process.kill()


def _listen(lanes: dict[int, _Lane], part: str, what: Part, setting: Setting, seconds: float) -> Iterator[Figure]:
    """Figures of all lanes until each has ended; one that ends early goes on behind the item that ended it."""
    begun, left = time.monotonic(), PROCESSES
    while lanes:
        late = seconds + GRACE - (time.monotonic() - begun)
        ready = wait([lane.pipe for lane in lanes.values()], max(late, 0))
        if not ready:
            yield from (
                Figure(part, lane.item, fault=f"ended after {seconds + GRACE:.0f} s") for lane in lanes.values()
            )
            return
        for number in [number for number, lane in lanes.items() if lane.pipe in ready]:
            lane = lanes[number]
            try:
                yield from lane.take()
            except EOFError:
                lane.process.join()
                del lanes[number]
                if lane.done:
                    continue
                code = lane.process.exitcode
                yield Figure(part, lane.item, fault=lane.lost or f"its process ended with {code}")
                left -= 1
                rest = seconds - (time.monotonic() - begun)
                if left > 0 and rest > 0:
                    lanes[number] = _Lane(part, what, setting, number, lane.index + 1, rest)
                else:
                    why = "no time left" if left > 0 else "too many processes ended"
                    yield Figure(part, f"what follows {lane.item}", fault=f"not run: {why}")


class _Lane:
    """One process, and how far it is."""

    def __init__(self, part: str, what: Part, setting: Setting, lane: int, first: int, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(theirs, part, what, setting, lane, first, seconds))
        self.process.start()
        theirs.close()
        self.item, self.index, self.done, self.lost = "start", first - 1, False, ""

    def take(self) -> list[Figure]:
        """One message. Raises EOFError when the process has ended."""
        kind, index, value = self.pipe.recv()
        if kind == "begin":
            self.index, self.item = index, value
        elif kind == "end":
            self.done = True
        elif kind == "lost":
            self.lost = value
        return value if kind == "figures" else []


def _serve(pipe: Connection, part: str, what: Part, setting: Setting, lane: int, first: int, seconds: float) -> None:
    def begin(index: int, name: str) -> None:
        pipe.send(("begin", index, name))

    for index, figures in _figures(part, what, setting, first, seconds, lane, begin):
        if figures and figures[-1].fault and (lost := _lost(setting)):
            pipe.send(("lost", index, f"{figures[-1].fault}; {lost}"))
            pipe.close()
            os._exit(1)  # nothing of this process can be used, not even to clean up
        pipe.send(("figures", index, figures))
    pipe.send(("end", 0, None))


def _figures(
    part: str,
    what: Part,
    setting: Setting,
    first: int,
    seconds: float,
    lane: int = 0,
    begin: Callable[[int, str], None] = lambda index, name: None,
) -> Iterator[tuple[int, list[Figure]]]:
    """(index, figures) of the lane's items from `first` on; those that time does not allow are figures that say so."""
    begun = time.monotonic()
    items: Any = getattr(importlib.import_module(what.module), what.function)(setting)
    for index, item in enumerate(items):
        if index < first or index % what.lanes != lane:
            continue
        if time.monotonic() - begun > seconds:
            yield index, [Figure(part, item.name, note="no time left")]
            continue
        begin(index, item.name)
        try:
            figures = item.run()
        except Exception as error:
            traceback.print_exc()
            figures = [Figure(part, item.name, fault=f"{type(error).__name__}: {error}"[:500])]
        yield index, figures
        tidy(setting)


def _lost(setting: Setting) -> str:
    """Why the device can no longer be used by this process; empty where it can."""
    if setting.device == "cpu":
        return ""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"the device is lost to its process: {str(error).splitlines()[0]}"
    return ""
