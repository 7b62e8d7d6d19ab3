"""Ollama's HTTP API: its routes, what their requests hold, and its errors.

Knows: Ollama's fields. Must not know: how answers are made (ollama_answers), what the library does (ollama_library).
"""

from __future__ import annotations

from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from branchwork.runtime.gateway import ollama_answers as answers
from branchwork.runtime.gateway import ollama_library as library
from branchwork.runtime.gateway.ollama_dialect import DIALECT
from branchwork.runtime.gateway.service import Service
from branchwork.runtime.gateway.web import Call, route

PREFIXES = ("/api",)
VERSION = "0.12.0"  # of Ollama, whose API this follows; clients look here for what they may ask


def routes(service: Service) -> list[Route]:
    def post(path: str, body: Any, handle: Any) -> Route:
        return route(service, DIALECT, "POST", path, body, handle)

    return [
        _Bare("/", _running, methods=["GET"]),
        post("/api/generate", answers.Generate, answers.generate),
        post("/api/chat", answers.Chat, answers.chat),
        post("/api/embed", answers.Embed, answers.embed),
        post("/api/embeddings", answers.Embeddings, answers.embeddings),
        route(service, DIALECT, "GET", "/api/tags", None, library.tags),
        route(service, DIALECT, "GET", "/api/ps", None, library.running),
        route(service, DIALECT, "GET", "/api/version", None, _version),
        post("/api/show", library.Named, library.show),
        post("/api/pull", library.Named, library.pull),
        post("/api/create", library.Create, library.create),
        post("/api/copy", library.Copy, library.copy),
        route(service, DIALECT, "DELETE", "/api/delete", library.Named, library.delete),
    ]


class _Bare(Route):
    """For whoever does not ask for a page, as clients that look whether anything is there."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        accepts = dict(scope.get("headers", ())).get(b"accept", b"")
        return (Match.NONE, {}) if b"text/html" in accepts else super().matches(scope)


async def _running(request: Any) -> Response:
    return PlainTextResponse("Branchwork is running")


async def _version(call: Call[None]) -> Any:
    return {"version": VERSION}
