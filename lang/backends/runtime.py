"""Our own runtime as a backend: connect to one that serves, or start one for this program.

Knows: endpoints, keys, the runtime's command line. Must not know: the runtime's code, messages' contents.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq
import zmq.auth

from branchwork.lang import loop
from branchwork.lang.backend import Session, Sink, refuse_pictures
from branchwork.lang.backends.link import Keys, Link
from branchwork.lang.errors import BackendError, Refused, RuntimeLost, RuntimeStartError, RuntimeUnavailable
from branchwork.lang.ir import Laid, Node, Template
from branchwork.lang.protocol import Budget, Cancel, ChatFrames, ModelInfo, Open, is_private

IPC_PATH = 100  # bytes that every platform allows in the path of a socket
Stage = Callable[[str, float], None]
LAST_WORDS = 2000  # characters of a dead runtime's log that go into an error


class RuntimeBackend:
    """Programs run on the runtime behind `link`. Made by connect() and Runtime()."""

    def __init__(self, link: Link, model: ModelInfo) -> None:
        self.model = model
        self._link = link
        self._finalizer = weakref.finalize(self, link.close_soon)

    @property
    def endpoint(self) -> str:
        return self._link.endpoint

    @property
    def frames(self) -> ChatFrames:
        return self.model.frames

    def open(self, sink: Sink, stream: bool, budget: Budget | None = None, speculate: int | None = None) -> Session:
        """Raises RuntimeLost when the connection is over."""
        return _RuntimeSession(self._link, self._link.open(sink), stream, budget)

    def accept(self, node: Node) -> None:
        refuse_pictures(node, self.model)

    def stats(self, timeout: float = 10.0) -> dict[str, Any]:
        """The runtime's counters. Raises RuntimeLost, BackendError."""
        return self._link.ask("stats", timeout)

    def flush_cache(self, timeout: float = 60.0) -> dict[str, Any]:
        """Drop every cached prefix that nobody uses. Raises RuntimeLost, BackendError."""
        return self._link.ask("flush_cache", timeout)

    def ask(self, what: str, timeout: float = 10.0) -> dict[str, Any]:
        """Any question the runtime answers (ping, stats, check, flush_cache). Raises RuntimeLost, BackendError."""
        return self._link.ask(what, timeout)

    def close(self) -> None:
        """End the connection; programs that still run on it fail with code closed."""
        self._finalizer()


class _RuntimeSession:
    """What opens the program on the wire is its first message: Open before Nodes, or Start for all of it."""

    def __init__(self, link: Link, program: int, stream: bool, budget: Budget | None) -> None:
        self._link, self._program = link, program
        self._stream, self._budget = stream, budget
        self._begun = False

    def lay(self, branch: int, nodes: Sequence[Laid]) -> None:
        if not self._begun:
            self._begun = True
            self._link.put(Open(self._program, self._stream, self._budget))
        self._link.lay(self._program, branch, nodes)

    def start(self, template: Template, arguments: Sequence[str]) -> None:
        self._begun = True
        self._link.launch(self._program, template, arguments, self._stream, self._budget)

    def cancel(self, branch: int | None) -> None:
        self._link.put(Cancel(self._program, branch))

    def close(self) -> None:
        self._link.forget_soon(self._program)


def connect(
    endpoint: str,
    *,
    token: str = "",
    timeout: float = 10.0,
    curve_keys: str | Path = "",
) -> RuntimeBackend:
    """Connect to a runtime that serves at `endpoint` (ipc://path, tcp://host:port).

    token: the runtime's shared secret on loopback TCP. curve_keys: a folder with the runtime's server.key and this
    client's client.key_secret, as `branchwork keys` writes them; needed for any other machine.
    timeout: seconds without a sign of life. Raises RuntimeUnavailable, Refused.
    """
    if not curve_keys and not is_private(endpoint):
        raise Refused(
            "unencrypted",
            f"{endpoint} leaves this machine and would go unencrypted; pass curve_keys= (the folder with the runtime's "
            "CURVE keys), or reach it through a tunnel to 127.0.0.1",
        )
    link = Link(endpoint, _read_keys(Path(curve_keys)) if curve_keys else None)
    try:
        return RuntimeBackend(link, loop.run(link.start(token, timeout, None)))
    except Refused as no:
        raise Refused(no.code, f"{no.reason} (said by the runtime at {endpoint})") from None


def _read_keys(folder: Path) -> Keys:
    """Raises Refused naming the file that is missing or no key."""
    try:
        server, _ = zmq.auth.load_certificate(folder / "server.key")
        public, secret = zmq.auth.load_certificate(folder / "client.key_secret")
    except (OSError, ValueError) as error:
        raise Refused("keys", f"{folder} lacks usable CURVE keys ({error}); `branchwork keys` writes them") from None
    return Keys(server.decode(), public.decode(), (secret or b"").decode())


