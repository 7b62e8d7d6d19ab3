"""`branchwork serve` over HTTP as its clients meet it: it answers, says what is wrong, and ends in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with sapling on a free port; its address."""
    folder = tmp_path_factory.mktemp("serve")
    yield from serving(folder)


def serving(folder: Path, *options: str) -> Iterator[str]:
    command = [sys.executable, "-m", "branchwork", "serve", "--port", "0", "--endpoint", f"ipc://{folder}/s"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "HTTP at " in line:
                break
        yield line.rpartition("HTTP at ")[2].strip()
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_it_says_that_it_is_well(site: str) -> None:
    assert httpx.get(f"{site}/health").json()["status"] == "ok"


def test_an_unknown_path_says_so(site: str) -> None:
    answer = httpx.get(f"{site}/nowhere")
    assert answer.status_code == 404 and "there is no GET /nowhere here" in answer.json()["error"]["message"]
