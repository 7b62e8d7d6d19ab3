"""`branchwork serve` over HTTP as its clients meet it: it answers, says what is wrong, and ends in order."""

from __future__ import annotations

import httpx


def test_it_says_that_it_is_well(site: str) -> None:
    assert httpx.get(f"{site}/health").json()["status"] == "ok"


def test_an_unknown_path_says_so(site: str) -> None:
    answer = httpx.get(f"{site}/nowhere")
    assert answer.status_code == 404 and "there is no GET /nowhere here" in answer.json()["error"]["message"]
