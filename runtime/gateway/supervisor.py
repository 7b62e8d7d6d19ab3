"""Starts the engine process, watches it, restarts it when it dies and hands on what was in flight.

Knows: processes, the wire. Must not know: text, clients, what a request means.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from branchwork.runtime import wire

MEMORY = 600.0  # seconds after which a death no longer counts against the restarts
TAIL = 40  # lines of an engine's last words kept for the error message


class EngineDied(RuntimeError):
    """The engine could not start or died more often than allowed; code and message say why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Supervisor:
    """One engine under watch. threads: it starts no more of them.

    on_messages gets every list of events; in_flight gives the Submits and Scores to send again after a restart;
    on_loading(stage, fraction) hears of progress before the engine is ready.
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        *,
        threads: int,
        restarts: int,
        on_messages: Callable[[list[wire.FromEngine]], None],
        in_flight: Callable[[], Iterable[wire.ToEngine]],
        on_loading: Callable[[str, float], None],
    ) -> None:
        self._command = command
        self._folder = folder
        self._threads = threads
        self._restarts = restarts
        self._deaths: list[float] = []
        self._on_messages = on_messages
        self._in_flight = in_flight
        self._on_loading = on_loading
        self._lives = 0
        self._outbox: list[wire.ToEngine] = []
        self._socket: zmq.asyncio.Socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ended: asyncio.Task[int] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._words: deque[str] = deque(maxlen=TAIL)

    def send(self, message: wire.ToEngine) -> None:
        """Queue a message; those of one turn of the event loop leave as one frame."""
        self._outbox.append(message)
        if len(self._outbox) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    async def start(self) -> wire.Ready:
        """Start the engine and wait until it serves. Raises EngineDied with the engine's own words."""
        self._lives += 1
        endpoint = f"ipc://{self._folder}/engine-{self._lives}"
        if not zmq.has("ipc"):
            endpoint = "tcp://127.0.0.1:*"
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self._socket.setsockopt(option, 0)
        self._socket.bind(endpoint)
        endpoint = self._socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]
        environment = {
            **os.environ,
            "OMP_WAIT_POLICY": "passive",  # spinning threads burn their partner's time slice (benchmarks/LOG.md)
            "OMP_NUM_THREADS": str(self._threads),  # read once, when the engine imports torch
            "PYTHONUNBUFFERED": "1",
        }
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            "--endpoint",
            endpoint,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        self._listening = asyncio.create_task(self._listen(self._process))
        self._ended = asyncio.create_task(self._process.wait())
        return await self._until_ready()

    async def serve(self) -> None:
        """Deliver the engine's events until `stop`; restart it when it dies. Raises EngineDied when it keeps dying."""
        while True:
            received = await self._receive()
            if received is not None:
                self._on_messages(received)
                continue
            status = await self._dead()
            now = time.monotonic()
            self._deaths = [died for died in self._deaths if now - died < MEMORY] + [now]
            if len(self._deaths) > self._restarts:
                raise EngineDied(
                    "engine_died", f"the engine ended with status {status}; its last words:\n{self._tail()}"
                )
            print(f"gateway: engine ended with status {status}; restarting it", file=sys.stderr, flush=True)
            await self.start()
            for message in self._in_flight():
                self.send(message)

    async def stop(self) -> None:
        """End the engine process; kills it when it does not end within two seconds."""
        if self._process is None:
            return
        if self._process.returncode is None and self._process.stdin:
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), 2)
            except asyncio.TimeoutError:
                self._process.kill()
        await self._dead()

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        if self._socket is not None:
            self._socket.send(wire.encode(messages))

    async def _until_ready(self) -> wire.Ready:
        while True:
            received = await self._receive()
            if received is None:
                status = await self._dead()
                raise EngineDied("engine_died", f"the engine ended with status {status} at start:\n{self._tail()}")
            for message in received:
                if isinstance(message, wire.Ready):
                    return message
                if isinstance(message, wire.Broken):
                    await self._dead()
                    raise EngineDied(message.code, message.message)
                if isinstance(message, wire.Loading):
                    self._on_loading(message.stage, message.fraction)

    async def _receive(self) -> list[wire.FromEngine] | None:
        """The next list of messages, or None when the engine has ended and everything it sent is read."""
        assert self._socket is not None and self._ended is not None
        receiving: asyncio.Future[bytes] = asyncio.ensure_future(self._socket.recv())  # it is one already
        if not receiving.done():
            either: set[asyncio.Future[Any]] = {receiving, self._ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not receiving.done():
            await asyncio.wait({receiving}, timeout=0.2)
        if receiving.done():
            return wire.decode_from_engine(receiving.result())
        receiving.cancel()
        return None

    async def _dead(self) -> int:
        """Reap the process and close its socket; the exit status."""
        assert self._process is not None
        status = await self._process.wait()
        if self._listening is not None:
            await self._listening
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        return status

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode("utf-8", "replace").rstrip()
            self._words.append(text)
            print(text, file=sys.stderr, flush=True)

    def _tail(self) -> str:
        return "\n".join(self._words) or "(it said nothing)"
