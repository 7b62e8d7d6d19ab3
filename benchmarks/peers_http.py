"""A small asynchronous HTTP client for benchmarks/peers.py: kept-alive connections, JSON in and out.

Knows: HTTP/1.1 as far as a local server speaks it. Must not know: models, workloads.
Written on asyncio streams, so that the client of the other side costs less than any library would.
"""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any


class HttpError(RuntimeError):
    """The server answered with another status than 200; the message has the status and the start of its answer."""


class Client:
    """Requests to one server on loopback; as many connections as there are requests at once, each used again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def get(self, path: str) -> Any:
        """Raises HttpError, OSError when nobody listens."""
        return await self._ask("GET", path, b"")

    async def post(self, path: str, body: Any) -> Any:
        """Raises HttpError, OSError when nobody listens."""
        return await self._ask("POST", path, json.dumps(body, separators=(",", ":")).encode())

    async def _ask(self, method: str, path: str, body: bytes) -> Any:
        reader, writer = (
            self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        )
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: application/json\r\n"
        try:
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status, headers = await _head(reader)
            answer = await _body(reader, headers)
        except BaseException:
            writer.close()
            raise
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        if status != 200:
            raise HttpError(f"{method} {path}: status {status}: {answer[:400].decode(errors='replace')}")
        return json.loads(answer)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split(" ", 2)[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)
