"""Claims about benchmarks/tune.py: what it may try, what it keeps, and the file it writes.

Knows: the script's parts. Must not know: how quick anything is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

from branchwork.kernels import compile_all
from branchwork.kernels.triton import tuning

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

import tune
from gpu_cases_layers import gate
from tune_space import candidates, space

CPU = torch.device("cpu")


@pytest.mark.parametrize("chip", tuning.CHIPS)
def test_every_op_of_every_chip_has_rows_to_try_and_the_one_in_use_is_the_first(chip: str) -> None:
    for op, row in tuning.rows(chip).items():
        tried = candidates(op, chip)
        assert tried[0] == row and len(tried) > 3, op
        assert len({tuple(sorted(one.items())) for one in tried}) == len(tried), op
        assert all(one.keys() == row.keys() for one in tried), op
        fixed = row.keys() - space(op).keys()
        assert all(one[name] == row[name] for one in tried for name in fixed), op


def test_an_op_without_a_space_is_an_error() -> None:
    with pytest.raises(KeyError):
        space("fft")


def test_rows_that_ask_for_too_much_are_filtered_and_others_are_not() -> None:
    row = tuning.rows("sm_80")["experts.many"]
    huge = {**row, "BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "num_stages": 4}
    with Progress(disable=True) as progress:
        assert tune.fitting({"experts.many": [row, huge]}, "sm_80", 1, progress) == {"experts.many": [row]}


def test_rows_that_differ_only_in_how_many_programs_there_are_are_compiled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[tuning.Row] = []

    def compile_tasks(tasks: list[tuple[str, str, tuning.Row]], jobs: int) -> Iterator[object]:
        compiled.extend(row for _, _, row in tasks)
        return iter((i, compile_all.Compiled(name, chip, 9, 0, 0, 1, "")) for i, (name, chip, _) in enumerate(tasks))

    monkeypatch.setattr(tune.compile_all, "compile_tasks", compile_tasks)
    row = tuning.rows("sm_90")["int4.few"]
    rows = [row, {**row, "SPLITS": 2}, {**row, "SPLITS": 8}]
    with Progress(disable=True) as progress:
        assert tune.fitting({"int4.few": rows}, "sm_90", 1, progress) == {"int4.few": rows}
    assert compiled == [row]


def test_an_op_that_time_did_not_allow_is_left_out() -> None:
    tried = {op: candidates(op, "gfx942")[:2] for op in ("mask", "penalise")}
    with Progress(disable=True) as progress:
        assert not tune.fitting(tried, "gfx942", 1, progress, until=0.0).keys() & {"penalise"}


@pytest.mark.interpreted
def test_every_row_is_run_with_its_own_parameters_and_one_that_cannot_run_is_never_chosen() -> None:
    case = gate(2, 33)._replace(dtypes=(torch.float32,))
    row = tuning.rows("default")["gate"]
    rows = [row, {**row, "BLOCK": 16}, {**row, "BLOCK": 3}]  # a block of three is no power of two
    with Progress(disable=True) as progress:
        ratios = tune.times("gate", rows, [case], CPU, progress)
    assert ratios[0] == 1.0 and 0 < ratios[1] < float("inf") and ratios[2] == float("inf")
    assert tuning.launch("gate", "default") == {**row, "enable_fp_fusion": True}
    assert tune.chosen("gate", rows, [1.0, 0.5, float("inf")], [case], CPU) == 1
    assert tune.chosen("gate", rows, [1.0, 0.995, float("inf")], [case], CPU) == 0, "too little to be worth a change"


@pytest.mark.interpreted
def test_a_quicker_row_with_wrong_results_is_not_chosen() -> None:
    case = gate(2, 33)._replace(dtypes=(torch.float32,), error=lambda found, exact: 1.0)
    row = tuning.rows("default")["gate"]
    assert tune.chosen("gate", [row, {**row, "BLOCK": 16}], [1.0, 0.5], [case], CPU) == 0


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The shipped files, to be written to."""
    for file in tuning.FOLDER.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    tuning.rows.cache_clear()
    yield tmp_path
    tuning.rows.cache_clear()


def test_new_rows_are_written_and_read_back_and_the_others_stay(folder: Path) -> None:
    before = dict(tuning.rows("sm_90"))
    row = {**before["gate"], "BLOCK": 4096}
    same = {**before["bytes.few"], "num_stages": tuning.rows("default")["bytes.few"]["num_stages"]}
    choices = [
        tune.Choice("gate", before["gate"], row, 1.3, 9, 9),
        tune.Choice("bytes.few", before["bytes.few"], same, 1.1, 9, 9),
        tune.Choice("rope", before["rope"], None, 1.0, 9, 9),
    ]
    file = tune.write("sm_90", choices, "2026-01-02, a device, torch 1, triton 2")
    assert dict(tuning.rows("sm_90")) == {**before, "gate": row, "bytes.few": same}
    said = json.loads(file.read_text(encoding="utf-8"))
    assert said["rows"]["gate"] == {"BLOCK": 4096} and "bytes.few" not in said["rows"]
    assert "2026-01-02, a device" in said["about"] and "not timed" in said["about"]
    assert list(said["rows"]) == sorted(said["rows"])


def test_the_shipped_files_are_as_the_tuner_writes_them() -> None:
    for file in tuning.FOLDER.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        said = json.loads(text)
        assert tune.file_text(said["about"], said["rows"]) == text, file.name


def test_the_filter_alone_runs_without_a_gpu_and_changes_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in tuning.FOLDER.glob("*.json")}
    assert tune.main(["--dry", "--chip", "gfx942", "--ops", "penalise", "--jobs", "1"]) == 0
    tried = len(candidates("penalise", "gfx942"))
    assert f"{tried} of {tried}" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dry", "--chip", "sm_42"],
        ["--dry", "--chip", "sm_90", "--write"],
        ["--dry", "--chip", "sm_90", "--ops", "fft"],
    ],
)
def test_what_cannot_be_done_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        tune.main(arguments)
