"""The process of a runtime that this one owns: starting it, ending it, and why it has ended.

Knows: the runtime's command line, its log. Must not know: sockets, messages, the runtime's code.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from branchwork.lang.errors import RuntimeLost, RuntimeUnavailable

IPC_PATH = 100  # bytes that every platform allows in the path of a socket
LAST_WORDS = 2000  # characters of a dead runtime's log that go into an error


class Obituary:
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


def private_folder() -> str:
    """A new folder that only this user may enter, with a path short enough for a socket in it."""
    folder = tempfile.mkdtemp(prefix="branchwork-")
    if len(os.fsencode(folder)) > IPC_PATH - len("/runtime"):
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="branchwork-", dir="/tmp")
    return folder


def spawn(model: str, endpoint: str, options: dict[str, Any], log: Path, token: str) -> subprocess.Popen[bytes]:
    """The gateway of a new runtime, which writes to `log` and ends when its stdin does."""
    env = os.environ | {"BRANCHWORK_TOKEN": token}
    command = [sys.executable, "-m", "branchwork.runtime.gateway.main", "--model", model, "--endpoint", endpoint]
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        command += ["--option", f"{name}={text}"] if value is not None else []
    with log.open("wb") as out:
        # A session of its own: Ctrl-C at the terminal is for the program, which then ends the runtime itself.
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True, env=env)


def end(process: subprocess.Popen[bytes]) -> None:
    """Close the runtime's stdin (its sign to end), then insist; returns when it has ended."""
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
