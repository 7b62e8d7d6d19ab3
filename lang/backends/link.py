"""One connection to a gateway: a DEALER socket on the background loop, speaking lang.protocol.

Knows: sockets, messages, credit. Must not know: what programs mean, processes, the user's state object.
Only the loop's thread touches the socket and the credit. User threads put messages into the outbox; what was put there
between two turns of the loop leaves together, nodes of one branch as one message, as far as credit goes: the rest
waits in the backlog, in order, and threads that lay more wait with it. `gate` guards the outbox and the count of both.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from branchwork.lang import loop
from branchwork.lang.backend import Lost, Sink
from branchwork.lang.errors import BackendError, Refused, RuntimeLost, RuntimeUnavailable
from branchwork.lang.ir import Laid, Placed, Template, bare
from branchwork.lang.protocol import (
    MAX_FRAME,
    VERSION,
    Answer,
    Ask,
    Budget,
    Cancel,
    Captured,
    ClientMessage,
    Close,
    Credit,
    Delta,
    Done,
    Failed,
    Forget,
    Hello,
    Loading,
    ModelInfo,
    Nodes,
    Open,
    Start,
    Welcome,
    decode_gateway,
    encode,
)
from branchwork.lang.protocol import Refused as RefusedMessage

HEARTBEAT = 1000  # ms between heartbeats of the transport; it closes after 10 silent ones
PING = 2.0  # seconds between questions while programs are open, so that the gateway sees that this client lives
SILENCE = 60.0  # seconds without any message, in spite of the questions, after which the runtime counts as lost
LOOK = 0.2  # seconds between looks at an owned process
UNSENT = 4096  # nodes that may wait for credit before those who lay more have to wait too
TEMPLATES = 256  # that the runtime is to remember for this connection
Progress = Callable[[str, float], None]


@functools.lru_cache(maxsize=1)
def _context() -> zmq.asyncio.Context:
    return zmq.asyncio.Context()


_links: weakref.WeakSet[Link] = weakref.WeakSet()  # those whose socket is open, in this process


def _forked() -> None:
    _context.cache_clear()
    _links.clear()


def _at_exit() -> None:
    """Let the last Close messages leave; the gateway then frees what this process held."""
    links = list(_links)
    if links:
        loop.run(_end_all(links), timeout=2.0)
        _context().term()


async def _end_all(links: list[Link]) -> None:
    for link in links:
        link.end(Lost("closed", "The process ended."))


os.register_at_fork(after_in_child=_forked)
atexit.register(_at_exit)


@dataclass(frozen=True)
class Keys:
    """CURVE keys in Z85; without a pair of its own a client makes one up."""

    server: str
    public: str = ""
    secret: str = ""


@dataclass(slots=True)
class Traffic:
    """What has gone over a connection: bytes of messages sent and received, messages sent."""

    sent: int = 0
    received: int = 0
    messages: int = 0


class Link:
    """owner: for a runtime that this process started, tells why it has ended, or None while it runs."""

    def __init__(self, endpoint: str, keys: Keys | None = None, owner: Callable[[], str | None] | None = None) -> None:
        self.endpoint = endpoint
        self.gate = threading.Condition()
        self.lost: Lost | None = None
        self._keys, self._owner = keys, owner
        self._outbox: list[ClientMessage] = []
        self._unsent = 0  # nodes in the outbox and the backlog
        self._backlog: deque[ClientMessage] = deque()  # Open, Start, Nodes, Cancel, Close, Forget
        self._free = 0  # nodes that may be sent before more credit comes
        self._window = 0
        self._templates: dict[int, tuple[int, Template]] = {}  # by id: number at the runtime; newest last
        self._sinks: dict[int, Sink] = {}
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._pid = os.getpid()
        self._heard = time.monotonic()
        self.traffic = Traffic()

    # --- any thread

    def open(self, sink: Sink) -> int:
        """A new program's number. Raises RuntimeLost, and RuntimeUnavailable in a forked child."""
        self._check_process()
        with self.gate:
            if self.lost is not None:
                raise RuntimeLost(f"{self.lost.message}\nConnect again, or start another Runtime.")
            program = next(self._numbers)
            self._sinks[program] = sink
        return program

    def put(self, message: ClientMessage) -> None:
        with self.gate:
            self._outbox.append(message)
            first = len(self._outbox) == 1
        if first:
            loop.post(self._flush)

    def lay(self, program: int, branch: int, nodes: Sequence[Laid]) -> None:
        """Send nodes as credit allows. Of a lost runtime the sink has been told."""
        self._make_room(len(nodes))
        self.put(Nodes(program, branch, tuple(nodes)))

    def launch(
        self, program: int, template: Template, arguments: Sequence[str], stream: bool, budget: Budget | None
    ) -> None:
        """Send a whole program; its template goes along the first time."""
        self._make_room(len(template.nodes))
        with self.gate:
            known = self._templates.pop(id(template), None)
            number = next(self._numbers) if known is None else known[0]
            self._templates[id(template)] = (number, template)
            oldest = self._templates.pop(next(iter(self._templates))) if len(self._templates) > TEMPLATES else None
            define = tuple(Placed(p.branch, bare(p.node)) for p in template.nodes) if known is None else ()
            size = len(template.nodes)
            self.put(Start(program, number, size, tuple(arguments), define, stream, budget))
            if oldest is not None:
                self.put(Forget(oldest[0]))

    def _make_room(self, nodes: int) -> None:
        """Wait while too many nodes are unsent; a thread in which an event loop runs must not."""
        with self.gate:
            if not loop.runs_here():
                self.gate.wait_for(lambda: self._unsent < UNSENT or self.lost is not None)
            self._unsent += nodes

    def ask(self, what: str, timeout: float) -> dict[str, object]:
        """Raises RuntimeLost, and BackendError for an answer that is an error or does not come in time."""
        self._check_process()
        try:
            answer = loop.run(self._ask(what), timeout)
        except TimeoutError:
            raise BackendError(f"the runtime at {self.endpoint} did not answer {what!r} within {timeout:g} s") from None
        if answer.error:
            raise BackendError(f"the runtime at {self.endpoint} could not answer {what!r}: {answer.error}")
        return answer.value

    def forget_soon(self, program: int) -> None:
        """Close a program; takes no lock here, so a finalizer may call it."""
        loop.post(self._forget, program)

    def close_soon(self) -> None:
        if os.getpid() == self._pid:
            loop.post(self.end, Lost("closed", f"The connection to {self.endpoint} was closed."))

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeUnavailable(
                f"the connection to {self.endpoint} belongs to a parent process; connect again here: "
                f"bw.set_default_backend(bw.connect({self.endpoint!r}))"
            )

    # --- the loop's thread

    async def start(self, token: str, timeout: float, progress: Progress | None) -> ModelInfo:
        """Say hello and wait until the runtime is ready; timeout counts from its last sign of life.

        Raises RuntimeUnavailable, Refused; RuntimeLost when an owned runtime ends.
        """
        try:
            self._socket = self._dial()
        except zmq.ZMQError as error:
            raise RuntimeUnavailable(
                f"{self.endpoint!r} cannot be connected to ({error}); give an endpoint like ipc:///path/to/socket "
                "or tcp://127.0.0.1:5555, and keys in Z85 if any"
            ) from None
        self._socket.send(encode(Hello(VERSION, token, f"python {os.getpid()}")))
        try:
            welcome = await self._welcome(timeout, progress)
        except BaseException:
            self.end(Lost("closed", f"The connection to {self.endpoint} was never ready."))
            raise
        self._free = self._window = welcome.window
        while await self._events.poll(0):  # breaks before the welcome are over and done with
            await recv_monitor_message(self._events)
        here = asyncio.get_running_loop()
        self._tasks = [here.create_task(work) for work in (self._listen(), self._monitor(), self._watch())]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)
        return welcome.model

    def _dial(self) -> zmq.asyncio.Socket:
        socket = _context().socket(zmq.DEALER)
        socket.linger = 200  # ms for the last Close messages
        socket.sndhwm = socket.rcvhwm = 0  # credit bounds what is under way
        socket.maxmsgsize = 4 * MAX_FRAME
        socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEAT, 10 * HEARTBEAT
        if self._keys is not None:
            public, secret = (self._keys.public.encode(), self._keys.secret.encode())
            if not public:
                public, secret = zmq.curve_keypair()
            socket.curve_publickey, socket.curve_secretkey = public, secret
            socket.curve_serverkey = self._keys.server.encode()
        try:
            socket.connect(self.endpoint)
        except zmq.ZMQError:
            socket.close(0)
            raise
        self._events = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        _links.add(self)
        return socket

    async def _welcome(self, timeout: float, progress: Progress | None) -> Welcome:
        until = time.monotonic() + timeout
        while True:
            if not await self._socket.poll(int(LOOK * 1000)):
                ended = self._owner() if self._owner is not None else None
                if ended is not None and not await self._socket.poll(0):
                    raise RuntimeLost(ended)
                if time.monotonic() > until:
                    raise RuntimeUnavailable(self._nobody(timeout))
                continue
            try:
                message = decode_gateway(await self._socket.recv())
            except msgspec.DecodeError as error:
                raise RuntimeUnavailable(
                    f"what answers at {self.endpoint} does not speak this version of Branchwork's protocol "
                    f"({VERSION}): {error}; check the endpoint and the versions on both sides"
                ) from None
            match message:
                case Welcome(version=version) if version != VERSION:
                    raise RuntimeUnavailable(
                        f"the runtime at {self.endpoint} speaks protocol version {version}, this client {VERSION}; "
                        "install the same Branchwork version on both sides"
                    )
                case Welcome():
                    return message
                case RefusedMessage(code, why):
                    raise Refused(code, why)
                case Loading(stage, fraction):
                    until = time.monotonic() + timeout
                    if progress is not None:
                        progress(stage, fraction)

    def _nobody(self, timeout: float) -> str:
        keys = ", that the keys are the runtime's" if self._keys is not None else ""
        return (
            f"nobody answered at {self.endpoint} within {timeout:g} s; check that a runtime serves there{keys} "
            "and that nothing blocks the way, or use Runtime() to start one in this program"
        )

    async def _listen(self) -> None:
        while True:
            frame = await self._socket.recv()
            self._heard = time.monotonic()
            self.traffic.received += len(frame)
            try:
                self._deliver(frame)
            except msgspec.DecodeError as error:
                self.end(Lost("runtime_lost", f"The runtime at {self.endpoint} sent an unreadable message: {error}."))

    def _deliver(self, frame: bytes) -> None:
        message = decode_gateway(frame)
        match message:
            case Delta() | Captured() | Done() | Failed():
                sink = self._sinks.get(message.program)
                if sink is not None:
                    sink(message)
            case Credit(nodes):
                self._credit(nodes)
            case Answer(number):
                waiting = self._answers.pop(number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case RefusedMessage(code, why):
                self.end(Lost("runtime_lost", f"The runtime at {self.endpoint} ended the connection: {code}: {why}."))

    def _credit(self, nodes: int) -> None:
        self._free += nodes
        self._drain()

    async def _monitor(self) -> None:
        await recv_monitor_message(self._events)
        if self._owner is not None:
            await asyncio.sleep(LOOK)  # the socket goes before the process: then its last words are there
        ended = self._owner() if self._owner is not None else None
        self.end(Lost("runtime_lost", ended or f"The runtime at {self.endpoint} closed the connection or ended."))

    async def _watch(self) -> None:
        """Look at an owned process; tell the gateway that this client lives, and notice when it does not answer."""
        asked = time.monotonic()
        while True:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            ended = self._owner() if self._owner is not None else None
            if ended is not None:
                self.end(Lost("runtime_lost", ended))
            elif self._sinks and now - asked > PING:
                asked = now
                self.put(Ask(next(self._numbers), "ping"))
            elif not self._sinks:
                self._heard = now
            elif now - self._heard > SILENCE:
                self.end(Lost("runtime_lost", f"The runtime at {self.endpoint} has been silent for {SILENCE:g} s."))

    async def _ask(self, what: str) -> Answer:
        if self.lost is not None:
            raise RuntimeLost(self.lost.message)
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        self.put(Ask(number, what))
        try:
            return await self._answers[number]
        finally:
            self._answers.pop(number, None)

    def _forget(self, program: int) -> None:
        if self._sinks.pop(program, None) is not None:
            self.put(Close(program))

    def _flush(self) -> None:
        with self.gate:
            messages, self._outbox = self._outbox, []
        for message in _merged(messages) if self.lost is None else ():
            match message:
                case Nodes() | Start() | Open() | Forget():
                    self._backlog.append(message)
                case Cancel(program, None) | Close(program):
                    self._drain()
                    self._forsake(program)
                    self._send(message)
                case Cancel(program):
                    self._drain()
                    self._send(message)
                    if any(getattr(later, "program", None) == program for later in self._backlog):
                        self._backlog.append(message)  # again after the nodes that it is to stop as well
                case _:
                    self._send(message)
        self._drain()

    def _forsake(self, program: int) -> None:
        """Nobody wants what is still unsent of a program."""
        for message in list(self._backlog) if self._backlog else ():
            if isinstance(message, Start) and message.program == program and message.define:
                self._backlog.append(Close(program))  # others are started from what it defines
            elif getattr(message, "program", None) == program:
                self._backlog.remove(message)
                self._sent(_cost(message))

    def _drain(self) -> None:
        """Send from the backlog as far as credit goes."""
        while self._backlog and self.lost is None:
            message = self._backlog[0]
            cost = _cost(message)
            if cost and self._free <= 0:
                return
            if isinstance(message, Nodes) and cost > self._free:
                now, later = message.nodes[: self._free], message.nodes[self._free :]
                self._backlog[0] = msgspec.structs.replace(message, nodes=later)
                message, cost = msgspec.structs.replace(message, nodes=now), self._free
            else:
                self._backlog.popleft()
            self._free -= cost
            self._send(message)
            self._sent(cost)

    def _sent(self, nodes: int) -> None:
        if nodes:
            with self.gate:
                self._unsent -= nodes
                self.gate.notify_all()

    def _send(self, message: ClientMessage) -> None:
        try:
            frame = encode(message)
        except (ValueError, TypeError, NotImplementedError, OverflowError) as error:
            self._unsendable(message, "not_sent", f"it cannot be written as a message: {error}")
            return
        if len(frame) > MAX_FRAME:
            figure = f"it takes {len(frame)} bytes, the limit is {MAX_FRAME}; split its text into several"
            self._unsendable(message, "too_large", figure)
        elif isinstance(message, Start) and message.size > self._window:
            figure = (
                f"it has {message.size} nodes, this runtime takes {self._window} at once; run it without compiling it"
            )
            self._unsendable(message, "too_large", figure)
        else:
            self._socket.send(frame)
            self.traffic.sent += len(frame)
            self.traffic.messages += 1

    def _unsendable(self, message: ClientMessage, code: str, why: str) -> None:
        """Whoever waits for what cannot be sent is told; of several nodes, those that can be sent are."""
        self._free += _cost(message)
        match message:
            case Nodes(nodes=nodes) if len(nodes) > 1:
                half = len(nodes) // 2
                for part in (nodes[:half], nodes[half:]):
                    self._free -= len(part)
                    self._send(msgspec.structs.replace(message, nodes=part))
            case Nodes(program, branch, nodes):
                self._socket.send(encode(Cancel(program, branch)))
                self._tell(Failed(program, branch, nodes[0].id, code, why))
            case Start(program, template):
                with self.gate:
                    self._templates = {key: known for key, known in self._templates.items() if known[0] != template}
                self._tell(Failed(program, 0, 0, code, why))
            case _:
                raise TypeError(why)

    def _tell(self, failed: Failed) -> None:
        if failed.program in self._sinks:
            self._sinks[failed.program](failed)

    def end(self, why: Lost) -> None:
        """The connection is over: everybody who waits is told, the socket goes."""
        if self.lost is not None:
            return
        if why.code == "closed":
            with self.gate:
                self._outbox += [Close(program) for program in self._sinks]
            self._flush()
        with self.gate:
            self.lost = why
            self.gate.notify_all()
        for sink in list(self._sinks.values()):
            sink(why)
        self._sinks.clear()
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(RuntimeLost(why.message))
        for task in self._tasks:
            task.cancel()
        self._socket.disable_monitor()
        self._events.close(0)
        self._socket.close()
        _links.discard(self)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A fault of this client must not leave anybody waiting."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.end(Lost("runtime_lost", f"The client failed on {self.endpoint}: {type(error).__name__}: {error}."))


def _cost(message: ClientMessage) -> int:
    """Nodes that a message puts under way."""
    match message:
        case Nodes(nodes=nodes):
            return len(nodes)
        case Start(size=size):
            return size
    return 0


def _merged(messages: list[ClientMessage]) -> list[ClientMessage]:
    """Neighbouring Nodes of the same branch as one; the order stays."""
    merged: list[ClientMessage] = []
    for message in messages:
        last = merged[-1] if merged else None
        if (
            isinstance(message, Nodes)
            and isinstance(last, Nodes)
            and (message.program, message.branch) == (last.program, last.branch)
        ):
            merged[-1] = Nodes(last.program, last.branch, (*last.nodes, *message.nodes))
        else:
            merged.append(message)
    return merged
