"""THE loop of an engine process, and its end of the pipe to the gateway.

Knows: the scheduler's verbs, what hands do with a plan, messages. Must not know: Config, models, clients, programs.
The loop has three beats: plan what one step computes, run it, commit what came of it.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import zmq

from branchwork.runtime import wire
from branchwork.runtime.execution.runner import Pending
from branchwork.runtime.plan import Plan, Result
from branchwork.runtime.scheduler.scheduler import Scheduler

MAX_INBOX = 10_000  # messages taken between two steps: a flood of requests may not starve the running ones


class Hands(Protocol):
    """What the loop needs of execution: start a step; its Pending gives the Result."""

    def launch(self, plan: Plan) -> Pending: ...


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
    """THE loop. Nothing that a request asks for may raise in here; a failed step fails its requests and goes on."""

    def __init__(self, scheduler: Scheduler, hands: Hands) -> None:
        self._scheduler = scheduler
        self._hands = hands
        self._filler = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._busy = self._stepping = 0.0  # seconds: of the loop without its waiting, and of the steps in it

    def run(
        self, receive: Callable[[bool], list[wire.ToEngine]], send: Callable[[list[wire.FromEngine]], None]
    ) -> None:
        """Serve until a Stop message. Blocks in `receive` only when there is nothing to compute."""
        while True:
            answers: list[wire.FromEngine] = []
            messages = receive(self._scheduler.idle)
            begun = time.perf_counter()
            for message in messages:
                if isinstance(message, wire.Stop):
                    return
                answers += self._take(message)
            answers += self._scheduler.compiled()
            send(answers)
            plan = self._scheduler.plan()
            if plan is not None:
                send(self._execute(plan))
            self._busy += time.perf_counter() - begun

    def _execute(self, plan: Plan) -> list[wire.FromEngine]:
        begun = time.perf_counter()
        try:
            result = self._step(plan)
        except Exception as error:  # the step's requests end with the cause; the engine and its other requests go on
            traceback.print_exc()
            return [*self._scheduler.fail_all("engine_error", f"{type(error).__name__}: {error}")]
        self._stepping += time.perf_counter() - begun
        return [*self._scheduler.commit(plan, result)]

    def _step(self, plan: Plan) -> Result:
        """Run a plan; the masks of constrained rows are filled while the forward runs, others cost nothing."""
        if not any(row.masked for row in plan.rows):
            return self._hands.launch(plan).sample().collect()
        filling = self._filler.submit(self._scheduler.masks, plan)
        try:
            pending = self._hands.launch(plan)
        finally:
            masks = filling.result()
        return pending.sample(*(masks or ())).collect()

    def _take(self, message: wire.ToEngine) -> list[wire.FromEngine]:
        if isinstance(message, (wire.Submit, wire.Score)):
            return [*self._scheduler.add(message)]
        if isinstance(message, wire.Cancel):
            return [*self._scheduler.cancel(message.id)]
        if isinstance(message, wire.Ask):
            return [wire.Answer(message.number, self._answer(message.what))]
        return []

    def _answer(self, what: str) -> dict[str, float | int | str]:
        if what == "flush_cache":
            return {"freed": self._scheduler.flush()}
        if what == "check":
            try:
                self._scheduler.check()
            except AssertionError as error:
                return {"fault": str(error)}
        return {**self._scheduler.stats(), "busy_s": self._busy, "step_s": self._stepping}
