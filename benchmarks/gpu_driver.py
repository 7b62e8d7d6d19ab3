"""An engine in this process: requests go in by hand, events come out with the time they came at.

Knows: the engine's loop, the messages of its pipe. Must not know: hands, kernels, what is measured.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from branchwork.runtime import wire
from branchwork.runtime.assembly import Built, build
from branchwork.runtime.config import Config

_IDLE = 100_000  # times the loop may ask for messages, with nothing to do, before its requests count as forgotten


class Ask(NamedTuple):
    """Generate so many tokens after ids, greedily; ends are ignored."""

    ids: Sequence[int]
    tokens: int
    stream: bool = False


class Run(NamedTuple):
    """seconds: of all. tokens: generated. arrivals: of every message with streamed tokens, (when, tokens in it).
    reused: prompt tokens found in the tree."""

    seconds: float
    tokens: int
    arrivals: list[tuple[float, int]]
    reused: int

    def step(self, rows: int) -> float:
        """Seconds of a decode step in which all of `rows` requests got a token: the median. Raises ValueError where
        there were fewer than three."""
        full = [when for when, tokens in self.arrivals if tokens == rows]
        if len(full) < 4:
            raise ValueError(f"{len(full)} steps with all {rows} rows are too few to be timed")
        return median(b - a for a, b in pairwise(full[1:]))


class Driver:
    """Starts an engine and drives it. started: seconds of the start. read_bytes: weights that a forward reads."""

    def __init__(self, folder: Path, device: str, **options: object) -> None:
        begun = time.perf_counter()
        settings = {"speculative": "off", **options}  # random text repeats itself, which would flatter guesses
        config = Config(model=str(folder), device=device, **settings)  # type: ignore[arg-type]
        self._built: Built = build(config, folder, lambda stage, fraction: None)
        self.started = time.perf_counter() - begun
        self.read_bytes = self._built.ready.read_bytes
        self.notes = self._built.notes
        self._number = 0

    def run(self, asks: Sequence[Ask]) -> Run:
        """All of them at once, to their ends. Raises RuntimeError where one fails."""
        inbox: list[wire.ToEngine] = []
        for ask in asks:
            self._number += 1
            stops, shape = wire.Stops(ask.tokens), wire.Shape(temperature=0.0)
            inbox.append(wire.Submit(self._number, array("i", ask.ids).tobytes(), shape, stops, stream=ask.stream))
        desk = _Desk(inbox)
        begun = time.perf_counter()
        self._built.engine.run(desk.receive, desk.send)
        done = time.perf_counter() - begun
        return Run(done, desk.tokens, desk.arrivals, desk.reused)


class _Desk:
    """The other end of the engine's pipe, for one run."""

    def __init__(self, inbox: list[wire.ToEngine]) -> None:
        self._inbox = inbox
        self._open = len(inbox)
        self._idle = 0
        self.tokens = self.reused = 0
        self.arrivals: list[tuple[float, int]] = []

    def receive(self, wait: bool) -> list[wire.ToEngine]:
        messages, self._inbox = self._inbox, []
        if messages or not wait:
            return messages
        if not self._open:  # and nothing is under way
            return [wire.Stop()]
        self._idle += 1
        if self._idle > _IDLE:
            raise RuntimeError(f"the engine waits for messages while {self._open} requests have no end")
        return []

    def send(self, messages: list[wire.FromEngine]) -> None:
        now, new = time.perf_counter(), 0
        for message in messages:
            if isinstance(message, wire.Tokens):
                new += len(message.ids)
            elif isinstance(message, wire.Finished):
                self._open -= 1
                self.tokens += len(message.ids)
                self.reused += message.usage.reused
            elif isinstance(message, wire.Failed):
                raise RuntimeError(f"request {message.id} failed: {message.code}: {message.message}")
        self.tokens += new
        if new:
            self.arrivals.append((now, new))


def prompt(seed: str, count: int, vocab: int) -> list[int]:
    """Random ids; 0 and 1 mean something."""
    return random.Random(seed).choices(range(2, vocab), k=count)
