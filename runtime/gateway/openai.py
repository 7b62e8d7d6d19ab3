"""OpenAI's HTTP API: which routes there are, and the models that they list.

Knows: paths, OpenAI's shapes of models. Must not know: fields of requests, how answers are made.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.routing import Route

from branchwork.runtime.gateway import openai_chat, openai_embeddings, openai_responses, openai_text
from branchwork.runtime.gateway.openai_responses import Responses
from branchwork.runtime.gateway.openai_shapes import DIALECT
from branchwork.runtime.gateway.openai_store import Store, default_file
from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.gateway.web import Call, route

PREFIXES = ("/v1/",)
_STARTED = int(time.time())


def routes(service: Service) -> list[Route]:
    """Every route of this dialect."""
    responses = Responses(Store(default_file()))
    one = "/v1/responses/{number}"
    return [
        route(service, DIALECT, "POST", "/v1/chat/completions", openai_chat.Body, openai_chat.chat),
        route(service, DIALECT, "POST", "/v1/completions", openai_text.Body, openai_text.completion),
        route(service, DIALECT, "POST", "/v1/embeddings", openai_embeddings.Body, openai_embeddings.embeddings),
        route(service, DIALECT, "POST", "/v1/responses", openai_responses.Body, responses.create),
        route(service, DIALECT, "GET", one, None, responses.get),
        route(service, DIALECT, "DELETE", one, None, responses.delete),
        route(service, DIALECT, "GET", f"{one}/input_items", None, responses.items),
        route(service, DIALECT, "GET", "/v1/models", None, _models),
        route(service, DIALECT, "GET", "/v1/models/{name:path}", None, _model),
    ]


async def _models(call: Call[None]) -> Any:
    return {"object": "list", "data": [_shape(call.service, name) for name in call.service.models.names()]}


async def _model(call: Call[None]) -> Any:
    name = call.http.path_params["name"]
    if not call.service.models.knows(name):
        raise Problem(404, "model_not_found", f"there is no model {name!r} here", "model")
    return _shape(call.service, name)


def _shape(service: Service, name: str) -> dict[str, Any]:
    """A model. max_model_len: tokens of its context, once it is loaded."""
    shape: dict[str, Any] = {"id": name, "object": "model", "created": _STARTED, "owned_by": "branchwork"}
    found = next((row.served for row in service.models.loaded() if row.name == name), None)
    return shape if found is None else shape | {"max_model_len": found.info.context}
