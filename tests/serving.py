"""`branchwork serve` as a process of its own, for tests that meet it as its clients do.

Knows: the command and what it says. Must not know: any dialect.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def serving(folder: Path, *options: str, **environment: str) -> Iterator[str]:
    """Yields the address of a server with sapling on a free port; ends it in order. environment: variables besides."""
    command = [sys.executable, "-m", "branchwork", "serve", "--port", "0", "--endpoint", f"ipc://{folder}/s"]
    surroundings = {**os.environ, **environment}
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=surroundings) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "HTTP at " in line:
                break
        yield line.rpartition("HTTP at ")[2].strip()
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
