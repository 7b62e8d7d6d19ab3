"""What those see who run a server: health, metrics, logs, request ids, and the page's stream of events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import branchwork as bw
from tests.serving import Serving, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("watched")
    alone = {"BRANCHWORK_HOME": str(folder / "library")}
    for server in serving(folder, "--log", "json", environment=alone):
        generate(server)  # the model is there
        yield server


def generate(server: Serving, prompt: str = "Hello", headers: dict[str, str] | None = None, **params: Any) -> Any:
    body = {"prompt": prompt, "params": {"temperature": 0, "max_tokens": 8, "ignore_eos": True, **params}}
    answer = httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def metrics(server: Serving) -> dict[tuple[str, tuple[str, ...]], float]:
    text = httpx.get(f"{server.url}/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def events(server: Serving, wanted: str, tree: str = "") -> Iterator[Any]:
    with httpx.stream("GET", f"{server.url}/dashboard/events?tree={tree}", timeout=30) as answer:
        name = ""
        for line in answer.iter_lines():
            name = line.removeprefix("event: ") if line.startswith("event: ") else name
            if line.startswith("data: ") and name == wanted:
                yield json.loads(line.removeprefix("data: "))


def test_health_fails_while_an_engine_does_not_step(server: Serving) -> None:
    assert httpx.get(f"{server.url}/health").json()["models"]["sapling"]["status"] == "ok"
    engine = server.engine
    engine.suspend()
    try:
        answer = httpx.get(f"{server.url}/health?timeout=0.3")
    finally:
        engine.resume()
    assert answer.status_code == 503 and answer.json()["status"] == "stuck"
    assert "0.3 s" in answer.json()["models"]["sapling"]["reason"]
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/health?timeout=soon").status_code == 400


def test_metrics_count_what_answers_say(server: Serving) -> None:
    before = metrics(server)
    meta = generate(server, "Metrics count the tokens of this prompt").json()["answers"][0]["meta"]
    after = metrics(server)

    def grew(name: str, *labels: str) -> float:
        key = (f"branchwork_{name}", labels or ("sapling",))
        return after[key] - before.get(key, 0)

    assert grew("prompt_tokens_total") == grew("request_prompt_tokens_sum") == meta["prompt_tokens"]
    assert grew("generation_tokens_total") == grew("request_generation_tokens_sum") == 8
    assert grew("cached_tokens_total") == meta["cached_tokens"]
    assert grew("time_to_first_token_seconds_sum") == pytest.approx(meta["first_s"])
    assert grew("e2e_request_latency_seconds_sum") == pytest.approx(meta["total_s"])
    assert grew("request_queue_time_seconds_sum") == pytest.approx(meta["queued_s"])
    assert grew("inter_token_latency_seconds_count") == 1
    assert grew("request_success_total", "length", "sapling") == 1
    assert after["branchwork_num_requests_running", ("sapling",)] == 0
    assert after["branchwork_engine_up", ("sapling",)] == 1
    assert 0 <= after["branchwork_prefix_cache_hit_rate", ("sapling",)] <= 1
    assert after["branchwork_engine_resident_memory_bytes", ("sapling",)] > 1e8


def test_a_silent_engine_is_down_in_the_metrics(server: Serving) -> None:
    engine = server.engine
    engine.suspend()
    try:
        assert metrics(server)["branchwork_engine_up", ("sapling",)] == 0
    finally:
        engine.resume()


def test_a_request_keeps_its_id(server: Serving) -> None:
    assert generate(server, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = [generate(server, headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("", "no spaces")]
    assert len(set(made)) == 2 and all(len(one) == 32 for one in made)
    assert httpx.get(f"{server.url}/nowhere", headers={"x-request-id": "mine-2"}).headers["x-request-id"] == "mine-2"


def test_every_request_is_a_line_of_the_log(server: Serving) -> None:
    meta = generate(server, "A line", headers={"x-request-id": "logged-1"}).json()["answers"][0]["meta"]
    httpx.get(f"{server.url}/no/such/path", headers={"x-request-id": "logged-2"})
    late = time.monotonic() + 10
    lines: dict[str, Any] = {}
    while len(lines) < 2 and time.monotonic() < late:
        written = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith('{"time"')]
        lines = {line["id"]: line for line in written if line["id"].startswith("logged-")}
    told = lines["logged-1"]
    assert (told["route"], told["model"], told["status"]) == ("/generate", "sapling", 200)
    assert told["prompt_tokens"] == meta["prompt_tokens"] and told["completion_tokens"] == 8
    assert told["seconds"] >= told["total_s"] >= told["first_s"] >= told["queued_s"] >= 0
    assert lines["logged-2"]["status"] == 404 and lines["logged-2"]["path"] == "/no/such/path"


def test_onlookers_see_the_tree_and_what_ended(server: Serving) -> None:
    generate(server, "Onlookers see this text")
    tree = next(events(server, "tree", "sapling"))
    assert any(text.startswith("Onlookers") or "Onlookers" in text for *_, text in tree["nodes"])
    assert tree["total"] == len(tree["nodes"]) and all(node[0] < n for n, node in enumerate(tree["nodes"]))
    now = next(events(server, "now"))
    (model,) = now["models"]
    assert model["name"] == "sapling" and model["expires"] is None and model["answers"]
    last = now["ended"][-1]
    assert last["route"] == "/generate" and last["answers"][0]["diverged_text"]


def test_programs_show_beside_http_requests(server: Serving) -> None:
    before = metrics(server)["branchwork_request_success_total", ("length", "sapling")]
    backend = bw.connect(f"ipc://{server.log.parent}/s")

    @bw.function
    def program(s: Any) -> None:
        s += "Programs too" + bw.gen("x", max_tokens=3, temperature=0, ignore_eos=True)

    program.run(backend=backend)["x"]
    backend.close()
    assert metrics(server)["branchwork_request_success_total", ("length", "sapling")] == before + 1
    last = next(events(server, "now"))["ended"][-1]
    assert last["method"] == "PROGRAM" and last["answers"][0]["completion_tokens"] == 3


def test_names_that_share_an_engine_are_counted_once(server: Serving) -> None:
    copied = httpx.post(f"{server.url}/api/copy", json={"source": "sapling", "destination": "twin"})
    assert copied.status_code == 200, copied.text
    body = {"model": "twin", "prompt": "Hello", "params": {"max_tokens": 2}}
    assert httpx.post(f"{server.url}/generate", json=body, timeout=60).status_code == 200
    rows = {labels[0] for name, labels in metrics(server) if name == "branchwork_prompt_tokens_total"}
    assert len(rows) == 1, "two rows of one engine would add up to twice its tokens"
    names = set(httpx.get(f"{server.url}/health").json()["models"])
    assert len(names) == 2 and names >= rows
    assert {model["name"] for model in next(events(server, "now"))["models"]} == names
