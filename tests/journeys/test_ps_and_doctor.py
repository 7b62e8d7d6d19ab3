"""`branchwork ps` on a runtime that serves, `branchwork doctor` on this machine and on models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import branchwork as bw
from branchwork import doctor, doctor_model, status
from branchwork.kernels.cpu import native
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.registry import load_spec
from branchwork.runtime.models.size import in_layers, looked_up, parameters
from tests.checkpoints import checkpoint


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "branchwork", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "160", **env},
    )


@bw.function
def say(s: bw.ProgramState) -> None:
    s += "Once upon a time" + bw.gen("x", max_tokens=4, ignore_eos=True)


def test_ps_shows_what_a_runtime_serves(runtime: bw.Runtime) -> None:
    say.run(backend=runtime)
    done = command("ps", "--endpoint", runtime.endpoint)
    assert done.returncode == 0, done.stderr
    stats = runtime.stats()
    for told in (
        "sapling",
        "2.80 M parameters",
        stats["weights"],
        "0 running, 0 waiting",
        "for 40,000 tokens",
        "1 thread",
    ):
        assert told in done.stdout
    assert status.size(stats["weight_bytes"]) in done.stdout and status.size(stats["kv_bytes"]) in done.stdout


def test_stats_account_for_weights_and_kv(runtime: bw.Runtime) -> None:
    spec = load_spec(Path(bw.__file__).parents[1] / "runtime" / "sapling")
    stats = runtime.stats()
    size = {"bfloat16": 2, "float32": 4}[stats["dtype"]]
    assert stats["weights"] == stats["dtype"] and stats["weight_bytes"] == stats["parameters"] * size
    assert stats["parameters"] == parameters(spec) and stats["in_layers"] == in_layers(spec)
    assert stats["kv_bytes"] == 40_000 * stats["page_size"] * 2 * 6 * 3 * 32 * size
    before = stats["uptime"]
    assert runtime.stats()["uptime"] > before > 0


def test_ps_without_a_runtime_says_so_and_fails(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/nobody"
    done = command("ps", "--endpoint", endpoint)
    assert done.returncode == 1 and done.stdout == ""
    assert f"no runtime serves at {endpoint}; `branchwork serve` starts one" in done.stderr


def test_ps_refuses_what_is_no_endpoint() -> None:
    done = command("ps", "--endpoint", "nonsense")
    assert done.returncode in (1, 2) and "nonsense" in done.stderr and "Traceback" not in done.stderr


def test_doctor_tells_kernels_products_and_models() -> None:
    done = command("doctor", "--model", "sapling")
    assert done.returncode == 0, done.stderr
    for told in (
        "paged_attention",
        "int8, int4",
        "sapling",
        "KV of a full context 4.5 MiB",
        "KV cache",
        "2.25 KiB a token",
    ):
        assert told in done.stdout, told
    assert re.search(r"fits\s*│ yes", done.stdout)


def test_doctor_refuses_a_model_that_is_not_there() -> None:
    done = command("doctor", "--model", "nowhere")
    assert done.returncode == 1 and done.stdout == "" and "model 'nowhere'" in done.stderr


def test_products_name_the_instructions_in_use() -> None:
    rows = {row[0]: row for row in doctor._products("native")} if native.available else {}
    for kind, instruction in {"bfloat16": "AVX512-BF16", "int8, int4": "AVX512-VNNI"}.items():
        if kind in rows:
            assert (instruction in rows[kind][1]) == (instruction in native.features())
    assert all("floats" in row[2] for row in doctor._products("onednn") if row[0] == "int8, int4")


@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("qwen2-tied", True), ("mixtral", False)])
def test_a_models_size_is_known_from_its_headers(name: str, tied: bool) -> None:
    path = checkpoint(name)
    spec = load_spec(path)
    stored = doctor_model.weight_bytes(path, spec)
    assert stored == parameters(spec) * 4
    assert looked_up(spec) == (0 if tied else spec.vocab * spec.hidden)
    rows = {row[0]: row for row in doctor_model.examine(str(path))}
    assert status.size(stored) in rows["weights"][1] and rows["fits"][1].startswith("yes")
    assert f"{spec.context:,} tokens" in rows["context"][1]


def test_a_model_larger_than_memory_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint("llama")
    monkeypatch.setattr(doctor_model, "free_memory", lambda device: 1000)
    assert {row[0]: row[1] for row in doctor_model.examine(str(path))}["fits"].startswith("no: the weights alone")


def test_a_directory_that_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no config\.json"):
        doctor_model.examine(str(tmp_path))


def test_sizes_and_times_read_well() -> None:
    assert [status.size(n) for n in (12, 2048, 5 << 20, 3 << 30)] == ["12 B", "2 KiB", "5 MiB", "3.00 GiB"]
    assert [status.duration(n) for n in (0.4, 61, 3600, 90_061)] == ["0 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]
    assert [status.number(n) for n in (2.8e6, 7.1e9)] == ["2.80 M", "7.10 B"]
