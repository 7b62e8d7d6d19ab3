"""Kernels compile for chips that are not here, within their registers and shared memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from branchwork.kernels import compile_all
from branchwork.kernels.triton import tuning

# what every decode step of every model runs, and the kernels that ask most of a compiler
ALWAYS = [
    "add_rms_norm 4096",
    "rope_store_kv int8",
    "sample head masked",
    "sample draw masked",
    "linear int4 many",
    "linear e4m3 few",
    "experts many",
    "experts int4 many",
]


def faults(rows: list[compile_all.Compiled]) -> list[str]:
    return [f"{row.kernel} on {row.target}: {row.error}" for row in rows if row.error]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_hot_kernels_compile_within_the_chips_limits(target: str) -> None:
    rows = [compile_all.compiled(name, target) for name in ALWAYS]
    assert not faults(rows)
    assert all(row.registers > 0 for row in rows)


@pytest.mark.soak
def test_every_kernel_compiles_for_every_chip() -> None:
    rows = list(compile_all.compile_all(list(compile_all.specimens()), list(tuning.CHIPS)))
    assert len(rows) == len(compile_all.specimens()) * len(tuning.CHIPS)
    assert not faults(rows)


def test_a_tile_that_does_not_fit_is_an_error_and_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    big = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "num_warps": 8, "num_stages": 4}
    specimen = compile_all.specimens()["experts many"]._replace(rows={"default": big})
    monkeypatch.setattr(compile_all, "specimens", lambda: {"big": specimen})
    row = compile_all.compiled("big", "sm_80")
    assert row.shared > row.shared_limit and "shared memory" in row.error
    assert compile_all.main(["--targets", "sm_80", "--jobs", "1"]) == 1


def test_the_command_writes_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    arguments = ["--targets", "gfx942", "--kernels", "embedding", "--json", str(file), "--jobs", "1"]
    assert compile_all.main(arguments) == 0
    (row,) = json.loads(file.read_text(encoding="utf-8"))
    assert set(row) == {"kernel", "target", "registers", "spills", "shared", "shared_limit", "error"}
    assert (row["kernel"], row["target"], row["error"]) == ("embedding", "gfx942", "")


def test_an_unknown_chip_is_refused() -> None:
    with pytest.raises(SystemExit):
        compile_all.main(["--targets", "sm_42"])


class Deadly:
    """Ends the process that reads it."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (3,)


@pytest.mark.soak
def test_a_compiler_that_ends_its_process_ends_one_task() -> None:
    tasks = [("embedding", "sm_90", row) for row in (None, Deadly(), None, None)]
    found = dict(compile_all.compile_tasks(tasks, jobs=2))
    assert [found[i].error for i in range(4)] == ["", "the compiler ended its process", "", ""]


def test_a_run_for_no_kernel_at_all_is_refused() -> None:
    with pytest.raises(SystemExit):
        compile_all.main(["--targets", "sm_90", "--kernels", "fft"])


def test_every_row_of_every_chips_file_is_compiled_for_that_chip() -> None:
    covered = {".".join(filter(None, specimen.rows)) for specimen in compile_all.specimens().values()}
    for file in tuning.FOLDER.glob("*.json"):
        assert set(tuning.read(file)) <= covered, file.name
        assert file.stem == "default" or file.stem in tuning.CHIPS, file.name
    for op, row in tuning.rows("default").items():  # what chips without a file of their own launch
        assert any(tuning.rows(target)[op] == row for target in tuning.CHIPS), op


def test_a_specimen_is_compiled_with_the_row_it_is_launched_with(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, int]] = []
    monkeypatch.setattr(compile_all, "_resources", lambda specimen, target, row: seen.append(row) or (1, 0, 0))
    compile_all.compiled("linear int4 few", "sm_90")
    compile_all.compiled("linear int4 few", "sm_90", {"num_warps": 2})
    assert seen == [tuning.launch("int4", "sm_90", "few"), {**tuning.launch("int4", "sm_90", "few"), "num_warps": 2}]
