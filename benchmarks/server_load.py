"""The same chats three ways for benchmarks/server.py: into an engine in this process, through ZeroMQ, and over HTTP.

Knows: an engine's loop, the public interface, the client's streams. Must not know: what the figures are compared with.
Every way empties its cache first, so that none finds what another has left.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from array import array
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

from server_client import Streamed, stream

import branchwork as bw

TOPICS = ("rivers", "stones", "gardens", "paper", "bridges", "winter", "bread", "maps", "clocks", "ships")


class Load(NamedTuple):
    """chats at once, each of `tokens` tokens; number: of the round, which makes its chats unlike another's."""

    chats: int
    tokens: int
    number: int

    def words(self, chat: int) -> str:
        return f"Round {self.number}, person {chat}: tell me about {TOPICS[chat % len(TOPICS)]} and the number {chat}."

    def knobs(self, chat: int) -> dict[str, Any]:
        seed = self.number * 10_000 + chat
        return {"max_tokens": self.tokens, "seed": seed, "temperature": 1.0, "ignore_eos": True}

    def body(self, chat: int) -> dict[str, Any]:
        """The chat as OpenAI's clients ask for it."""
        messages = [{"role": "user", "content": self.words(chat)}]
        return {"model": "sapling", "messages": messages, **self.knobs(chat)}


class Run(NamedTuple):
    """seconds: of the whole load. first, gaps: to each chat's first text, and between two pieces of it, in seconds."""

    seconds: float
    tokens: int
    texts: list[str]
    first: Sequence[float] = ()
    gaps: Sequence[float] = ()


# --- straight into an engine


class Raw:
    """An engine in this process: no gateway, no sockets, no text."""

    def __init__(self, directory: Path, options: Sequence[str]) -> None:
        from branchwork.runtime.assembly import build
        from branchwork.runtime.config import parse
        from branchwork.runtime.loading.tokenizer import token_bytes

        self._engine = build(parse([f"model={directory}", *options]), directory, lambda *_: None).engine
        self._bytes = token_bytes(directory)

    def run(self, load: Load, prompts: Sequence[Sequence[int]]) -> Run:
        """prompts: ids of each chat's."""
        from branchwork.runtime import wire

        submits = [
            wire.Submit(
                number,
                array("i", ids).tobytes(),
                wire.Shape(temperature=1.0, seed=load.knobs(number)["seed"]),
                wire.Stops(max_tokens=load.tokens),
                stream=True,
            )
            for number, ids in enumerate(prompts)
        ]
        inbox: list[wire.ToEngine] = [wire.Ask(0, "flush_cache"), *submits]
        ids: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        left = len(prompts)

        def receive(wait: bool) -> list[wire.ToEngine]:
            given, inbox[:] = inbox[:], []
            return given if left else [wire.Stop()]

        def send(events: list[wire.FromEngine]) -> None:
            nonlocal left
            for event in events:
                if isinstance(event, (wire.Tokens, wire.Finished)):
                    ids[event.id] += event.ids
                    times[event.id] += [time.perf_counter()] if event.ids else []
                if isinstance(event, wire.Finished):
                    left -= 1
                if isinstance(event, wire.Failed):
                    raise RuntimeError(f"{event.code}: {event.message}")

        since = time.perf_counter()
        self._engine.run(receive, send)
        seconds = time.perf_counter() - since
        texts = [b"".join(self._bytes[token] for token in one).decode("utf-8", "replace") for one in ids]
        gaps = [gap for one in times for gap in _gaps(one)]
        return Run(seconds, sum(map(len, ids)), texts, [one[0] - since for one in times], gaps)


# --- through the gateway


@bw.function
async def chat(s: Any, words: str, knobs: dict[str, Any]) -> None:
    s += bw.user(words) + bw.assistant(bw.gen("answer", **knobs))
    await s.get("answer")


def programs(backend: bw.RuntimeBackend, load: Load) -> Run:
    """The chats as programs over ZeroMQ, not streamed."""
    backend.flush_cache()

    async def everything() -> list[Any]:
        runs = [chat.arun(load.words(n), load.knobs(n), backend=backend) for n in range(load.chats)]
        return list(await asyncio.gather(*runs))

    since = time.perf_counter()
    states = asyncio.run(everything())
    seconds = time.perf_counter() - since
    tokens = sum(state.meta("answer")["completion_tokens"] for state in states)
    return Run(seconds, tokens, [state["answer"] for state in states])


def chats(port: int, load: Load) -> Run:
    """The chats over HTTP, streamed, all at once."""
    ask(port, "/cache/flush")

    async def everything() -> list[Streamed]:
        return list(await asyncio.gather(*[stream(port, load.body(number)) for number in range(load.chats)]))

    since = time.perf_counter()
    streams = asyncio.run(everything())
    seconds = max(one.ended for one in streams) - since
    tokens = sum(one.usage["completion_tokens"] for one in streams)
    first = [(one.times or [one.ended])[0] - one.sent for one in streams]
    return Run(seconds, tokens, [one.text for one in streams], first, [g for one in streams for g in _gaps(one.times)])


def whole(port: int, load: Load, chat: int) -> str:
    """One of the chats, not streamed."""
    text: str = ask(port, "/v1/chat/completions", load.body(chat))["choices"][0]["message"]["content"]
    return text


def prompt(port: int, load: Load, chat: int) -> list[int]:
    """The ids that the chat's template comes to."""
    ids: list[int] = ask(port, "/tokenize", {"messages": load.body(chat)["messages"]})["ids"]
    return ids


def ask(port: int, path: str, body: Any = None) -> Any:
    """A POST. Raises OSError."""
    data = b"" if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}, method="POST")
    with urlopen(request, timeout=300) as answer:
        return json.load(answer)


def percentile(values: Sequence[float], percent: int) -> float:
    """Of few values the largest stands for the 99th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else max(values)


def _gaps(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]
