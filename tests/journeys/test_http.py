"""`branchwork serve` over HTTP as its clients meet it: it answers, says what is wrong, and ends in order."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.checkpoints import checkpoint
from tests.serving import serving

SAPLING = Path(__file__).parents[2] / "runtime" / "sapling"


def test_it_says_that_it_is_well(site: str) -> None:
    assert httpx.get(f"{site}/health").json()["status"] == "ok"


def test_an_unknown_path_says_so(site: str) -> None:
    answer = httpx.get(f"{site}/nowhere")
    assert answer.status_code == 404 and "there is no GET /nowhere here" in answer.json()["error"]["message"]


def test_pages_and_names_from_elsewhere_are_kept_out(site: str) -> None:
    foreign = httpx.get(f"{site}/v1/models", headers={"origin": "https://example.org"})
    assert foreign.status_code == 403 and "--origin https://example.org" in foreign.json()["error"]["message"]
    rebound = httpx.get(f"{site}/api/tags", headers={"host": "evil.example:80"})
    assert rebound.status_code == 403 and "evil.example" in rebound.json()["error"]
    assert httpx.get(f"{site}/v1/models", headers={"origin": site}).status_code == 200


def branchwork(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "branchwork", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"COLUMNS": "160"})


def test_a_second_model_is_loaded_when_asked_for_listed_and_let_go(tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint("llama"), tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SAPLING / name, other / name)
    endpoint = f"ipc://{tmp_path}/s"
    with contextmanager(serving)(
        tmp_path, "-o", "threads=1", "-o", "pages=4000", models=("sapling", str(other))
    ) as server:
        ask = {"model": "other", "prompt": "a", "max_tokens": 2}
        assert "goes in" not in branchwork("ps", "--endpoint", endpoint).stdout
        answer = httpx.post(f"{server.url}/v1/completions", json=ask, timeout=60)
        assert answer.status_code == 200, answer.text
        listed = branchwork("ps", "--endpoint", endpoint).stdout
        assert "other" in listed and "goes in" in listed and "stays" in listed
        refused = branchwork("stop", "sapling", "--endpoint", endpoint)
        assert refused.returncode == 2 and "programs there run on" in refused.stderr
        assert branchwork("stop", "other", "--endpoint", endpoint).returncode == 0
        deadline = time.monotonic() + 20
        while "goes in" in branchwork("ps", "--endpoint", endpoint).stdout:
            assert time.monotonic() < deadline, "a model that was stopped is still there"
