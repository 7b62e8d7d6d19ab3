"""POST /embed, the runtime's own way to vectors: texts or ids in, what the model makes of each out.

Knows: Service, ids. Must not know: how vectors are made, other dialects.
"""

from __future__ import annotations

from typing import Any

import msgspec

from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.web import Call


class Body(msgspec.Struct):
    """input: a text, texts, a text's ids, or texts' ids. truncate: texts beyond the context are cut, not refused."""

    model: str
    input: str | list[str | int | list[int]]
    truncate: bool = False


async def embed(call: Call[Body]) -> Any:
    """embeddings: a vector for each text; tokens: how many each has."""
    body = call.body
    given: list[str | int | list[int]] = [body.input] if isinstance(body.input, str) else body.input
    ids = [one for one in given if isinstance(one, int)]
    if ids and len(ids) == len(given):
        given = [ids]
    async with call.service.model(body.model) as served:
        prompts: list[list[int]] = []
        for one in given:
            if isinstance(one, int):
                raise Problem(400, "invalid_request", "texts and ids are mixed; give the one or the other", "input")
            prompts.append(one if isinstance(one, list) else served.text_to_embed(one, truncate=body.truncate).ids)
        if not prompts:
            raise Problem(400, "empty_prompt", "there is nothing to embed; give a text", "input")
        vectors = await call.service.embed(served, prompts, "input")
        return {"model": body.model, "embeddings": vectors, "tokens": [len(ids) for ids in prompts]}
