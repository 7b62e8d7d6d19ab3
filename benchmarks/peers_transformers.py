"""transformers as a peer of benchmarks/peers.py: its process, and its side of the workloads in whole batches.

Knows: the worker's questions. Must not know: workloads, the other peers.
Whatever the dialogues ask for before any of them can go on is one round: a batch for each length of answer.
"""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers_processes import Lines, Missing, child
from tokenizers import Tokenizer

WORKER = Path(__file__).with_name("peers_worker.py")
_SETTLED = 50  # turns of the event loop after which every dialogue that can go on has asked its next question


class Transformers:
    """The peer as the workloads see it; `answer_rounds` has to run beside them."""

    name = "transformers"

    def __init__(self, lines: Lines, tokenizer: Tokenizer, versions: dict[str, str]) -> None:
        self._lines, self._tokenizer, self.versions = lines, tokenizer, versions
        self._waiting: list[tuple[list[int], int, asyncio.Future[tuple[int, ...]]]] = []
        self._scored: list[tuple[list[tuple[list[int], list[int]]], asyncio.Future[int]]] = []

    async def ask(self, prompt: tuple[Any, ...], tokens: int, lane: str) -> tuple[int, ...]:
        answer: asyncio.Future[tuple[int, ...]] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._ids(prompt), tokens, answer))
        return await answer

    async def json(self, prompt: tuple[Any, ...], grammar: str, tokens: int, lane: str) -> tuple[int, ...]:
        raise Missing("transformers' generate writes no JSON by a grammar")

    async def choose(self, prompt: tuple[Any, ...], endings: tuple[str, ...], lane: str) -> int:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        context = self._ids(prompt)
        self._scored.append(([(context, self._ids((ending,))) for ending in endings], answer))
        return await answer

    async def run(self, dialogues: list[Any]) -> None:
        """All dialogues to their ends, round by round."""
        gathered = asyncio.gather(*dialogues)
        while not gathered.done():
            for _ in range(_SETTLED):
                await asyncio.sleep(0)
            self._round()
        await gathered

    def _round(self) -> None:
        waiting, self._waiting = self._waiting, []
        for tokens in sorted({tokens for _, tokens, _ in waiting}):
            batch = [(ids, answer) for ids, count, answer in waiting if count == tokens]
            found = self._lines.ask({"generate": [ids for ids, _ in batch], "tokens": tokens})
            for (_, answer), ids in zip(batch, found):
                answer.set_result(tuple(ids))
        scored, self._scored = self._scored, []
        if scored:
            found = iter(self._lines.ask({"score": [row for rows, _ in scored for row in rows]}))
            for rows, choice in scored:
                scores = [next(found) for _ in rows]
                choice.set_result(scores.index(max(scores)))

    def _ids(self, prompt: tuple[Any, ...]) -> list[int]:
        ids: list[int] = []
        for part in prompt:
            ids += self._tokenizer.encode(part, add_special_tokens=False).ids if isinstance(part, str) else part
        return ids


@contextmanager
def served(directory: Path, threads: int, tokenizer: Tokenizer) -> Iterator[Transformers]:
    """A running worker, with its first token already out. Raises Missing."""
    if importlib.util.find_spec("transformers") is None:
        raise Missing("transformers is not installed; pip install 'branchwork[hf]'")
    command = [sys.executable, str(WORKER), str(directory), str(threads)]
    with tempfile.TemporaryFile("w+") as errors:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with child(command, **pipes) as process:
            lines = Lines(process, errors)
            peer = Transformers(lines, tokenizer, lines.read())
            lines.ask({"generate": [tokenizer.encode("The first").ids], "tokens": 1})
            yield peer
