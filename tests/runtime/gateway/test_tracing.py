"""Spans reach an OpenTelemetry collector with the conventions' names; lines of the log cannot be forged."""

from __future__ import annotations

import io
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from branchwork.runtime.config import ConfigError
from branchwork.runtime.gateway import logs
from branchwork.runtime.gateway.journal import Asked
from branchwork.runtime.gateway.tracing import VARIABLES, attributes, name, tracing

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
ANSWER = {
    "prompt_tokens": 7,
    "cached_tokens": 3,
    "computed_tokens": 9,
    "completion_tokens": 5,
    "finish_reason": "stop",
    "queued_s": 0.1,
    "first_s": 0.2,
    "total_s": 0.5,
}


def asked(path: str = "/v1/chat/completions", **more: object) -> Asked:
    row = Asked(1, "id-1", "POST", path, 1_700_000_000.0, route=path, model="sapling", status=200, seconds=0.6)
    for sample in (0, 1):
        row.take(ANSWER, sample)
    return row


def test_spans_have_the_names_of_the_conventions() -> None:
    row = asked()
    told = attributes(row)
    assert name(row) == "chat sapling" and told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.usage.input_tokens"] == 7 and told["gen_ai.usage.output_tokens"] == 10
    assert told["gen_ai.response.finish_reasons"] == ["stop", "stop"] and told["http.response.status_code"] == 200
    assert name(asked("/v1/embeddings")) == "embeddings sapling"
    assert name(Asked(2, "id-2", "GET", "/metrics", 0.0, route="/metrics")) == "GET /metrics"


def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(EXPORTER, reason="OpenTelemetry is not installed")
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, form: str, *values: object) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    serving = threading.Thread(target=collector.serve_forever)
    serving.start()
    try:
        monkeypatch.setenv(VARIABLES[0], f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        spans = tracing()
        assert spans is not None
        row = asked()
        row.trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        spans.hear(row)
        spans.close()
    finally:
        collector.shutdown()
        serving.join()
        collector.server_close()
    sent = b"".join(bodies)
    assert b"chat sapling" in sent and b"gen_ai.usage.input_tokens" in sent and b"id-1" in sent
    assert bytes.fromhex("0af7651916cd43dd8448eb211c80319c") in sent, "the caller's trace goes on"


def test_tracing_is_off_without_an_endpoint_and_refuses_to_be_half_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert tracing() is None
    monkeypatch.setenv(VARIABLES[0], "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, EXPORTER, None)
    with pytest.raises(ConfigError, match=r"branchwork\[otel\]"):
        tracing()


def test_a_path_cannot_write_lines_of_its_own() -> None:
    for form in ("text", "json"):
        out = io.StringIO()
        row = asked("/a\n2026-01-01 200 GET /forged")
        logs.sink(form, out)(row)
        assert out.getvalue().count("\n") == 1 and "id-1" in out.getvalue()
