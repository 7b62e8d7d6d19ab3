"""Programs asked for inside the gateway: HTTP requests run on the same host, tree and engine as everybody's programs.

Knows: programs.host, nodes, protocol messages. Must not know: HTTP, dialects, models.
An answer of n samples is a program that forks n branches after its prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from branchwork.lang import protocol
from branchwork.lang.constraint import Constraint
from branchwork.lang.ir import Fork, Gen, Ids, Laid, Select, Sent
from branchwork.lang.params import SamplingParams
from branchwork.runtime.programs.gens import pack, seeds
from branchwork.runtime.programs.host import Host

CONNECTION = b"local"  # names of clients' connections begin with a zero byte


class Piece(NamedTuple):
    """More of answer number `sample`: its text (perhaps none yet), its tokens, and the log-probabilities asked for.

    logprobs: (value, id, text) of each token; tops: the same of the likeliest ones in its place.
    """

    sample: int
    text: str
    ids: list[int]
    logprobs: list[tuple[float, int, str]]
    tops: list[list[tuple[float, int, str]]]


class Ended(NamedTuple):
    """Answer number `sample` is whole. meta: what programs.gens says of it (finish_reason, prompt_tokens ...)."""

    sample: int
    text: str
    meta: dict[str, Any]


class ProgramFailed(Exception):
    """An answer that will not come; code is short and stable (context_length, queue_full, ...), see wire.Failed."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Local:
    """In-process programs of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._heard: dict[int, asyncio.Queue[protocol.GatewayMessage]] = {}
        self._next = 0

    @property
    def under_way(self) -> int:
        """Programs that somebody waits for."""
        return len(self._heard)

    def emit(self, message: protocol.GatewayMessage) -> None:
        """What the host says to CONNECTION."""
        if isinstance(message, (protocol.Delta, protocol.Done, protocol.Failed)) and message.program in self._heard:
            self._heard[message.program].put_nowait(message)

    def lose(self, message: str) -> None:
        """The engine is gone for good: whoever waits hears of it."""
        for program, heard in self._heard.items():
            heard.put_nowait(protocol.Failed(program, 0, 0, "runtime_lost", message))
        self._host.embeds.lose(message)

    async def answers(
        self,
        prompt: Sequence[int],
        text: str,
        params: SamplingParams,
        constraint: Constraint | None = None,
        *,
        stream: bool = False,
    ) -> AsyncGenerator[Piece | Ended, None]:
        """params.n answers after the prompt's ids, which read `text`: with `stream` in pieces as they come, then whole.

        Leaving the iteration early cancels what is under way. Raises ProgramFailed.
        """
        nodes: list[tuple[int, Sent]] = [(0, Ids(pack(prompt), text))]
        if params.n == 1:
            nodes.append((0, Gen("answer", params=params, constraint=constraint)))
        else:
            nodes.append((0, Fork(tuple(range(1, params.n + 1)))))
            for branch, seed in enumerate(seeds(params), 1):
                own = msgspec.structs.replace(params, n=1, seed=seed)
                nodes.append((branch, Gen("answer", params=own, constraint=constraint)))
        left = params.n
        async with aclosing(self._run(nodes, stream)) as messages:
            async for message in messages:
                sample = max(message.branch - 1, 0)
                if isinstance(message, protocol.Delta):
                    meta = message.meta
                    scores, tops = meta.get("output_token_logprobs", []), meta.get("output_top_logprobs", [])
                    yield Piece(sample, message.text, meta.get("output_ids", []), scores, tops)
                elif message.meta:
                    yield Ended(sample, message.values[0], message.meta[0])
                    left -= 1
                    if not left:
                        return

    async def choice(self, prompt: Sequence[int], text: str, choices: Sequence[str], method: str) -> Ended:
        """One of the choices, as `select` chooses. Raises ProgramFailed."""
        nodes: list[tuple[int, Sent]] = [(0, Ids(pack(prompt), text)), (0, Select("answer", tuple(choices), method))]
        async with aclosing(self._run(nodes, False)) as messages:
            async for message in messages:
                if isinstance(message, protocol.Done) and message.meta:
                    return Ended(0, message.values[0], message.meta[0])
        raise ProgramFailed("closed", "the runtime ended before it had chosen")

    async def _run(
        self, nodes: Sequence[tuple[int, Sent]], stream: bool
    ) -> AsyncGenerator[protocol.Delta | protocol.Done, None]:
        program = self._next = self._next + 1
        heard: asyncio.Queue[protocol.GatewayMessage] = asyncio.Queue()
        self._heard[program] = heard
        try:
            self._host.open(CONNECTION, program, stream, detail=stream)
            for number, (branch, node) in enumerate(nodes):
                self._host.feed(CONNECTION, program, branch, (Laid(number, node),))
            while True:
                message = await heard.get()
                if isinstance(message, protocol.Failed):
                    raise ProgramFailed(message.code, message.message)
                if isinstance(message, (protocol.Delta, protocol.Done)):
                    yield message
        finally:
            del self._heard[program]
            self._host.close(CONNECTION, program)
