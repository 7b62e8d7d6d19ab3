"""Whatever the OpenAPI document allows, and what it does not, the server answers: none of it is an error of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.serving import addresses

schemathesis: Any = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

ENDLESS = "/dashboard/events"
PATHS = {  # what is asked by default; the others are soaked
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
    *("/api/chat", "/api/generate", "/api/show", "/generate", "/tokenize", "/score", "/rerank"),
}
SHORT = {"max_tokens": 8, "max_output_tokens": 8, "max_completion_tokens": 8, "n": 2, "best_of": 2}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own, whose library may be spoilt."""
    folder = tmp_path_factory.mktemp("fuzzed")
    own = {"BRANCHWORK_HOME": str(folder / "library"), "HF_HUB_OFFLINE": "1"}
    yield from addresses(folder, "-o", "threads=1", "-o", "pages=20000", **own)


def examine(address: str, examples: int, paths: set[str] | None = None) -> int:
    """Ask what schemathesis thinks of, allowed and not; the number of answers."""
    document = httpx.get(f"{address}/openapi.json").json()
    asked = 0
    schema = schemathesis.openapi.from_dict(document)
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == ENDLESS or (paths is not None and operation.path not in paths):
            continue
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode is schemathesis.GenerationMode.NEGATIVE and not operation.body:  # any text is a path
                continue

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal asked
                if isinstance(case.body, dict):
                    if isinstance(case.body.get("model"), str):
                        case.body["model"] = "sapling"
                    case.body |= {name: few for name, few in SHORT.items() if isinstance(case.body.get(name), int)}
                answer = case.call(base_url=address, timeout=60)
                assert answer.status_code < 500, f"{case.as_curl_command()}\n{answer.text[:500]}"
                asked += 1

            ask()
    assert httpx.get(f"{address}/health").json()["status"] == "ok"
    return asked


def test_odd_requests_to_the_main_routes_are_no_errors_of_the_server(fuzzed: str) -> None:
    assert examine(fuzzed, 4, PATHS) >= len(PATHS) * 4


@pytest.mark.soak
def test_odd_requests_to_all_routes_are_no_errors_of_the_server(fuzzed: str) -> None:
    assert examine(fuzzed, 60) >= 60
