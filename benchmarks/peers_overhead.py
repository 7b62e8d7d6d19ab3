"""What keeping the tree costs: the share of the engine's busy time spent in scheduler and cache.

Knows: py-spy's raw output, names of folders. Must not know: what those folders do.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_LOOP = "runtime/engine.py"
_TREE = ("runtime/scheduler/", "runtime/cache/")
_SAMPLES = 200  # a second
_LONGEST = 120  # seconds


def tree_share(gateway: int, work: Callable[[], None]) -> str:
    """Run `work` while py-spy watches the engine below the gateway's process; a line saying what it saw."""
    spy = shutil.which("py-spy", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if spy is None:
        return "tree overhead: not measured (pip install py-spy)"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stacks"
        command = [spy, "record", "--pid", str(gateway), "--subprocesses", "--format", "raw", "--output", str(out)]
        command += ["--rate", str(_SAMPLES), "--duration", str(_LONGEST), "--nonblocking", "--full-filenames"]
        watcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(2)  # py-spy needs a moment to find the threads
        try:
            work()
        finally:
            watcher.send_signal(signal.SIGINT)  # it writes its file then
            watcher.wait(60)
        tree, whole = counts(out.read_text()) if out.exists() else (0, 0)
    if not whole:
        return "tree overhead: not measured (py-spy may not watch the engine here)"
    return (
        f"tree overhead: {tree / whole:.2%} of the engine's busy time in scheduler and cache ({whole} samples, py-spy)"
    )


def counts(stacks: str) -> tuple[int, int]:
    """Samples of the engine's loop with a frame of the tree's folders, and all its samples but those of waiting."""
    tree = whole = 0
    for line in stacks.splitlines():
        stack, _, number = line.rpartition(" ")
        if _LOOP not in stack or "poll (" in stack.rsplit(";", 1)[-1]:
            continue
        whole += int(number)
        tree += int(number) * any(folder in stack for folder in _TREE)
    return tree, whole
