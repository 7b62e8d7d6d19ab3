"""lang.protocol over a ROUTER socket to programs.host: who is connected, what they may have under way, who has gone.

Knows: sockets, connections, credit. Must not know: how nodes are executed, ids, engines.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import zmq
import zmq.asyncio
import zmq.auth
import zmq.auth.asyncio

from branchwork.lang import protocol
from branchwork.lang.ir import Laid, Placed
from branchwork.lang.protocol import Budget, GatewayMessage, ModelInfo, is_private
from branchwork.runtime.config import ConfigError

MAX_TEMPLATES = 1024  # of one connection
PULSE = 0.5  # seconds between two signs of life to each client; a client that cannot be reached is dropped


class Programs(Protocol):
    """What the server needs of programs.host; a program is named by its connection and the client's number."""

    def open(self, connection: bytes, program: int, stream: bool, budget: Budget | None) -> None: ...
    def start(self, connection: bytes, program: int, nodes: Sequence[Placed], arguments: Sequence[str]) -> None: ...
    def feed(self, connection: bytes, program: int, branch: int, nodes: tuple[Laid, ...]) -> None: ...
    def cancel(self, connection: bytes, program: int, branch: int | None) -> None: ...
    def close(self, connection: bytes, program: int) -> None: ...
    def drop(self, connection: bytes) -> None: ...
    async def ask(self, what: str) -> dict[str, float | int | str]: ...


def bind(endpoint: str, curve_keys: Path | None) -> zmq.asyncio.Socket:
    """A bound ROUTER socket. Anything but ipc or loopback needs CURVE keys (ConfigError); zmq.ZMQError when taken.

    curve_keys: a folder with server.key_secret and, in clients/, the public keys of those who may connect.
    """
    if not curve_keys and not is_private(endpoint):
        raise ConfigError(
            f"{endpoint} can be reached from other machines; give --curve-keys (see the README), or bind 127.0.0.1 or ipc://"
        )
    socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a client that has gone raises; that is how we notice
    socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_FRAME)
    socket.setsockopt(zmq.SNDHWM, 100_000)
    socket.setsockopt(zmq.RCVHWM, 1000)
    socket.setsockopt(zmq.LINGER, 500)
    if curve_keys:
        authenticator = zmq.auth.asyncio.AsyncioAuthenticator(zmq.asyncio.Context.instance())
        authenticator.start()
        authenticator.configure_curve(domain="*", location=str(curve_keys / "clients"))
        public, secret = zmq.auth.load_certificate(curve_keys / "server.key_secret")
        socket.curve_publickey, socket.curve_secretkey, socket.curve_server = public, secret, True
    if endpoint.startswith("ipc://"):
        previous = os.umask(0o077)
        try:
            socket.bind(endpoint)
        finally:
            os.umask(previous)
    else:
        socket.bind(endpoint)
    return socket


class Loaded(Protocol):
    """What the server needs of the gateway's models."""

    def listed(self) -> list[dict[str, Any]]: ...
    def forget(self, name: str) -> bool: ...


