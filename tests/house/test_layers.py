"""The arrows of the house: an import may only point down, rooms of one storey may not see each other.

Knows: the source tree. Must not know: what any module does. Reads the imports with ast; runs nothing.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "branchwork": ROOT / "branchwork",
    "branchwork.lang": ROOT / "lang",
    "branchwork.runtime": ROOT / "runtime",
    "branchwork.kernels": ROOT / "kernels",
}
R = "branchwork.runtime."
STOREYS: list[set[str]] = [
    {"branchwork"},
    {R + "gateway"},
    {R + "programs"},
    {R + "assembly"},
    {R + "engine"},
    {R + "scheduler", R + "execution"},
    {R + "speculative", R + "sampling"},
    {R + "models"},
    {R + "cache", R + "grammar"},
    {R + "sapling"},
    {R + "loading"},
    {R + "distributed"},
    {R + "plan"},
    {R + "wire"},
    {R + "config"},
    {"branchwork.lang", "branchwork.kernels"},
]
TORCH_ROOMS = (
    "execution",
    "models",
    "sampling",
    "kernels",
    "loading.checkpoint",
    "loading.float8",
    "loading.formats",
    "loading.gguf_blocks",
    "loading.gguf_weights",
    "loading.hub",
    "loading.packed",
    "quantize",
    "loading.weights",
    "cache.kv_pool",
    "assembly",
    "engine",
    "sapling",
    "doctor",
    "doctor_model",
    "bench_machine",
)


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


def imports(name: str, path: Path) -> Iterator[str]:
    base = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(base.split(".")[: len(base.split(".")) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (parent, node.module or "") if part)
            if stem != "branchwork":
                yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def room(module: str) -> tuple[int, str] | None:
    """The storey and the room of a module of ours; None for what is not a room (runtime/__init__)."""
    best: tuple[int, str] | None = None
    for storey, rooms in enumerate(STOREYS):
        for name in rooms:
            if (module == name or module.startswith(name + ".")) and (best is None or len(name) > len(best[1])):
                best = (storey, name)
    if best is not None and best[1] == "branchwork" and module.startswith("branchwork.runtime"):
        return None
    return best


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_down(name: str, path: Path) -> None:
    here = room(name)
    for target in imports(name, path):
        there = room(target) if target.startswith("branchwork") else None
        if here is None or there is None or here[1] == there[1]:
            continue
        assert there[0] > here[0], f"{name} ({here[1]}) may not import {target} ({there[1]})"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_torch_stays_with_the_tensors(name: str, path: Path) -> None:
    allowed = any(f".{part}" in f"{name}." for part in TORCH_ROOMS)
    if not allowed:
        assert not any(target.split(".")[0] == "torch" for target in imports(name, path)), f"{name} imports torch"


def test_every_package_folder_is_listed_for_installation() -> None:
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package, folder in FOLDERS.items():
        for path in folder.rglob("__init__.py"):
            name = ".".join((package, *path.parent.relative_to(folder).parts))
            assert f'"{name}"' in listed, f"{name} is not in pyproject.toml's packages"


def test_runtime_init_files_hold_only_a_docstring() -> None:
    for path in (ROOT / "runtime").rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), f"{path} holds more than a docstring"


@pytest.mark.parametrize("module", ["branchwork", "branchwork.runtime.gateway.main"])
def test_text_processes_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {{'torch', 'transformers'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
