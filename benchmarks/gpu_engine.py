"""The suite's part of whole engine runs: start, single stream, large batch, branches of one prefix, idle device.

Knows: the driver, random models. Must not know: hands, kernels but for the one switch of sharing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from gpu_driver import Ask, Driver, prompt
from gpu_models import SIZES, written
from gpu_report import Figure
from gpu_setting import COPY, Item, Setting, tidy

from branchwork.kernels.triton import attention_plan


class Load(NamedTuple):
    """How much is asked. single: tokens of one stream. offline: requests, prompt tokens, answer tokens of the large
    batch. shared: branches, common tokens, own tokens. idle: requests and answer tokens of the profiled run."""

    single: int = 192
    offline: tuple[int, int, int] = (256, 1024, 256)
    shared: tuple[int, int, int] = (128, 16384, 256)
    idle: tuple[int, int] = (128, 48)


FULL = Load()
TINY = Load(8, (3, 20, 5), (4, 64, 8), (4, 8))
START = 20.0  # seconds in which an 8B model should be ready
# at least: share of the bandwidth bound in a single stream, gain from sharing; at most: share of time without a kernel
AIMS = {"8B": (0.85, 5.0, 0.03), "1B": (None, None, None), "tiny": (None, None, None)}


def models(tiny: bool) -> tuple[str, ...]:
    return ("tiny",) if tiny else ("8B", "1B")


class _Served:
    """One model's engine, started when first needed."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name, self.setting = name, setting
        self.load = TINY if setting.tiny else FULL
        self.vocab = SIZES[name].vocab
        self._driver: Driver | None = None

    @property
    def driver(self) -> Driver:
        if self._driver is None:
            folder = written(self.name, self.setting.scratch)
            self._driver = Driver(folder, self.setting.device, dtype="bfloat16")
            self._driver.run(
                [Ask(prompt(f"warm {n}", 20, self.vocab), 4) for n in range(2)]
            )  # what starts with the first step
        return self._driver

    def close(self) -> None:
        """Give its memory back: the next model wants nearly all."""
        self._driver = None
        tidy(self.setting)


def engine(setting: Setting) -> Iterator[Item]:
    for name in models(setting.tiny):
        served = _Served(name, setting)
        yield Item(f"{name}: start", partial(_started, served))
        yield Item(f"{name}: single stream", partial(_single, served))
        yield Item(f"{name}: offline", partial(_offline, served))
        yield Item(f"{name}: shared prefix", partial(_shared, served))
        yield Item(f"{name}: idle device", partial(_idle, served))
        served.close()


def _figure(served: _Served, what: str, value: float | None, unit: str = "", **more: Any) -> Figure:
    return Figure("engine", f"{served.name}: {what}", value, unit, **more)


def _started(served: _Served) -> list[Figure]:
    """Until the engine could take its first request: its file was just written, so it is read from memory."""
    seconds = served.driver.started
    return [_figure(served, "start", seconds, "s", aim=START if served.name == "8B" else None, most=True)]


def _single(served: _Served) -> list[Figure]:
    driver, count = served.driver, served.load.single
    step = driver.run([Ask(prompt("single", 128 if count > 20 else 8, served.vocab), count, stream=True)]).step(1)
    bound = driver.read_bytes / served.setting.known[COPY]
    return [
        _figure(served, "single stream", 1 / step, "tokens/s"),
        _figure(served, "single stream: share of the bandwidth bound", bound / step, aim=AIMS[served.name][0]),
    ]


def _offline(served: _Served) -> list[Figure]:
    rows, given, wanted = served.load.offline
    for warm in (True, False):  # the first run captures and compiles what the second one meets
        asks = [Ask(prompt(f"offline {warm} {r}", given, served.vocab), 8 if warm else wanted) for r in range(rows)]
        found = served.driver.run(asks)
    note = f"{rows} requests of {given} tokens in and {wanted} out, {found.seconds:.1f} s"
    return [_figure(served, "offline", found.tokens / found.seconds, "tokens/s", note=note)]


def _shared(served: _Served) -> list[Figure]:
    """Step times of branches over one prefix, with its pages read once for all, and by each branch."""
    rows, common, own = served.load.shared
    trunk = prompt("trunk", common, served.vocab)
    served.driver.run([Ask(trunk, 1)])
    asks = [Ask([*trunk, *prompt(f"branch {r}", own, served.vocab)], 24, stream=True) for r in range(rows)]
    figures = []
    steps = []
    for what, switch in (("read once", _as_it_is), ("read by each", unshared)):
        with switch():
            found = served.driver.run(asks)
        steps.append(found.step(rows))
        note = f"{found.reused / sum(len(ask.ids) for ask in asks):.0%} of the prompts reused"
        figures.append(_figure(served, f"step of {rows} branches, prefix {what}", steps[-1] * 1000, "ms", note=note))
    name = f"{rows} branches: gain of reading the prefix once"
    return [*figures, _figure(served, name, steps[1] / steps[0], "x", aim=AIMS[served.name][1])]


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def unshared() -> Iterator[None]:
    """No two rows are planned to read a page together; whoever plans, does so through this function."""

    def none(rows: Any, *_: Any) -> tuple[Any, Any]:
        return np.empty((0, 4), np.int64), np.zeros(len(rows), np.int64)

    with patch.object(attention_plan, "shared_segments", none):
        yield


def _idle(served: _Served) -> list[Figure]:
    """The share of a steady decode step in which nothing runs on the device: of the step's time without a profiler,
    and of the time that a second run with one sees something run."""
    if served.setting.where.type == "cpu":
        return [_figure(served, "idle device", None, note="a GPU's kernels are needed")]
    rows, count = served.load.idle
    asks = [Ask(prompt(f"idle {r}", 64, served.vocab), count, stream=True) for r in range(rows)]
    step = served.driver.run(asks).step(rows)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        slower = served.driver.run(asks).step(rows)
    busy = busy_share(_spans(profile)) * slower
    note = f"batch {rows}: {step * 1000:.2f} ms a step, {busy * 1000:.2f} ms of it busy"
    aim = AIMS[served.name][2]
    return [_figure(served, "idle device", max(0.0, 1 - busy / step), aim=aim, most=True, note=note)]


def _spans(profile: Any) -> list[tuple[float, float]]:
    """(begin, end) of all that ran on the device."""
    on_device = torch.autograd.DeviceType.CUDA
    events = (event.time_range for event in profile.events() if event.device_type == on_device)
    return [(span.start, span.end) for span in events]


def busy_share(spans: Sequence[tuple[float, float]]) -> float:
    """The share of the second half of all that time in which something ran: the steady half of a run that begins with
    its prompts. Spans may overlap."""
    ordered = sorted(spans)
    last = max(end for _, end in ordered)
    first = (ordered[0][0] + last) / 2
    busy, covered = 0.0, first
    for begin, end in ordered:
        if end > covered:
            busy += end - max(begin, covered)
            covered = end
    return busy / (last - first)
