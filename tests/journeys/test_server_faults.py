"""A server under load whose engine is killed, whose clients leave, or which is told to end: nothing is lost or held."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import Serving, serving

pytestmark = pytest.mark.timeout(120)
CHATS = "/v1/chat/completions"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    """A server of a test's own."""
    yield from serving(tmp_path, "-o", "threads=1", "-o", "pages=20000", "--grace", "20")


def body(number: int, tokens: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Person {number} asks for {number} stories."}]
    knobs = {"max_tokens": tokens, "seed": number, "temperature": 1, "ignore_eos": True}
    return {"model": "sapling", "messages": messages, "stream": True, **knobs, **more}


async def streamed(
    client: httpx.AsyncClient, number: int, tokens: int, begun: Callable[[], None] = lambda: None
) -> str:
    """The text of a streamed chat. begun: called at its first piece."""
    text = ""
    async with client.stream("POST", CHATS, json=body(number, tokens)) as answer:
        assert answer.status_code == 200, await answer.aread()
        ended = False
        async for line in answer.aiter_lines():
            ended = ended or line == "data: [DONE]"
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                said = chunk["choices"][0]["delta"].get("content")
                if said:
                    begun()
                text += said or ""
    assert ended
    return text


async def all_of(url: str, count: int, tokens: int, midway: Callable[[], Any] | None = None) -> list[str]:
    """The texts of chats at once. midway: called in a thread once each of them has begun."""
    started: set[int] = set()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        chats = [
            asyncio.create_task(streamed(client, number, tokens, lambda n=number: started.add(n)))  # type: ignore[misc]
            for number in range(count)
        ]
        while midway is not None and len(started) < count:
            await asyncio.sleep(0.005)
        if midway is not None:
            await asyncio.to_thread(midway)
        return list(await asyncio.gather(*chats))


def running(url: str) -> int:
    return sum(row["running"] + row["waiting"] for row in httpx.get(f"{url}/health").json()["models"].values())


def until(true: Callable[[], bool], seconds: float = 15) -> None:
    late = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < late, f"not so within {seconds} s"
        time.sleep(0.02)


def test_chats_go_on_after_their_engine_was_killed(server: Serving) -> None:
    calm = asyncio.run(all_of(server.url, 20, 150))
    engine = server.engine
    shaken = asyncio.run(all_of(server.url, 20, 150, engine.kill))
    assert shaken == calm
    assert server.engine.pid != engine.pid


def test_who_leaves_midway_leaves_nothing_running(server: Serving) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(5):
            with client.stream("POST", CHATS, json=body(1, 1900)) as answer:
                assert next(answer.iter_bytes())
    waiting = {**body(2, 1900), "stream": False, "n": 4}
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0), timeout=10) as raw:
        data = json.dumps(waiting).encode()
        head = f"POST {CHATS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        raw.sendall(head.encode() + data)
        until(lambda: running(server.url) == 4)
    until(lambda: running(server.url) == 0, seconds=2)
    assert httpx.get(f"{server.url}/health").json()["under_way"] == 0


def test_a_server_told_to_end_lets_its_chats_finish_and_takes_no_new_ones(server: Serving) -> None:
    calm = asyncio.run(all_of(server.url, 8, 600))
    refused: list[httpx.Response] = []

    def end() -> None:
        server.process.send_signal(signal.SIGTERM)
        for path in (CHATS, "/v1/messages", "/api/chat"):
            asked = {**body(0, 4), "stream": False}
            until(lambda path=path, asked=asked: httpx.post(f"{server.url}{path}", json=asked).status_code == 503)  # type: ignore[misc]
            refused.append(httpx.post(f"{server.url}{path}", json=asked))

    assert asyncio.run(all_of(server.url, 8, 600, end)) == calm
    assert server.process.wait(timeout=10) == 0
    assert [answer.status_code for answer in refused] == [503] * 3
    assert all("retry-after" in answer.headers and "shutting down" in answer.text for answer in refused)
    assert "8 requests are under way" in server.log.read_text()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "branchwork",
            "serve",
            "--port",
            str(port),
            "--endpoint",
            f"ipc://{tmp_path}/s",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"port {port}" in done.stderr and "another --port" in done.stderr