class Runtime:
    """A runtime of `model`, started by this program and ended with it.

    endpoint: where it listens; by default a socket in a folder that only this user can enter, else loopback TCP with a
    secret that both sides know (port * takes a free one). options are the runtime's own (page_size=16, ...) and are
    handed on as name=value. progress: True prints loading stages, a function hears (stage, fraction).
    start_timeout: seconds without a sign of life while it loads. Raises RuntimeStartError with the runtime's own words.
    """

    def __init__(
        self,
        model: str = "sapling",
        *,
        endpoint: str = "",
        progress: bool | Stage = False,
        start_timeout: float = 120.0,
        **options: Any,
    ) -> None:
        folder = Path(_private_folder())
        ipc = f"ipc://{folder}/runtime"
        endpoint = endpoint or (ipc if zmq.has("ipc") else "tcp://127.0.0.1:*")
        if not is_private(endpoint):
            raise Refused("unencrypted", f"{endpoint} is open to other machines; a runtime of one's own needs loopback")
        token = "" if endpoint == ipc else secrets.token_hex(16)
        self._process = _spawn(model, endpoint, options, folder / "log", token)
        ended = _Obituary(self._process, folder / "log")
        link = Link(endpoint, owner=ended)
        self._finalizer = weakref.finalize(self, _end, os.getpid(), self._process, link, folder)
        try:
            if endpoint.endswith(":*"):
                link.endpoint = ended.listening(start_timeout)
            say = _print_stage if progress is True else progress or None
            info = loop.run(link.start(token, start_timeout, say))
        except BackendError as error:
            said = "" if isinstance(error, (Refused, RuntimeLost)) else ended.last_words()
            self.shutdown()
            why = f"{error.code}: {error.reason}" if isinstance(error, Refused) else f"{error}{said}"
            raise RuntimeStartError(f"the runtime for model {model!r} did not start: {why}") from None
        except BaseException:
            self.shutdown()
            raise
        self._backend = RuntimeBackend(link, info)

    @property
    def endpoint(self) -> str:
        return self._backend.endpoint

    @property
    def model(self) -> ModelInfo:
        return self._backend.model

    @property
    def frames(self) -> ChatFrames:
        return self._backend.frames

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self, sink: Sink, stream: bool, budget: Budget | None = None, speculate: int | None = None) -> Session:
        return self._backend.open(sink, stream, budget, speculate)

    def accept(self, node: Node) -> None:
        self._backend.accept(node)

    def stats(self) -> dict[str, Any]:
        """The runtime's counters. Raises RuntimeLost, BackendError."""
        return self._backend.stats()

    def flush_cache(self) -> dict[str, Any]:
        """Drop every cached prefix that nobody uses. Raises RuntimeLost, BackendError."""
        return self._backend.flush_cache()

    def check(self) -> dict[str, Any]:
        """Let the runtime prove its own books; `fault` in the answer says what does not add up."""
        return self._backend.ask("check")

    def shutdown(self) -> None:
        """End the runtime and wait for it; programs that still run on it fail. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


class _Obituary:
    """Tells why an owned process has ended, or None while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def __call__(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        return f"The runtime (process {self._process.pid}) {how}.{self.last_words()}"

    def listening(self, timeout: float) -> str:
        """The endpoint that it says it took. Raises RuntimeLost when it ends first, RuntimeUnavailable on timeout."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            said = re.search(r"listening on (\S+)\n", self._log.read_text(errors="replace"))
            if said is not None:
                return said[1]
            words = self()
            if words is not None:
                raise RuntimeLost(words)
            time.sleep(0.05)
        raise RuntimeUnavailable(f"it did not say within {timeout:g} s where it listens")

    def last_words(self) -> str:
        text = self._log.read_text(errors="replace").strip() if self._log.exists() else ""
        return f" Its last words:\n{text[-LAST_WORDS:]}" if text else ""


def _private_folder() -> str:
    """A new folder that only this user may enter, with a path short enough for a socket in it."""
    folder = tempfile.mkdtemp(prefix="branchwork-")
    if len(os.fsencode(folder)) > IPC_PATH - len("/runtime"):
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="branchwork-", dir="/tmp")
    return folder


def _spawn(model: str, endpoint: str, options: dict[str, Any], log: Path, token: str) -> subprocess.Popen[bytes]:
    env = os.environ | {"BRANCHWORK_TOKEN": token}
    command = [sys.executable, "-m", "branchwork.runtime.gateway.main", "--model", model, "--endpoint", endpoint]
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        command += ["--option", f"{name}={text}"] if value is not None else []
    with log.open("wb") as out:
        # A session of its own: Ctrl-C at the terminal is for the program, which then ends the runtime itself.
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True, env=env)


def _end(parent: int, process: subprocess.Popen[bytes], link: Link, folder: Path) -> None:
    """Close the connection, then the runtime's stdin (its sign to end), then insist. Nothing in a forked child."""
    if os.getpid() != parent:
        return
    link.close_soon()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            process.stdin.close()
    for insist in (process.terminate, process.kill):
        try:
            process.wait(5)
            break
        except subprocess.TimeoutExpired:
            insist()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _print_stage(stage: str, fraction: float) -> None:
    print(f"branchwork: {stage} {fraction:.0%}", file=sys.stderr, flush=True)
