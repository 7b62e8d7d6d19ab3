"""Type checkers know a program's own parameters and what it returns: mypy over the sample beside this file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(__file__).with_name("typing_sample.py")


def test_mypy_sees_what_the_sample_expects(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    package = tmp_path / "branchwork"
    shutil.copytree(ROOT / "branchwork", package)
    for folder in ("lang", "runtime", "kernels"):  # laid out as they are installed
        (package / folder).symlink_to(ROOT / folder, target_is_directory=True)
    shutil.copy(SAMPLE, tmp_path / "sample.py")
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--follow-imports=silent"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "sample.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    found = dict(re.findall(r'^sample\.py:(\d+): (?:note: Revealed type is "(.*)"|error: .*)$', done.stdout, re.M))
    errors = dict(re.findall(r"^sample\.py:(\d+): (error: .*?)(?:  \[.*\])?$", done.stdout, re.M))
    said = {int(line): _short(text) for line, text in (found | errors).items()}
    lines = enumerate(SAMPLE.read_text(encoding="utf-8").splitlines(), 1)
    expected = {number: line.partition("  # ")[2] for number, line in lines if "  # " in line}
    assert said == expected, done.stdout + done.stderr


def _short(kind: str) -> str:
    """Without the modules that names come from."""
    return re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", kind)
