"""How Ollama's API shapes errors and streams.

Knows: Problems, lines of JSON. Must not know: any route.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.gateway.web import Dialect, line


def _shape(problem: Problem) -> tuple[Any, dict[str, str]]:
    return {"error": problem.message}, {}


def broken(problem: Problem) -> bytes:
    """The line that ends a stream which cannot go on."""
    return line({"error": problem.message})


async def as_lines(objects: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
    """A stream of objects as it goes out."""
    async with aclosing(objects):
        async for one in objects:
            yield line(one)


DIALECT = Dialect("ollama", _shape)
