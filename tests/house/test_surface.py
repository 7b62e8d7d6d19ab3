"""The public surface is a list, and the list is true."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import branchwork


def test_every_public_name_can_be_had_and_no_other_is_there() -> None:
    for name in branchwork.__all__:
        assert getattr(branchwork, name) is not None
    submodules = {"lang", "runtime", "kernels", "cli"}
    loaded = {name for name, value in vars(branchwork).items() if not name.startswith("_")}
    extra = {name for name in loaded if not isinstance(getattr(branchwork, name), types.ModuleType)}
    assert extra - set(branchwork.__all__) <= {"annotations", "Any", "TYPE_CHECKING", "import_module"} | submodules


def test_an_unknown_name_is_an_attribute_error() -> None:
    try:
        branchwork.no_such_name  # noqa: B018
    except AttributeError as error:
        assert "no_such_name" in str(error)
    else:
        raise AssertionError("no error")


def test_importing_and_writing_a_program_loads_neither_torch_nor_sockets() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import branchwork as bw; a = time.perf_counter() - t\n"
        "bw.function(lambda s: None); bw.gen('x'); b = time.perf_counter() - t\n"
        "print(sorted({'torch', 'zmq', 'rich', 'transformers', 'numpy'} & set(sys.modules)), f'{a:.3f} {b:.3f}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    print(done.stdout)
    assert done.stdout.startswith("[]")


def test_every_test_that_the_readme_names_exists() -> None:
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "README.md").read_text(encoding="utf-8")))
    written = {
        name for file in (root / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(named) > 20 and not named - written
