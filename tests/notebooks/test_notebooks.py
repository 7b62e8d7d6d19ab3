"""Every notebook runs from top to bottom on the model that ships, and shows what its text promises.

Each is executed by a real kernel of this interpreter. Skipped where the notebook extra is not installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks need the extra: pip install 'branchwork[notebook]'")
nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra: pip install 'branchwork[notebook]'")
pytest.importorskip("ipykernel", reason="notebooks need the extra: pip install 'branchwork[notebook]'")

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
PROMISED = {  # what has to be among the printed lines, and how many pictures of programs there are
    "1_first_program": (["The capital of France is Paris.", "Peru     Lima", "unknown_variable"], 3),
    "2_agent_with_tools": (
        ["get_weather({'city': 'Oslo'})", "= 444", "there is no order 4711", "max_turns after 1"],
        2,
    ),
    "3_tree_of_thought": (["plan 2: ", "times less work", "branches that agree: ["], 2),
    "4_structured_extraction": (["Maria Lopez | 35 | Lima", "'city': 'Oslo'}", "Mood.BAD", "incomplete: 'person'"], 2),
}


@pytest.fixture(scope="module", autouse=True)
def kernels_of_this_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A kernel named python3 that is this interpreter, whatever else is installed; its own folder of settings."""
    folder = tmp_path_factory.mktemp("jupyter")
    kernel = folder / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(folder))
        yield


def outputs(book: Any) -> tuple[str, str, int]:
    """What a notebook printed (however it was cut into pieces); its HTML; how many pictures of programs it has."""
    printed, pages = "", []
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            printed += output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            pages.append(output.get("data", {}).get("text/html", ""))
    return printed, "\n".join(pages), sum('class="bw"' in page for page in pages)


def test_every_notebook_has_its_promises() -> None:
    assert list(NOTEBOOKS) == list(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_a_notebook_runs_and_shows_what_it_promises(name: str, tmp_path: Path) -> None:
    book = nbformat.read(NOTEBOOKS[name], as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))  # raises on an error
    lines, pictures = PROMISED[name]
    printed, pages, shown = outputs(book)
    assert [line for line in lines if line not in printed] == []
    assert shown == pictures
    assert "bw-generated" in pages and 'bw-now"' not in pages  # nothing is left as it was while it ran


@pytest.mark.parametrize("name", PROMISED)
def test_a_notebook_is_saved_with_its_outputs(name: str) -> None:
    book = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    lines, pictures = PROMISED[name]
    printed, _, shown = outputs(book)
    assert [line for line in lines if line not in printed] == []
    assert shown == pictures
    written = NOTEBOOKS[name].read_text(encoding="utf-8")
    assert "ipykernel_" not in written and str(Path.home()) + "/" not in written
