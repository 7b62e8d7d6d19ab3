"""POST /v1/embeddings: texts or ids in, a vector for each out, as numbers or as base64.

Knows: OpenAI's embedding fields. Must not know: how a model makes vectors.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from branchwork.runtime.gateway import openai_fields as fields
from branchwork.runtime.gateway.embedding import texts_of
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.web import Call


class Body(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None


async def embeddings(call: Call[Body]) -> Any:
    """A list of embeddings, in the order of the input."""
    body = call.body
    form = body.encoding_format or "float"
    if form not in ("float", "base64"):
        raise Problem(400, "invalid_value", f"encoding_format {form!r} is none of float, base64", "encoding_format")
    fields.refuse(body, ("dimensions",), "other than the model's own are not served; leave it out")
    async with call.service.model(body.model) as served:
        prompts = texts_of(served, body.input)
        data = rows(await call.service.embed(served, prompts, "input"), form)
        count = sum(map(len, prompts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "data": data, "model": body.model, "usage": usage}


def rows(found: Sequence[Sequence[float]], form: str) -> list[dict[str, Any]]:
    """Vectors as they are told. form: float, or base64 of little-endian float32."""
    return [
        {
            "object": "embedding",
            "index": index,
            "embedding": list(vector) if form == "float" else base64.b64encode(array("f", vector).tobytes()).decode(),
        }
        for index, vector in enumerate(found)
    ]
