"""Processes of benchmarks/peers.py: started, spoken to, and ended whatever happens.

Knows: subprocesses, ports of loopback. Must not know: models, workloads, what the processes do.
Each runs in a session of its own, so that Ctrl-C reaches this script first, which then ends them all.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Missing(RuntimeError):
    """A peer that cannot run here; the message says why and how to get it."""


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def child(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is over when the block is: asked to end first, then killed."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Lines:
    """Questions and answers as JSON lines over a process's pipes. Raises Missing when it has ended."""

    def __init__(self, process: subprocess.Popen[str], errors: Any) -> None:
        self._process, self._errors = process, errors

    def ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; reading says why
        return self.read()

    def read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise Missing(f"the process ended with {self._process.returncode}: ...{self._errors.read()[-600:]}")
        return json.loads(line)
