"""/embed: texts or ids in, what the model makes of each out; and how every dialect asks for vectors.

Knows: Service, ids. Must not know: how vectors are made, other dialects' fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from branchwork.runtime.gateway.generation import Id, named
from branchwork.runtime.gateway.served import Served
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.web import Call


class Embed(msgspec.Struct, kw_only=True):
    """input: a text, a text's ids, or a list of either. truncate: texts beyond the context are cut, not refused."""

    input: str | list[str | Id | list[Id]]
    model: str = ""
    truncate: bool = False


async def embed(call: Call[Embed]) -> Any:
    """A vector for each text, with how many tokens it has."""
    body = call.body
    async with call.service.model(named(call.service, body.model)) as served:
        prompts = texts_of(served, body.input, truncate=body.truncate)
        vectors = await call.service.embed(served, prompts, "input")
        return {"model": served.name, "embeddings": vectors, "prompt_tokens": [len(ids) for ids in prompts]}


def texts_of(
    served: Served, given: str | Sequence[str | int | list[int]], name: str = "input", *, truncate: bool = False
) -> list[list[int]]:
    """The ids of each text that is to become a vector, as the model wants them. name: the field they came in.

    Raises Problem 400.
    """
    ids = [one for one in given if isinstance(one, int)]
    if isinstance(given, str) or (ids and len(ids) == len(given)):
        every: Sequence[str | int | list[int]] = [given if isinstance(given, str) else ids]
    else:
        every = given
    if not every or (ids and len(ids) < len(given)):
        text = f"{name} is a text, a list of token ids, or a list of either, and not empty"
        raise Problem(400, "invalid_request", text, name)
    found: list[list[int]] = []
    for one in every:
        if isinstance(one, str):
            found.append(served.text_to_embed(one, truncate=truncate).ids)
        elif isinstance(one, list):
            found.append(one)
    vocab = served.ready.vocab
    strange = next((number for text in found for number in text if not 0 <= number < vocab), None)
    if strange is not None:
        raise Problem(400, "bad_token", f"there is no token {strange}; the vocabulary has {vocab}", name)
    return found
