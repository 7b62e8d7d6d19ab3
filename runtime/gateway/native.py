"""The runtime's own HTTP routes, listed.

Knows: which handlers serve which paths. Must not know: other dialects, what a handler does.
"""

from __future__ import annotations

from typing import Any

from starlette.routing import Route

from branchwork.runtime.gateway import embedding, generation, page, scoring
from branchwork.runtime.gateway.operations import Operations
from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.gateway.web import Dialect, plain, route

PREFIXES = ("/",)


def _shape(problem: Problem) -> tuple[Any, dict[str, str]]:
    return plain(problem), {}


DIALECT = Dialect("native", _shape)


def routes(service: Service) -> list[Route]:
    operations, shown = Operations(service), page.Page(service)
    told = [  # of the server itself: no limit holds for these, and ending does not wait for them
        ("GET", "/health", operations.health),
        ("GET", "/metrics", operations.metrics),
        ("GET", "/openapi.json", operations.openapi),
        ("GET", "/dashboard/events", shown.events),
        *[("GET", path, handle) for path, handle in page.files()],
    ]
    asked: list[tuple[str, Any, Any]] = [
        ("/generate", generation.Generate, generation.generate),
        ("/tokenize", generation.Tokenize, generation.tokenize),
        ("/detokenize", generation.Detokenize, generation.detokenize),
        ("/embed", embedding.Embed, embedding.embed),
        ("/score", scoring.Score, scoring.score),
        ("/rerank", scoring.Rerank, scoring.rerank),
        ("/cache/flush", None, operations.flush),
    ]
    return [
        *[route(service, DIALECT, method, path, None, handle, counted=False) for method, path, handle in told],
        *[route(service, DIALECT, "POST", path, body, handle) for path, body, handle in asked],
    ]
