"""The OpenAPI document of all routes, made from the types that their bodies are decoded with.

Knows: documented routes, msgspec's schemas. Must not know: what any route does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.routing import BaseRoute

from branchwork.runtime.gateway.web import EVENTS, JSON, Documented

_PLACE = re.compile(r"\{(\w+)(?::\w+)?\}")  # a parameter in Starlette's paths, {name} or {name:path}


def document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """OpenAPI 3.1. A body's schema says what is accepted; answers are told by their dialects' own documentation."""
    known = [route for route in routes if isinstance(route, Documented)]
    bodies = list(dict.fromkeys(route.takes for route in known if route.takes is not None))
    schemas, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    of = dict(zip(bodies, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in known:
        path = _PLACE.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Branchwork", "version": version("branchwork")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: Documented, of: dict[Any, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "tags": [route.dialect],
        "operationId": f"{route.method.lower()} {route.path}",
        "description": route.about,
        "responses": {
            "200": {"description": "The answer.", "content": {JSON: {}, EVENTS: {}}},
            "default": {"description": "A problem, in the dialect's own shape."},
        },
    }
    names = _PLACE.findall(route.path)
    if names:
        told["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if route.takes is not None:
        told["requestBody"] = {"required": True, "content": {JSON: {"schema": of[route.takes]}}}
    return told
