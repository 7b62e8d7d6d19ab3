"""The native products are right on ARM, too: cross-compiled and run under an emulator, where there are both."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER = shutil.which("aarch64-linux-gnu-gcc")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
FLAGS = ["-O3", "-fopenmp", "-static", "-fno-math-errno", "-fno-trapping-math"]  # as setup.py, but for the linking


@pytest.mark.skipif(not (COMPILER and EMULATOR), reason="needs aarch64-linux-gnu-gcc and qemu-aarch64")
def test_products_on_arm_equal_plain_loops(tmp_path: Path) -> None:
    assert COMPILER and EMULATOR
    program = tmp_path / "check"
    source = Path(__file__).with_name("arm_check.c")
    subprocess.run([COMPILER, *FLAGS, str(source), "-o", str(program), "-lm"], check=True, timeout=250)
    done = subprocess.run([EMULATOR, str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
