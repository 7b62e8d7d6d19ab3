"""A `branchwork serve` process of a test's own, as a person starts one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import psutil


class Serving(NamedTuple):
    """A running server. url: where HTTP is; log: what it has written to standard error from then on."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def engine(self) -> psutil.Process:
        """Its engine's process."""
        (engine,) = psutil.Process(self.process.pid).children()
        return engine


def serving(
    folder: Path, *options: str, environment: Mapping[str, str] | None = None, models: Sequence[str] = ()
) -> Iterator[Serving]:
    """A server on a free port until the test is done with it; then it has to end well. models: before the options."""
    command = [sys.executable, "-m", "branchwork", "serve", *models, "--port", "0", "--endpoint", f"ipc://{folder}/s"]
    log = folder / "log"
    with log.open("w") as out, log.open() as written:
        with subprocess.Popen(
            [*command, *options], stderr=out, text=True, env={**os.environ, **(environment or {})}
        ) as process:
            try:
                yield Serving(_address(process, written), process, log)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=30)
        assert process.returncode == 0, log.read_text()


def _address(process: subprocess.Popen[str], written: IO[str]) -> str:
    so_far = ""
    while "HTTP at " not in so_far or not so_far.endswith("\n"):
        assert process.poll() is None, f"the server ended: {so_far}"
        line = written.readline()
        so_far += line
        if not line:
            time.sleep(0.02)
    return so_far.rpartition("HTTP at ")[2].split()[0]


def addresses(folder: Path, *options: str, **environment: str) -> Iterator[str]:
    """`serving`, of which its address is enough. environment: variables besides."""
    for server in serving(folder, *options, environment=environment):
        yield server.url