class Server:
    """All clients of one gateway. Before `open` it answers hellos with what is being loaded."""

    def __init__(self, socket: zmq.asyncio.Socket, token: str) -> None:
        self._socket = socket
        self._token = token
        self.models: Loaded | None = None
        self._greeted: dict[bytes, bool] = {}  # connection -> has been welcomed
        self._under_way: dict[bytes, int] = {}  # connection -> nodes it may not send more of
        self._templates: dict[bytes, dict[int, tuple[Placed, ...]]] = {}
        self._programs: Programs | None = None
        self._model: ModelInfo | None = None
        self._window = 0
        self._refused: protocol.Refused | None = None
        self._stage = protocol.Loading("starting")
        self._asks: set[asyncio.Task[None]] = set()
        self.stopped = asyncio.Event()

    @property
    def endpoint(self) -> str:
        return self._socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]

    def loading(self, stage: str, fraction: float) -> None:
        self._stage = protocol.Loading(stage, fraction)
        for connection in list(self._greeted):
            self._send(connection, self._stage)

    def open(self, programs: Programs, model: ModelInfo, window: int) -> None:
        """From here on programs run. Everybody who said hello is welcomed."""
        self._programs, self._model, self._window = programs, model, window
        for connection in list(self._greeted):
            self._welcome(connection)

    def refuse(self, code: str, message: str) -> None:
        """The runtime cannot serve: everybody hears why, now and at any later hello."""
        self._refused = protocol.Refused(code, message)
        for connection in list(self._greeted):
            self._send(connection, self._refused)

    def emit(self, connection: bytes, message: GatewayMessage) -> None:
        """programs.host speaks to a client; Credit is booked on the way."""
        if isinstance(message, protocol.Credit):
            self._under_way[connection] = self._under_way.get(connection, 0) - message.nodes
        self._send(connection, message)

    async def receive(self) -> None:
        """Take messages until cancelled."""
        pulse = asyncio.create_task(self._pulse())
        try:
            while True:
                connection, *frames = await self._socket.recv_multipart()
                for frame in frames:
                    self._take(connection, frame)
        finally:
            pulse.cancel()

    def close(self) -> None:
        self._socket.close()

    def _take(self, connection: bytes, frame: bytes) -> None:
        try:
            message = protocol.decode_client(frame)
        except msgspec.DecodeError as error:
            self._refuse_one(connection, "bad_message", f"not a message of protocol {protocol.VERSION}: {error}")
            return
        if isinstance(message, protocol.Hello):
            self._greet(connection, message)
        elif not self._greeted.get(connection) or self._programs is None:
            self._refuse_one(connection, "no_hello", "the first message of a connection must be a Hello")
        elif isinstance(message, protocol.Open):
            self._programs.open(connection, message.program, message.stream, message.budget)
        elif isinstance(message, protocol.Start):
            self._start(self._programs, connection, message)
        elif isinstance(message, protocol.Forget):
            self._templates.get(connection, {}).pop(message.template, None)
        elif isinstance(message, protocol.Nodes):
            self._feed(self._programs, connection, message)
        elif isinstance(message, protocol.Cancel):
            self._programs.cancel(connection, message.program, message.branch)
        elif isinstance(message, protocol.Close):
            self._programs.close(connection, message.program)
        elif isinstance(message, protocol.Ask):
            task = asyncio.create_task(self._ask(self._programs, connection, message))
            self._asks.add(task)
            task.add_done_callback(self._asks.discard)

    def _feed(self, programs: Programs, connection: bytes, message: protocol.Nodes) -> None:
        if not self._book(connection, len(message.nodes)):
            return
        try:
            programs.feed(connection, message.program, message.branch, message.nodes)
        except ValueError as error:
            self._refuse_one(connection, "bad_message", str(error))

    def _start(self, programs: Programs, connection: bytes, message: protocol.Start) -> None:
        templates = self._templates.setdefault(connection, {})
        if message.define:
            if len(templates) >= MAX_TEMPLATES:
                text = f"{len(templates)} templates; this runtime keeps {MAX_TEMPLATES} a connection"
                self._refuse_one(connection, "templates", text)
                return
            templates[message.template] = message.define
        nodes = templates.get(message.template, ())
        if len(nodes) != message.size:
            text = f"template {message.template} has {len(nodes)} nodes here, not {message.size}; define it first"
            self._refuse_one(connection, "bad_message", text)
        elif self._book(connection, len(nodes)):
            try:
                programs.open(connection, message.program, message.stream, message.budget)
                programs.start(connection, message.program, nodes, message.arguments)
            except (ValueError, IndexError) as error:
                self._refuse_one(connection, "bad_message", str(error))

    def _book(self, connection: bytes, nodes: int) -> bool:
        under_way = self._under_way.get(connection, 0) + nodes
        if under_way > 2 * self._window:  # an honest client never comes here: it waits for credit
            self._refuse_one(connection, "window", f"{under_way} nodes under way; this runtime allows {self._window}")
            return False
        self._under_way[connection] = under_way
        return True

    async def _ask(self, programs: Programs, connection: bytes, message: protocol.Ask) -> None:
        if message.what == "shutdown":
            self._send(connection, protocol.Answer(message.number))
            self.stopped.set()
            return
        what, _, name = message.what.partition(" ")
        if self.models is not None and what in ("models", "stop"):
            value = {"models": self.models.listed()} if what == "models" else {"stopped": self.models.forget(name)}
            self._send(connection, protocol.Answer(message.number, value))
            return
        try:
            answer = protocol.Answer(message.number, dict(await programs.ask(message.what)))
        except (ValueError, TimeoutError, asyncio.TimeoutError) as error:
            answer = protocol.Answer(message.number, error=str(error) or "the engine did not answer in time")
        self._send(connection, answer)

    def _greet(self, connection: bytes, hello: protocol.Hello) -> None:
        if self._refused is not None:
            self._send(connection, self._refused)
        elif hello.version != protocol.VERSION:
            text = f"client speaks protocol {hello.version}, this runtime {protocol.VERSION}; install matching versions"
            self._refuse_one(connection, "version", text)
        elif not hmac.compare_digest(hello.token.encode(), self._token.encode()):
            self._refuse_one(connection, "token", "the token is wrong; give the one the runtime was started with")
        elif self._programs is None:
            self._greeted[connection] = False
            self._send(connection, self._stage)
        else:
            self._welcome(connection)

    def _welcome(self, connection: bytes) -> None:
        assert self._model is not None
        self._greeted[connection] = True
        self._send(connection, protocol.Welcome(protocol.VERSION, self._model, self._window))

    def _refuse_one(self, connection: bytes, code: str, message: str) -> None:
        self._send(connection, protocol.Refused(code, message))
        self._forget(connection)

    def _forget(self, connection: bytes) -> None:
        self._greeted.pop(connection, None)
        self._under_way.pop(connection, None)
        self._templates.pop(connection, None)
        if self._programs is not None:
            self._programs.drop(connection)

    def _send(self, connection: bytes, message: GatewayMessage) -> None:
        sending = asyncio.ensure_future(self._socket.send_multipart([connection, protocol.encode(message)]))
        if sending.done():
            self._sent(connection, sending)
        else:
            sending.add_done_callback(lambda done: self._sent(connection, done))

    def _sent(self, connection: bytes, done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and isinstance(done.exception(), zmq.ZMQError) and connection in self._greeted:
            self._forget(connection)  # EHOSTUNREACH: the client has gone

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(PULSE)
            for connection in list(self._greeted):
                self._send(connection, protocol.Credit(0))
