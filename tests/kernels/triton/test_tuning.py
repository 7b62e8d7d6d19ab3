"""Launch parameters are data: one file a chip, read once, and a damaged file says what is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from branchwork.kernels.triton import tuning


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder of files that stands in for the one that ships."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    tuning.rows.cache_clear()
    (tmp_path / "default.json").write_text(json.dumps({"about": "all", "rows": {"a": {"X": 1, "num_warps": 4}}}))
    yield tmp_path
    tuning.rows.cache_clear()


def test_a_chips_row_is_the_default_row_with_what_its_file_says(folder: Path) -> None:
    (folder / "sm_90.json").write_text(json.dumps({"about": "fast", "rows": {"a": {"X": 8}}}))
    assert tuning.launch("a", "sm_90") == {"X": 8, "num_warps": 4, "enable_fp_fusion": True}
    assert tuning.launch("a", "sm_80") == {"X": 1, "num_warps": 4, "enable_fp_fusion": True}


def test_a_row_that_is_changed_by_its_user_stays_as_it_was(folder: Path) -> None:
    tuning.launch("a", "sm_90").clear()
    assert tuning.launch("a", "sm_90")["X"] == 1


@pytest.mark.parametrize(
    "text, why",
    [
        ("{", "cannot be read"),
        ("[]", "must hold"),
        ('{"rows": {}}', "must hold"),
        ('{"about": "", "rows": {"a": {"X": "8"}}}', "positive integers"),
        ('{"about": "", "rows": {"a": {"X": 0}}}', "positive integers"),
        ('{"about": "", "rows": {"b": {"X": 8}}}', "no op of default.json"),
        ('{"about": "", "rows": {"a": {"Y": 8}}}', "no parameter Y"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong_in_it(folder: Path, text: str, why: str) -> None:
    (folder / "sm_90.json").write_text(text)
    with pytest.raises(tuning.TuningError, match=f"sm_90.json.*{why}"):
        tuning.launch("a", "sm_90")


def test_an_op_or_key_without_a_row_is_an_error() -> None:
    with pytest.raises(KeyError):
        tuning.launch("fft", "sm_90")
    with pytest.raises(KeyError):
        tuning.launch("norm", "sm_90", "medium")


def test_within_a_trial_an_op_is_launched_with_the_row_on_trial() -> None:
    before = tuning.launch("norm", "sm_90", "wide")
    with tuning.trial("norm.wide", {"num_warps": 2}):
        assert tuning.launch("norm", "sm_90", "wide") == {**before, "num_warps": 2}
        assert tuning.launch("norm", "sm_90", "narrow")["num_warps"] != 2
    assert tuning.launch("norm", "sm_90", "wide") == before


def test_each_shipped_file_says_how_its_rows_came_to_be() -> None:
    files = sorted(tuning.FOLDER.glob("*.json"))
    assert {"default", "sm_80", "sm_90", "gfx942"} <= {file.stem for file in files}
    for file in files:
        assert len(json.loads(file.read_text(encoding="utf-8"))["about"]) > 20, file.name
        assert tuning.rows(file.stem).keys() == tuning.rows("default").keys()


def test_the_files_are_installed_beside_the_kernels(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    code = "from setuptools import setup; setup()"
    command = [sys.executable, "-c", code, "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run([*command], cwd=root, check=True, capture_output=True, timeout=120)
    there = tmp_path / "branchwork" / "kernels" / "triton" / "tuned"
    assert {file.name for file in there.iterdir()} == {file.name for file in tuning.FOLDER.iterdir()}
