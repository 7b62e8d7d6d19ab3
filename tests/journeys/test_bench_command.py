"""`branchwork bench`: what it measures on the real runtime, in every format, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import branchwork as bw
from branchwork import bench, bench_machine, bench_report
from branchwork.bench import Prompts, Row, Workload, workloads
from branchwork.bench_machine import Rates
from branchwork.runtime.loading.hub import find_model
from tests.checkpoints import write_tokenizer

OPTIONS = {"speculative": "off"}
Measured = tuple[list[Row], Rates]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "branchwork", *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def measured(runtime: bw.Runtime) -> Measured:
    wanted = workloads([40, 100], [6], [3], [4])
    heard: list[float] = []
    found = bench.measure(runtime, find_model("sapling"), wanted, 2, lambda what, fraction: heard.append(fraction))
    assert heard == sorted(heard) and heard[-1] == 1.0
    return found


def by_name(measured: Measured) -> dict[str, Row]:
    return {row.test: row for row in measured[0]}


def test_every_workload_has_exactly_its_tokens(measured: Measured) -> None:
    rows = by_name(measured)
    assert list(rows) == ["pp40", "pp100", "tg6", "tg6 x3", "shared pp100 tg6 x4"]
    assert rows["pp40"].prompt_tokens == 40 and rows["pp100"].prompt_tokens == 100
    assert rows["tg6"].prompt_tokens == rows["tg6 x3"].prompt_tokens == bench.START
    assert rows["shared pp100 tg6 x4"].prompt_tokens == 100 + bench.START
    assert all(len(row.samples) == 2 and row.low <= row.rate <= row.high for row in rows.values())


def test_prompts_reuse_nothing_unless_they_share(measured: Measured) -> None:
    rows = by_name(measured)
    assert rows["pp40"].reused < 0.1 and rows["pp100"].reused < 0.1
    assert 0.6 < rows["shared pp100 tg6 x4"].reused < 0.75, "three of four streams find the common prompt"


def test_prompts_have_a_share_of_the_matrix_rate_and_generation_one_of_the_bandwidth(measured: Measured) -> None:
    for row in measured[0]:
        assert (row.matrix is not None) == row.test.startswith("pp"), row.test
        assert (row.bandwidth is not None) == row.test.startswith("tg"), row.test
    rows, rates = by_name(measured), measured[1]
    read = rows["tg6"].rate * rows["tg6"].size / rates.read  # without guesses, and but for the KV
    assert rows["tg6"].bandwidth == pytest.approx(read * rows["tg6"].forwards / 6, rel=0.2)


def test_rows_say_what_was_measured(measured: Measured, runtime: bw.Runtime) -> None:
    stats = runtime.stats()
    for row in measured[0]:
        assert (row.model, row.device, row.threads) == ("sapling", "cpu", 1)
        assert (row.size, row.type) == (stats["weight_bytes"], stats["weights"]) and row.parameters > 2_000_000


def test_json_and_csv_hold_the_same_rows(measured: Measured) -> None:
    told = json.loads(bench_report.written("json", *measured, OPTIONS))
    assert told["options"] == OPTIONS and told["machine"]["read"] == measured[1].read
    lines = list(csv.DictReader(io.StringIO(bench_report.written("csv", *measured, OPTIONS))))
    assert [line["test"] for line in lines] == [row["test"] for row in told["rows"]]
    for line, row in zip(lines, told["rows"]):
        assert float(line["rate"]) == row["rate"]
        assert line["matrix"] == ("" if row["matrix"] is None else str(row["matrix"]))
        assert float(line["read_bandwidth"]) == measured[1].read


def test_markdown_is_one_table_of_equal_rows(measured: Measured) -> None:
    lines = bench_report.written("md", *measured, OPTIONS).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(measured[0]) and len({line.count("|") for line in table}) == 1
    assert "Guessing ahead: off." in lines[-1]


def test_the_table_fits_a_terminal_of_80_columns(measured: Measured) -> None:
    text = io.StringIO()
    bench_report.show(Console(file=text, width=80), *measured, OPTIONS)
    assert "…" not in text.getvalue() and "bandwidth" in text.getvalue()
    assert all(row.test in text.getvalue() for row in measured[0])


def test_the_command_prints_nothing_but_the_format_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    lengths = ["-p", "16", "-n", "0", "-r", "1"]
    done = command("bench", *lengths, "--output", "json", "--json", str(file), "-o", "pages=4000")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [row["test"] for row in told["rows"]] == ["pp16"]
    assert told["options"] == {"speculative": "off", "pages": "4000"}
    assert json.loads(file.read_text()) == told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "12,x"], "--prompt 12,x: whole numbers"),
        (["-n", "-5"], "--generate -5: whole numbers"),
        (["-b", "1.5"], "--batch 1.5: whole numbers"),
        (["--output", "xml"], "--output xml is none of table, json, md, csv"),
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["-r", "0"], "--repeats"),
        (["-o", "speed=fast"], "unknown runtime option"),
    ],
)
def test_wrong_options_are_told_before_anything_starts(arguments: list[str], said: str) -> None:
    done = command("bench", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert said in " ".join(done.stderr.split())


def test_a_prompt_longer_than_the_context_is_refused(runtime: bw.Runtime) -> None:
    with pytest.raises(ValueError, match=r"pp5000 takes 5000 tokens, and the context has 2048"):
        bench.measure(runtime, find_model("sapling"), [Workload("pp5000", 5000, 0)], 1, lambda what, fraction: None)


def test_a_batch_without_tokens_to_generate_is_left_out() -> None:
    assert [work.name for work in workloads([8], [0], [16], [16])] == ["pp8"]


@pytest.mark.parametrize("tokens", [1, 2, 3, 17, 500])
def test_a_prompt_has_exactly_the_tokens_asked_for(tokens: int) -> None:
    prompts = Prompts(find_model("sapling"))
    texts = [prompts.exactly(tokens) for _ in range(4)]
    assert {prompts.count(text) for text in texts} == {tokens}
    assert tokens < 3 or len(set(texts)) == 4


def test_prompts_of_a_vocabulary_without_words_are_letters(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    prompts = Prompts(tmp_path)
    assert prompts.count(prompts.exactly(20)) == 20


def test_the_machine_is_measured_with_the_threads_and_bytes_asked_for() -> None:
    rates = bench_machine.measure(1, 3_000_000, "float32")
    assert (rates.threads, rates.buffer, rates.dtype) == (1, 3_000_000, "float32")
    assert rates.read > 1e8 and rates.matrix > 1e8
    assert bench_machine.measure(1, 10, "bfloat16").buffer == bench_machine.LEAST


def test_a_plain_read_reads_every_byte() -> None:
    """Its result is the exclusive or of all words, so no part can have been left out."""
    import ctypes

    import numpy as np

    from branchwork.kernels.cpu import native

    if not native.available:
        pytest.skip(native.why)
    words = np.random.default_rng(0).integers(0, 2**32, 1 << 20, dtype=np.uint32)
    out = ctypes.c_uint32()
    for width in (4, 8, 16):
        native.vector_width(width)
        native.library().bw_read(words.ctypes.data, words.nbytes, ctypes.addressof(out))
        assert out.value == int(np.bitwise_xor.reduce(words))
    native.vector_width()
