"""THE loop of an engine process, and its end of the pipe to the gateway.

Knows: the scheduler's verbs, what hands do with a plan, messages. Must not know: Config, models, clients, programs.
The loop has three beats: plan what one step computes, run it, commit what came of it. On a device that computes by
itself they overlap:

    device   [ forward n ][ draw n ][ forward n + 1 ........................][ draw n + 1 ]
    loop     plan n + 1, launch it ][ collect and commit n ][ masks of n + 1 ] plan n + 2 ...
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import zmq

from branchwork.runtime import wire
from branchwork.runtime.config import resident
from branchwork.runtime.execution.runner import Pending
from branchwork.runtime.plan import Plan, Result
from branchwork.runtime.scheduler.constrained import Masks

MAX_INBOX = 10_000  # messages taken between two steps: a flood of requests may not starve the running ones


class Hands(Protocol):
    """What the loop needs of execution: start a step, after the draws of another; its Pending gives the Result."""

    def launch(self, plan: Plan, before: Pending | None = None) -> Pending: ...


class Brain(Protocol):
    """What the loop needs of a scheduler; see scheduler.Scheduler for what each verb means."""

    @property
    def idle(self) -> bool: ...
    def add(self, message: wire.Submit | wire.Score | wire.Embed) -> list[wire.Event]: ...
    def cancel(self, number: int) -> list[wire.Event]: ...
    def compiled(self) -> list[wire.Event]: ...
    def fail_all(self, code: str, message: str) -> list[wire.Event]: ...
    def plan(self) -> Plan | None: ...
    def plan_ahead(self) -> Plan | None: ...
    def masks(self, plan: Plan) -> Masks | None: ...
    def commit(self, plan: Plan, result: Result) -> list[wire.Event]: ...
    def stats(self) -> dict[str, float | int | str]: ...
    def flush(self) -> int: ...
    def show_tree(self) -> wire.Tree: ...
    def check(self) -> None: ...


class StepFailed(Exception):
    """The hands could not run a step; the message says why."""


class Flight(NamedTuple):
    """A step that was launched and sampled, and not collected."""

    plan: Plan
    pending: Pending


class Channel:
    """The engine's end of the pipe to its gateway; also notices when the gateway is gone (end of standard input)."""

    def __init__(self, endpoint: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(sys.stdin.fileno(), zmq.POLLIN)

    def watch(self, descriptor: int) -> None:
        """`receive` returns, with nothing perhaps, when this descriptor can be read."""
        self._poller.register(descriptor, zmq.POLLIN)

    def receive(self, wait: bool) -> list[wire.ToEngine]:
        """All messages that are here; waits for one when `wait`. A gateway that has gone reads as Stop."""
        ready = dict(self._poller.poll(None if wait else 0))
        messages: list[wire.ToEngine] = []
        while len(messages) < MAX_INBOX:
            try:
                messages += wire.decode_to_engine(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            messages.append(wire.Stop())
        return messages

    def send(self, messages: list[wire.FromEngine]) -> None:
        if messages:
            self._socket.send(wire.encode(messages))

    def close(self) -> None:
        self._socket.close()
        zmq.Context.instance().term()


class Engine:
    """THE loop. Nothing that a request asks for may raise in here; a failed step fails its requests and goes on.

    overlap: a step is launched before the one before is committed, where the scheduler can plan it.
    """

    def __init__(self, scheduler: Brain, hands: Hands, overlap: bool = False) -> None:
        self._scheduler = scheduler
        self._hands = hands
        self._overlap = overlap
        self._flight: Flight | None = None
        self._filler = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._busy = self._stepping = 0.0  # seconds: of the loop without its waiting, and of the steps in it

    def run(
        self, receive: Callable[[bool], list[wire.ToEngine]], send: Callable[[list[wire.FromEngine]], None]
    ) -> None:
        """Serve until a Stop message. Blocks in `receive` only when there is nothing to compute."""
        while True:
            answers: list[wire.FromEngine] = []
            messages = receive(self._scheduler.idle and self._flight is None)
            begun = time.perf_counter()
            for message in messages:
                if isinstance(message, wire.Stop):
                    return
                answers += self._take(message)
            answers += self._scheduler.compiled()
            send(answers)
            self._beat(send)
            self._busy += time.perf_counter() - begun

    def _beat(self, send: Callable[[list[wire.FromEngine]], None]) -> None:
        """Launch the next step, if there is one, and commit the one under way or, without overlap, the same."""
        before, masks = self._flight, None
        try:
            if before is None:
                plan = self._scheduler.plan()
                if plan is not None and any(row.masked for row in plan.rows):
                    masks = self._filler.submit(self._scheduler.masks, plan)  # while the forward runs
                pending = self._launch(plan, None, masks)
            else:
                plan = self._scheduler.plan_ahead()
                pending = self._launch(plan, before.pending, None)
                self._commit(before, send)
            self._flight = None
            if plan is None or pending is None:
                return
            with self._at_work():
                pending.sample(*((self._scheduler.masks(plan) if masks is None else masks.result()) or ()))
            self._flight = Flight(plan, pending)
            if not self._overlap:
                self._commit(self._flight, send)
                self._flight = None
        except StepFailed as error:  # what was under way ends with the cause; the engine goes on
            self._flight = None
            send([*self._scheduler.fail_all("engine_error", str(error))])

    def _launch(self, plan: Plan | None, before: Pending | None, masks: Future[Masks | None] | None) -> Pending | None:
        if plan is None:
            return None
        try:
            with self._at_work():
                return self._hands.launch(plan, before)
        finally:
            if masks is not None:
                wait([masks])  # the scheduler is this thread's again

    def _commit(self, flight: Flight, send: Callable[[list[wire.FromEngine]], None]) -> None:
        with self._at_work():
            result = flight.pending.collect()
        send([*self._scheduler.commit(flight.plan, result)])

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The hands' time counts as the steps'; what goes wrong there is a StepFailed."""
        begun = time.perf_counter()
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            raise StepFailed(f"{type(error).__name__}: {error}") from error
        finally:
            self._stepping += time.perf_counter() - begun

    def _take(self, message: wire.ToEngine) -> list[wire.FromEngine]:
        if isinstance(message, (wire.Submit, wire.Score, wire.Embed)):
            return [*self._scheduler.add(message)]
        if isinstance(message, wire.Cancel):
            return [*self._scheduler.cancel(message.id)]
        if isinstance(message, wire.Ask):
            tree = self._scheduler.show_tree() if message.what == "tree" else None
            return [wire.Answer(message.number, self._answer(message.what), tree)]
        return []

    def _answer(self, what: str) -> dict[str, float | int | str]:
        if what == "flush_cache":
            return {"freed": self._scheduler.flush()}
        if what == "check":
            try:
                self._scheduler.check()
            except AssertionError as error:
                return {"fault": str(error)}
        return {**self._scheduler.stats(), "busy_s": self._busy, "step_s": self._stepping, "resident_bytes": resident()}
