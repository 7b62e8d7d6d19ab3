"""The client of benchmarks/server.py: one streamed answer a connection, its bytes put aside with the time they came.

Knows: HTTP/1.1 and server-sent events as far as a local server writes them. Must not know: models, load, figures.
Nothing is read of the bytes before the load is over, so that the client costs the measured cores as little as it can.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, NamedTuple


class Streamed(NamedTuple):
    """A streamed answer. sent, ended: when it was asked for and whole; times: when each piece of its text came.

    All by perf_counter. usage: what the last chunk says of its tokens.
    """

    text: str
    sent: float
    ended: float
    times: list[float]
    usage: dict[str, Any]


class StreamBroken(RuntimeError):
    """The answer was no whole stream; the message begins as the answer does."""


class _Taking(asyncio.Protocol):
    """Sends one request as soon as it is connected, and keeps what comes until the last chunk."""

    def __init__(self, request: bytes, whole: asyncio.Future[list[tuple[float, bytes]]]) -> None:
        self._request = request
        self._whole = whole
        self._parts: list[tuple[float, bytes]] = []
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.sent = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parts.append((time.perf_counter(), data))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._whole.done():
            self._whole.set_result(self._parts)


async def stream(port: int, body: dict[str, Any]) -> Streamed:
    """A streamed chat on a connection of its own. Raises StreamBroken, OSError."""
    data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    loop = asyncio.get_running_loop()
    whole: asyncio.Future[list[tuple[float, bytes]]] = loop.create_future()
    request = _head("POST", "/v1/chat/completions", port, len(data)) + data
    _, taking = await loop.create_connection(lambda: _Taking(request, whole), "127.0.0.1", port)
    return _read(await whole, taking.sent)


def _head(method: str, path: str, port: int, size: int) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\nConnection: close\r\n\r\n"
    ).encode()


def _read(parts: list[tuple[float, bytes]], sent: float) -> Streamed:
    """The events of an answer, each with the time of the read that completed it."""
    text, times, usage, ended = "", [], {}, 0.0
    for at, event in _events(parts):
        if event == b"[DONE]":
            ended = at
            continue
        chunk = json.loads(event)
        usage = chunk.get("usage") or usage
        said = "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
        if said:
            text += said
            times.append(at)
    if not ended:
        raise StreamBroken(b"".join(data for _, data in parts)[:600].decode(errors="replace") or "nothing came")
    return Streamed(text, sent, ended, times, usage)


def _events(parts: list[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """Data of every event. An event is within one HTTP chunk, as the server writes them."""
    found = []
    rest = b""
    for at, data in parts:
        *whole, rest = (rest + data).split(b"\n\n")
        found += [(at, event[event.rindex(b"data: ") + 6 :]) for event in whole if b"data: " in event]
    return found
