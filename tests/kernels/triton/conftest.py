"""Tests marked `interpreted` run in one process of their own, where Triton interprets; others compile, here.

Knows: pytest's hooks. Must not know: any kernel. TRITON_INTERPRET must be set before Triton is imported, and would
change every other test of this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from branchwork.kernels.triton import language

_REPORT = "BRANCHWORK_TEST_REPORT"  # set in the interpreting process: the file that takes its results
_INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
_ROOT = Path(__file__).resolve().parents[3]
_results: dict[str, tuple[str, str]] = {}

if _INSIDE and language.available:
    from tests.kernels.triton import harness

    harness.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(1800))  # the first interpreted test waits for all of them
            if not language.available:
                item.add_marker(pytest.mark.skip(reason=language.why))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """In the outer process an interpreted test passes or fails as it did in the interpreting one."""
    if _INSIDE or pyfuncitem.get_closest_marker("interpreted") is None:
        return None
    if not _results:
        chosen = [x.nodeid for x in pyfuncitem.session.items if x.get_closest_marker("interpreted")]
        _results.update(_interpret(chosen))
    outcome, text = _results[pyfuncitem.nodeid]
    if outcome == "skipped":
        pytest.skip(text)
    if outcome != "passed":
        pytest.fail(text, pytrace=False)
    return True


def _interpret(nodes: list[str]) -> dict[str, tuple[str, str]]:
    report = _ROOT / ".pytest_cache" / f"interpreted-{os.getpid()}.json"
    report.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", *nodes],
        cwd=_ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", _REPORT: str(report)},
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.exists():
        return dict.fromkeys(nodes, ("failed", f"the interpreting process ended early:\n{done.stdout}{done.stderr}"))
    found = json.loads(report.read_text(encoding="utf-8"))
    report.unlink()
    return {node: tuple(found.get(node, ("failed", done.stdout))) for node in nodes}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if _INSIDE and (report.when == "call" or report.outcome != "passed"):
        text = report.longrepr[2] if report.skipped else report.longreprtext
        _results[item.nodeid] = (report.outcome, text)


def pytest_sessionfinish() -> None:
    if _INSIDE and _REPORT in os.environ:
        Path(os.environ[_REPORT]).write_text(json.dumps(_results), encoding="utf-8")
