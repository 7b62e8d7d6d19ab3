"""One runtime with the packaged model for all journeys; started once, ended with the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import branchwork as bw
from tests.serving import serving


@pytest.fixture(scope="session")
def runtime() -> Iterator[bw.Runtime]:
    with bw.Runtime("sapling", threads=1, pages=40_000) as started:
        yield started


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the server at `address`; programs reach it at ipc://FOLDER/s."""
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="session")
def address(folder: Path) -> Iterator[str]:
    """Where a server with the packaged model answers HTTP; one for all dialects' tests."""
    yield from serving(folder, "-o", "threads=1", "-o", "pages=40000", XDG_CACHE_HOME=str(folder))


@pytest.fixture(autouse=True)
def nothing_is_held(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every journey leaves the shared runtime's books in order."""
    yield
    if "runtime" in request.fixturenames:
        answer = request.getfixturevalue("runtime").check()
        assert "fault" not in answer, answer
