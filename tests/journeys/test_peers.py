"""Claims about benchmarks/peers.py: both sides of a comparison get the same work, and nothing is left running.

Knows: the script's parts, the packaged model. Must not know: how quick anybody is.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import branchwork as bw

gguf = pytest.importorskip("gguf")
SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(SCRIPTS))

import peers  # noqa: E402
import peers_models  # noqa: E402
import peers_workloads  # noqa: E402
from peers_http import Client, HttpError  # noqa: E402
from peers_optimum import Dry  # noqa: E402
from peers_processes import child, free_port  # noqa: E402
from peers_report import Report  # noqa: E402
from peers_runs import dry_run, run_program  # noqa: E402

FEW = peers_workloads.Counts(
    streams=2, tokens=4, each=4, prompt=60, shots=3, prefix=80, tasks=1, chats=2, turns=2, agents=2, steps=2,
    records=1, essays=1, items=2,
)  # fmt: skip
TINY = peers_models.Size(hidden=64, layers=2, heads=4, kv_heads=2, ffn=96, vocab=700, context=2304)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(peers_models.model_directory("sapling") / "tokenizer.json"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("models") / "tiny"
    peers_models.write_random(directory, TINY)
    return directory


@pytest.mark.parametrize("workload", peers_workloads.WORKLOADS, ids=lambda workload: workload.name)
def test_the_program_asks_for_the_same_prompts_as_the_dialogue_of_the_peers(
    runtime: bw.Runtime, tokenizer: Tokenizer, workload: peers_workloads.Workload
) -> None:
    rows = workload.rows(3, FEW)
    before = runtime.stats()["prompt_tokens"]
    for state in run_program(runtime, workload, rows):
        state.sync()
    asked = runtime.stats()["prompt_tokens"] - before
    assert asked == pytest.approx(dry_run(workload, rows, tokenizer).prompt, rel=0.02)


def test_a_round_finds_nothing_of_the_round_before(tokenizer: Tokenizer) -> None:
    for workload in peers_workloads.WORKLOADS:
        rows = workload.rows(1, FEW)
        alone = dry_run(workload, rows, tokenizer).reused
        dry = Dry(tokenizer)
        asyncio.run(_all(dry, workload, workload.rows(0, FEW)))
        before = dry.reused
        asyncio.run(_all(dry, workload, rows))
        assert dry.reused - before - alone < 32 * len(rows), workload.name  # what every row begins with


async def _all(peer: Any, workload: peers_workloads.Workload, rows: list[dict[str, Any]]) -> None:
    await asyncio.gather(*(workload.theirs(peer, row) for row in rows))


def test_an_endless_cache_computes_each_shared_prefix_once(tokenizer: Tokenizer) -> None:
    async def two() -> Dry:
        dry = Dry(tokenizer)
        answer = await dry.ask(((5, 6, 7, 8),), 2, "")
        await dry.ask(((5, 6, 7, 8), answer, (9,)), 2, "")
        return dry

    dry = asyncio.run(two())
    assert (dry.prompt, dry.reused, dry.generated) == (4 + 7, 6, 4)


def test_a_gguf_file_holds_the_weights_of_its_directory(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_models, "CACHE", tiny.parent / "cache")
    weights = {name: tensor.float().numpy() for name, tensor in peers_models._tensors(tiny)}
    for bits, most in (("bf16", 0.0), ("int8", 0.01), ("int4", 0.2)):
        tensors = {t.name: t for t in gguf.GGUFReader(peers_models.gguf_file(tiny, bits)).tensors}
        found = gguf.quants.dequantize(tensors["blk.0.ffn_up.weight"].data, tensors["blk.0.ffn_up.weight"].tensor_type)
        wanted = weights["model.layers.0.mlp.up_proj.weight"]
        assert abs(found - wanted).max() <= most * abs(wanted).max(), bits
    key = gguf.GGUFReader(peers_models.gguf_file(tiny, "bf16")).tensors
    [turned] = [gguf.quants.dequantize(t.data, t.tensor_type) for t in key if t.name == "blk.0.attn_k.weight"]
    head = weights["model.layers.0.self_attn.k_proj.weight"][:16]  # pairs (i, i + 8) of a head become neighbours
    assert (turned[:16] == head.reshape(2, 8, 64).swapaxes(0, 1).reshape(16, 64)).all()


def test_the_script_measures_the_peers_it_finds_and_names_the_one_it_does_not(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(peers_models, "CACHE", tmp_path / "cache")
    out = tmp_path / "figures.json"
    few = [f"--count={name}={number}" for name, number in (("tokens", 6), ("items", 2), ("agents", 2), ("steps", 2))]
    options = ["--model", str(tiny), "--bits", "bf16", "--only", "stream,react,select", "--repeats", "1", *few]
    peers.main([*options, "--threads", "1", "--llama-server", str(tmp_path / "none"), "--json", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert {row["workload"] for row in rows} == {"stream", "react", "select", "start"}
    assert {row["peer"] for row in rows} == {"transformers"}
    assert all(row["ratio"] == pytest.approx(row["peer_s"] / row["branchwork_s"]) for row in rows)
    react = next(row for row in rows if row["workload"] == "react")
    assert react["hit"] == pytest.approx(react["optimum"], abs=0.02)
    assert "llama.cpp is left out" in capsys.readouterr().out


def test_a_process_ends_with_the_block_that_fails() -> None:
    with (
        pytest.raises(ValueError, match="on purpose"),
        child([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as p,
    ):
        raise ValueError("on purpose")
    assert p.poll() is not None


def test_a_ratio_is_of_medians_and_a_side_that_did_not_run_has_none() -> None:
    report = Report("model", 1, 3)
    workload = peers_workloads.WORKLOADS[0]
    cell = report.cell(workload, "bf16")
    for own, their in ((1.0, 2.0), (4.0, 9.0), (2.0, 6.0)):
        cell.add("Branchwork", own)
        cell.add("llama.cpp", their)
    report.cell(workload, "int4").add("llama.cpp", 1.0)
    with_ours, without = report.rows()
    assert (with_ours["ratio"], with_ours["branchwork_s"], with_ours["aim"]) == (3.0, 2.0, 1)
    assert without["ratio"] is None


def test_an_answer_of_another_status_is_an_error_with_its_words() -> None:
    async def ask(port: int) -> None:
        async with Client(port) as client:
            for _ in range(200):  # until the server listens
                try:
                    await client.get("/nothing.json")
                except OSError:
                    await asyncio.sleep(0.05)

    port = free_port()
    serve = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    quiet = subprocess.DEVNULL
    with child(serve, stdout=quiet, stderr=quiet), pytest.raises(HttpError, match=r"404: (?s:.*)not found"):
        asyncio.run(ask(port))
