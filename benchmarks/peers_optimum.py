"""The hit rate that an endless cache would have, computed from a workload alone; no model runs.

Knows: dialogues, token ids. Must not know: servers, clocks.
Each prompt may reuse the longest beginning it shares with any prompt or answer before it, but for its last token,
whose logits somebody has to compute.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

from tokenizers import Tokenizer

_LOOP_TURNS = 3  # a dialogue gives way after each question, so that rows go on side by side as on a server


class Dry:
    """A peer that answers at once with ids nobody else uses, and keeps count. All figures are tokens."""

    name = "dry"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._seen: dict[int, Any] = {}
        self._fresh = count(-1, -1)
        self.prompt = self.reused = self.generated = 0

    @property
    def hit_rate(self) -> float:
        return self.reused / self.prompt if self.prompt else 0.0

    async def ask(self, prompt: tuple[Any, ...], tokens: int, lane: str) -> tuple[int, ...]:
        for _ in range(_LOOP_TURNS):
            await asyncio.sleep(0)
        ids: list[int] = []
        for part in prompt:
            ids += self._tokenizer.encode(part, add_special_tokens=False).ids if isinstance(part, str) else part
        answer = tuple(next(self._fresh) for _ in range(tokens))
        self.prompt += len(ids)
        self.reused += min(self._add((*ids, *answer)), len(ids) - 1)
        self.generated += tokens
        return answer

    async def json(self, prompt: tuple[Any, ...], grammar: str, tokens: int, lane: str) -> tuple[int, ...]:
        return await self.ask(prompt, 0, lane)

    async def choose(self, prompt: tuple[Any, ...], endings: tuple[str, ...], lane: str) -> int:
        await self.ask(prompt, 0, lane)
        return 0

    def _add(self, ids: tuple[int, ...]) -> int:
        """Put the ids into the tree; how many of them were there."""
        node, shared = self._seen, 0
        while shared < len(ids) and ids[shared] in node:
            node = node[ids[shared]]
            shared += 1
        for token in ids[shared:]:
            node = node.setdefault(token, {})
        return shared
