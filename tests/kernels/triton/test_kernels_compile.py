"""Kernels compile for chips that are not here, within their registers and shared memory."""

from __future__ import annotations

import json
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


def test_each_chip_has_a_whole_row_for_every_kernel() -> None:
    for name, rows in tuning.TABLE.items():
        assert set(rows) <= {"default", *tuning.CHIPS}, name
        assert all(set(row) <= set(rows["default"]) for row in rows.values()), name
    op, _, key = "norm.wide".partition(".")
    assert tuning.launch(op, "no such chip", key) == tuning.launch(op, "default", key)
    with pytest.raises(KeyError):
        tuning.launch("fft", "sm_90")
