"""One runtime with the packaged model for all journeys; started once, ended with the tests. The same of a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import branchwork as bw
from tests import fake_hub
from tests.checkpoints import checkpoint
from tests.serving import addresses


@pytest.fixture(scope="session")
def runtime() -> Iterator[bw.Runtime]:
    with bw.Runtime("sapling", threads=1, pages=40_000) as started:
        yield started


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the server at `site`; programs reach it at ipc://FOLDER/s."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="session")
def site(folder: Path) -> Iterator[str]:
    """The address of a server with sapling, a library of its own, and a hub on this machine that has owner/model.

    One for all dialects' tests.
    """
    with fake_hub.serving({"owner/model": fake_hub.files_of(checkpoint("llama"))}) as hub:
        own = {"BRANCHWORK_HOME": str(folder / "library"), "XDG_CACHE_HOME": str(folder / "cache")}
        own |= {"HF_HUB_CACHE": str(folder / "hub"), "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        yield from addresses(folder, "-o", "threads=1", "-o", "pages=40000", **own)


@pytest.fixture(scope="session")
def address(site: str) -> str:
    """The same."""
    return site


@pytest.fixture(autouse=True)
def nothing_is_held(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every journey leaves the shared runtime's books in order."""
    yield
    if "runtime" in request.fixturenames:
        answer = request.getfixturevalue("runtime").check()
        assert "fault" not in answer, answer
