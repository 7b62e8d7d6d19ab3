"""The runtime's own HTTP routes.

Knows: Service, ids. Must not know: other dialects.
"""

from __future__ import annotations

from typing import Any

from starlette.routing import Route

from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.gateway.web import Call, Dialect, route

PREFIXES = ("/",)


def _shape(problem: Problem) -> tuple[Any, dict[str, str]]:
    return {"error": {"code": problem.code, "message": problem.message, "param": problem.param}}, {}


DIALECT = Dialect("native", _shape)


def routes(service: Service) -> list[Route]:
    return [route(service, DIALECT, "GET", "/health", None, _health)]


async def _health(call: Call[None]) -> Any:
    return {"status": "ok", "models": [row.name for row in call.service.models.loaded()]}
