"""Spans for OpenTelemetry, a span a request, with the attribute names of its conventions for generative AI.

Knows: the journal's requests, OpenTelemetry. Must not know: HTTP, models. Nothing here is imported by OpenTelemetry's
absence: it is an option (`pip install branchwork[otel]`), and is on where OTEL_EXPORTER_OTLP_ENDPOINT is set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from branchwork.runtime.config import ConfigError
from branchwork.runtime.gateway.journal import Asked

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_CHAT = ("chat", "messages", "responses")
_OPERATIONS = {"embed": "embeddings"}


class Tracing(NamedTuple):
    """hear: a request has ended. close: send what is left."""

    hear: Callable[[Asked], None]
    close: Callable[[], None]


def tracing() -> Tracing | None:
    """None where no endpoint is set. Raises ConfigError where one is set and the packages are missing."""
    if not any(os.environ.get(name) for name in VARIABLES):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError as error:
        text = f"{VARIABLES[0]} is set, but OpenTelemetry is not installed: pip install 'branchwork[otel]'"
        raise ConfigError(text) from error

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "branchwork")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("branchwork")
    propagator = TraceContextTextMapPropagator()

    def hear(asked: Asked) -> None:
        began = int(asked.began * 1e9)
        parent = propagator.extract({"traceparent": asked.trace}) if asked.trace else None
        span = tracer.start_span(name(asked), parent, SpanKind.SERVER, attributes=attributes(asked), start_time=began)
        if asked.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(began + int(asked.seconds * 1e9))

    return Tracing(hear, provider.shutdown)


def name(asked: Asked) -> str:
    """ "chat sapling" for what a model answered, "GET /metrics" for the rest."""
    return f"{operation(asked)} {asked.model}" if asked.model else f"{asked.method} {asked.route or 'unknown'}"


def operation(asked: Asked) -> str:
    """gen_ai.operation.name, by the route's last words."""
    for word, found in _OPERATIONS.items():
        if word in asked.route:
            return found
    return "chat" if any(word in asked.route for word in _CHAT) else "text_completion"


def attributes(asked: Asked) -> dict[str, Any]:
    """Of HTTP's and generative AI's conventions, and what only this runtime knows under `branchwork.`."""
    told: dict[str, Any] = {
        "http.request.method": asked.method,
        "http.route": asked.route,
        "http.response.status_code": asked.status,
        "url.path": asked.path,
        "branchwork.request.id": asked.id,
    }
    if asked.model:
        told |= {
            "gen_ai.operation.name": operation(asked),
            "gen_ai.provider.name": "branchwork",
            "gen_ai.request.model": asked.model,
        }
    if asked.answers:
        first = asked.answers[0]
        told |= {
            "gen_ai.response.model": asked.model,
            "gen_ai.usage.input_tokens": asked.prompt_tokens,
            "gen_ai.usage.output_tokens": asked.completion_tokens,
            "gen_ai.response.finish_reasons": [answer.get("finish_reason", "choice") for answer in asked.answers],
            "gen_ai.server.time_to_first_token": first.get("first_s", 0.0),
            "branchwork.usage.cached_tokens": asked.cached_tokens,
            "branchwork.queue_time": first.get("queued_s", 0.0),
        }
    return told
