"""Vectors asked for inside the gateway: whoever leaves cancels, a new engine is asked again, nobody waits for ever."""

from __future__ import annotations

import asyncio
from array import array

import pytest

from branchwork.runtime import wire
from branchwork.runtime.programs.embeds import EmbedFailed, Embeds

USAGE = wire.Usage(prompt=1, reused=0, computed=1, diverged=0)


class Bench:
    """Embeds with the engine's inbox recorded."""

    def __init__(self) -> None:
        self.sent: list[wire.ToEngine] = []
        self.embeds = Embeds(self.sent.append)

    def ask(self, *numbers: int) -> asyncio.Task[list[wire.Embedded]]:
        asked = [wire.Embed(number, array("i", [number]).tobytes()) for number in numbers]
        return asyncio.ensure_future(self.embeds.ask(asked))

    def answer(self, number: int) -> bool:
        return self.embeds.hear(wire.Embedded(number, array("f", [number]).tobytes(), USAGE))


async def beat() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_vectors_come_in_the_order_of_their_texts() -> None:
    async def body() -> None:
        bench = Bench()
        asked = bench.ask(1, 2, 3)
        await beat()
        assert all(bench.answer(number) for number in (3, 1, 2))
        assert [one.id for one in await asked] == [1, 2, 3]
        assert len(bench.embeds) == 0 and all(isinstance(message, wire.Embed) for message in bench.sent)
        assert not bench.answer(1), "nobody waits for it any longer"

    asyncio.run(body())


def test_leaving_cancels_what_has_not_come() -> None:
    async def body() -> None:
        bench = Bench()
        asked = bench.ask(1, 2, 3)
        await beat()
        bench.answer(2)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert bench.sent[3:] == [wire.Cancel(1), wire.Cancel(3)] and len(bench.embeds) == 0

    asyncio.run(body())


def test_one_that_fails_fails_them_all_and_says_which() -> None:
    async def body() -> None:
        bench = Bench()
        asked = bench.ask(1, 2, 3)
        await beat()
        bench.answer(1)
        bench.embeds.hear(wire.Failed(2, "context_length", "too long"))
        with pytest.raises(EmbedFailed, match="too long") as caught:
            await asked
        assert (caught.value.code, caught.value.index) == ("context_length", 1)
        assert bench.sent[3:] == [wire.Cancel(3)]

    asyncio.run(body())


def test_a_new_engine_is_asked_for_what_is_missing() -> None:
    async def body() -> None:
        bench = Bench()
        asked = bench.ask(1, 2)
        await beat()
        bench.answer(1)
        again = bench.embeds.restart()
        assert again == [bench.sent[1]]
        bench.answer(2)
        assert len(await asked) == 2

    asyncio.run(body())


def test_when_the_engine_is_gone_for_good_whoever_waits_hears_of_it() -> None:
    async def body() -> None:
        bench = Bench()
        asked = bench.ask(1)
        await beat()
        bench.embeds.lose("it keeps dying")
        with pytest.raises(EmbedFailed, match="it keeps dying") as caught:
            await asked
        assert caught.value.code == "runtime_lost"

    asyncio.run(body())
