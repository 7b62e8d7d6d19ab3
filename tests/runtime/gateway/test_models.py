"""Models by name: loaded once, shared by names of one engine, let go when their time is up."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from branchwork.runtime.gateway.models import FOREVER, Models, Unavailable, Unknown, Wanted
from branchwork.runtime.loading.errors import LoadError

ENGINES = {"big": "big", "plain": "small", "polite": "small", "broken": "broken"}


class FakeServed:
    """A model that does nothing but note what happens to it. log: shared by all of them."""

    memory = 10

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    async def start(self, say: Callable[[str, float], None]) -> None:
        if self.name == "broken":
            raise LoadError("weights_damaged", "the weights are damaged")
        self._log.append(f"start {self.name}")

    async def serve(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self._log.append(f"stop {self.name}")

    def under(self, name: str, found: object) -> FakeServed:
        other = copy.copy(self)
        other.name = name
        return other


def run(work: Callable[[Models, list[str]], Awaitable[None]], **options: Any) -> list[str]:
    """What happened to the models while `work` was done."""
    log: list[str] = []

    def find(name: str) -> Wanted | None:
        return Wanted(name, ENGINES[name], ()) if name in ENGINES else None

    def build(wanted: Wanted) -> Any:
        return FakeServed(wanted.name, log)

    async def main() -> None:
        models = Models(find, build, names=lambda: list(ENGINES), **options)
        watching = asyncio.create_task(models.watch())
        await work(models, log)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    asyncio.run(main())
    return log


async def ask(models: Models, name: str, keep_alive: float | None = None) -> str:
    async with models.use(name, keep_alive) as served:
        return served.name


def test_names_of_one_engine_load_it_once_and_keep_their_own_meaning() -> None:
    async def work(models: Models, log: list[str]) -> None:
        assert await asyncio.gather(*(ask(models, name) for name in ("plain", "polite", "plain"))) == [
            "plain",
            "polite",
            "plain",
        ]
        assert [row.name for row in models.loaded()] == ["plain", "polite"]
        assert await ask(models, "big") == "big"

    assert run(work) == ["start plain", "start big"]


def test_a_model_goes_when_its_time_is_up_and_nobody_uses_it() -> None:
    async def work(models: Models, log: list[str]) -> None:
        async with models.use("big", 0.0):
            await asyncio.sleep(0.7)
            assert log == ["start big"]
        await asyncio.sleep(0.7)
        assert not models.loaded()

    assert run(work) == ["start big", "stop big"]


def test_an_engine_stays_while_another_of_its_names_does() -> None:
    async def work(models: Models, log: list[str]) -> None:
        await ask(models, "plain")
        await ask(models, "polite")
        assert models.forget("polite") and not models.forget("polite")
        assert [row.name for row in models.loaded()] == ["plain"]
        assert models.forget("plain")
        await asyncio.sleep(0.7)

    assert run(work) == ["start plain", "stop plain"]


def test_a_pinned_model_is_never_let_go() -> None:
    async def work(models: Models, log: list[str]) -> None:
        await ask(models, "big", 0.0)
        assert not models.forget("big")
        await asyncio.sleep(0.7)
        assert [row.expires for row in models.loaded()] == [FOREVER]

    assert run(work, pinned=["big"]) == ["start big"]


def test_what_is_unused_makes_room() -> None:
    async def work(models: Models, log: list[str]) -> None:
        await ask(models, "plain")
        await ask(models, "big")

    assert run(work, memory=10) == ["start plain", "stop plain", "start big"]


def test_a_name_that_is_none_and_a_model_that_is_broken_are_told_apart() -> None:
    async def work(models: Models, log: list[str]) -> None:
        with pytest.raises(Unknown, match="no model 'nope' here; there are: big, plain"):
            await ask(models, "nope")
        with pytest.raises(Unavailable, match="damaged"):
            await ask(models, "broken")

    assert run(work) == ["stop broken"]
