"""The models of one gateway: loaded when they are first asked for, kept for a while, evicted when memory is short.

Knows: names, loaded models, memory, clocks. Must not know: HTTP, programs, what a model is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from branchwork.runtime.config import ConfigError, free_memory
from branchwork.runtime.gateway.served import Say, Served
from branchwork.runtime.gateway.supervisor import EngineDied
from branchwork.runtime.loading.errors import LoadError

KEEP_ALIVE = 300.0  # seconds that a model nobody uses stays loaded
FOREVER = float("inf")


class Wanted(NamedTuple):
    """A model that may be asked for. options: name=value strings; template: instead of the model's own."""

    name: str
    options: tuple[str, ...]
    template: str | None = None


class Unknown(Exception):
    """No model of that name; the message says which there are."""


class Unavailable(Exception):
    """A model that is known cannot be loaded; code and message as of LoadError, ConfigError or EngineDied."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Row(NamedTuple):
    """A loaded model as `ps` shows it. memory: bytes; expires: seconds from now, inf for never."""

    name: str
    served: Served
    memory: int
    users: int
    expires: float


class _Slot:
    """One model, loaded or loading. users: requests under way; keep: seconds it stays without any."""

    def __init__(self, served: Served, keep: float) -> None:
        self.served = served
        self.keep = keep
        self.users = 0
        self.used = time.monotonic()
        self.stage = ("starting", 0.0)
        self.ready: asyncio.Task[None] | None = None
        self.serving: asyncio.Task[None] | None = None


class Models:
    """find: what a name stands for, None for nothing; names: those to list. build: an unstarted model of it.

    memory: bytes that all loaded models may take together (0: what is free when one is loaded). A model in `pinned`
    is never evicted. on_loaded: who hears of every model that is ready.
    """

    def __init__(
        self,
        find: Callable[[str], Wanted | None],
        build: Callable[[Wanted], Served],
        *,
        names: Callable[[], Sequence[str]],
        memory: int = 0,
        keep_alive: float = KEEP_ALIVE,
        pinned: Sequence[str] = (),
    ) -> None:
        self._find = find
        self._build = build
        self.names = names
        self._memory = memory
        self.keep_alive = keep_alive
        self._pinned = frozenset(pinned)
        self._slots: dict[str, _Slot] = {}
        self._changing = asyncio.Lock()
        self.on_loaded: list[Callable[[Served], None]] = []

    @asynccontextmanager
    async def use(self, name: str, keep_alive: float | None = None, say: Say | None = None) -> AsyncIterator[Served]:
        """A loaded model, which stays so meanwhile. keep_alive: seconds to keep it afterwards, 0 to let it go at once.

        Raises Unknown, Unavailable.
        """
        slot = await self._slot(name, say)
        slot.users += 1
        try:
            if keep_alive is not None and name not in self._pinned:
                slot.keep = keep_alive
            yield slot.served
        finally:
            slot.users -= 1
            slot.used = time.monotonic()

    def loaded(self) -> list[Row]:
        """What is loaded now, the latest used first."""
        now, rows = time.monotonic(), []
        for name, slot in sorted(self._slots.items(), key=lambda item: -item[1].used):
            if slot.ready is not None and slot.ready.done():
                expires = FOREVER if name in self._pinned else max(slot.used + slot.keep - now, 0.0)
                rows.append(Row(name, slot.served, slot.served.memory, slot.users, expires))
        return rows

    async def serving(self, name: str) -> None:
        """Returns when a loaded model has ended. Raises EngineDied when its engine keeps dying."""
        serving = self._slots[name].serving
        assert serving is not None
        await serving

    async def stop(self, name: str) -> bool:
        """Let a model go now, whoever uses it; whether it was loaded."""
        async with self._changing:
            return await self._end(name)

    async def watch(self) -> None:
        """Let go of models whose time is up, until cancelled."""
        while True:
            await asyncio.sleep(0.5)
            for row in self.loaded():
                if row.expires <= 0 and not row.users:
                    await self.stop(row.name)

    async def close(self) -> None:
        """End every engine."""
        async with self._changing:
            for name in list(self._slots):
                await self._end(name)

    async def _slot(self, name: str, say: Say | None) -> _Slot:
        slot = self._slots.get(name)
        if slot is None:
            async with self._changing:
                slot = self._slots.get(name) or await self._load(name)
        assert slot.ready is not None
        while not slot.ready.done():
            if say is not None:
                say(*slot.stage)
            await asyncio.wait({slot.ready}, timeout=0.2)
        try:
            slot.ready.result()
        except (LoadError, ConfigError, EngineDied) as error:
            self._slots.pop(name, None)
            await slot.served.stop()
            raise Unavailable(getattr(error, "code", "config"), str(error)) from error
        return slot

    async def _load(self, name: str) -> _Slot:
        wanted = self._find(name)
        if wanted is None:
            raise Unknown(f"there is no model {name!r} here; there are: {', '.join(self.names()) or 'none'}")
        await self._make_room()
        slot = self._slots[name] = _Slot(self._build(wanted), self.keep_alive)

        def say(stage: str, fraction: float) -> None:
            slot.stage = (stage, fraction)

        async def start() -> None:
            await slot.served.start(say)
            for hear in self.on_loaded:
                hear(slot.served)
            slot.serving = asyncio.create_task(self._serve(name, slot))

        slot.ready = asyncio.create_task(start())
        return slot

    async def _serve(self, name: str, slot: _Slot) -> None:
        try:
            await slot.served.serve()
        except EngineDied as error:
            if self._slots.get(name) is slot:  # the next request loads it anew
                del self._slots[name]
            slot.served.local.lose(str(error))
            raise

    async def _make_room(self) -> None:
        """Evict what nobody uses, the least lately used first, until there is memory for another model."""
        for row in reversed(self.loaded()):
            held = sum(each.memory for each in self.loaded())
            enough = held < self._memory if self._memory else free_memory() > row.memory
            if enough:
                return
            if not row.users and row.name not in self._pinned:
                await self._end(row.name)

    async def _end(self, name: str) -> bool:
        slot = self._slots.pop(name, None)
        if slot is None:
            return False
        for task in (slot.ready, slot.serving):
            if task is not None:
                task.cancel()
        await slot.served.stop()
        return True
