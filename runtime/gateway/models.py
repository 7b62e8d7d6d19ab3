"""The models of one gateway: loaded when they are first asked for, kept for a while, evicted when memory is short.

Knows: names, loaded models, memory, clocks. Must not know: HTTP, programs, what a model is asked.
Names that differ in nothing but what is said to the model (system prompt, template, knobs) share one engine and tree.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from branchwork.runtime.config import ConfigError, free_memory
from branchwork.runtime.gateway.served import Say, Served
from branchwork.runtime.gateway.supervisor import EngineDied
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import Resolved

KEEP_ALIVE = 300.0  # seconds that a model nobody uses stays loaded
FOREVER = float("inf")
Engine = tuple[str, tuple[str, ...]]  # a model and its options: what one process serves


class Wanted(NamedTuple):
    """A model that may be asked for. name: what it is listed under. model, options: what its engine is started with.

    found: what the library says of the name, None for a name that is not the library's.
    """

    name: str
    model: str
    options: tuple[str, ...]
    found: Resolved | None = None

    @property
    def engine(self) -> Engine:
        return self.model, self.options


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
    """One engine, loaded or loading. users: requests under way; keep: seconds it stays without any, unless pinned.

    names: what it has been asked for by, and what each of these stood for.
    """

    def __init__(self, wanted: Wanted, served: Served, keep: float) -> None:
        self.served = served
        self.keep = keep
        self.pinned = False
        self.users = 0
        self.used = time.monotonic()
        self.stage = ("starting", 0.0)
        self.names: dict[str, tuple[Wanted, Served]] = {wanted.name: (wanted, served)}
        self.ready: asyncio.Task[None] | None = None
        self.serving: asyncio.Task[None] | None = None

    def under(self, wanted: Wanted) -> Served:
        """The model as that name means it."""
        known, served = self.names.get(wanted.name, (None, self.served))
        if known != wanted:
            served = self.served.under(wanted.name, wanted.found)
            self.names[wanted.name] = wanted, served
        return served


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
        self._slots: dict[Engine, _Slot] = {}
        self._changing = asyncio.Lock()
        self.on_loaded: list[Callable[[Served], None]] = []

    def knows(self, name: str) -> bool:
        """Whether a model of this name may be asked for."""
        return self._find(name) is not None

    @asynccontextmanager
    async def use(self, name: str, keep_alive: float | None = None, say: Say | None = None) -> AsyncIterator[Served]:
        """A loaded model, which stays so meanwhile. keep_alive: seconds to keep it afterwards, 0 to let it go at once.

        Raises Unknown, Unavailable.
        """
        wanted = self.wanted(name)
        slot = await self._slot(wanted, say)
        slot.users += 1
        try:
            slot.pinned = slot.pinned or wanted.name in self._pinned
            if keep_alive is not None:
                slot.keep = keep_alive
            yield slot.under(wanted)
        finally:
            slot.users -= 1
            slot.used = time.monotonic()

    def loaded(self) -> list[Row]:
        """Names of what is loaded now, the latest used first; those that share an engine all tell of its memory."""
        rows = []
        for slot in self._idle_last():
            expires = FOREVER if slot.pinned else max(slot.used + slot.keep - time.monotonic(), 0.0)
            for name, (_, served) in slot.names.items():
                rows.append(Row(name, served, served.memory, slot.users, expires))
        return rows

    def listed(self) -> list[dict[str, Any]]:
        """`loaded` for those who only look. expires: seconds from now, None for never."""
        return [
            {
                "name": row.name,
                "memory": row.memory,
                "weights": row.served.ready.quantization or row.served.ready.dtype,
                "context": row.served.info.context,
                "device": row.served.info.device,
                "users": row.users,
                "expires": None if row.expires == FOREVER else row.expires,
            }
            for row in self.loaded()
        ]

    async def serving(self, name: str) -> None:
        """Returns when a loaded model has ended. Raises EngineDied when its engine keeps dying."""
        serving = self._slots[self.wanted(name).engine].serving
        assert serving is not None
        await serving

    def forget(self, name: str) -> bool:
        """Let a model go as soon as nobody uses it; False where it is not loaded, or is to stay.

        The engine stays while it has other names.
        """
        found = self._find(name)
        name = name if found is None else found.name
        for slot in self._slots.values():
            if name in slot.names and name not in self._pinned:
                if len(slot.names) > 1:
                    del slot.names[name]
                else:
                    slot.keep = 0.0
                return True
        return False

    async def stop(self, name: str) -> bool:
        """Let a model's engine go now, whoever uses it; whether it was loaded."""
        async with self._changing:
            engines = [engine for engine, slot in self._slots.items() if name in slot.names]
            return any([await self._end(engine) for engine in engines])

    async def watch(self) -> None:
        """Let go of models whose time is up, until cancelled."""
        while True:
            await asyncio.sleep(0.5)
            async with self._changing:
                for engine, slot in list(self._slots.items()):
                    if slot.serving and not (slot.users or slot.pinned) and slot.used + slot.keep <= time.monotonic():
                        await self._end(engine)

    async def close(self) -> None:
        """End every engine."""
        async with self._changing:
            for engine in list(self._slots):
                await self._end(engine)

    def wanted(self, name: str) -> Wanted:
        """What a name stands for. Raises Unknown, Unavailable."""
        try:
            wanted = self._find(name)
        except LoadError as error:
            raise Unavailable(error.code, str(error)) from error
        if wanted is None:
            raise Unknown(f"there is no model {name!r} here; there are: {', '.join(self.names()) or 'none'}")
        return wanted

    async def _slot(self, wanted: Wanted, say: Say | None) -> _Slot:
        slot = self._slots.get(wanted.engine)
        if slot is None:
            async with self._changing:
                slot = self._slots.get(wanted.engine) or await self._load(wanted)
        assert slot.ready is not None
        while not slot.ready.done():
            if say is not None:
                say(*slot.stage)
            await asyncio.wait({slot.ready}, timeout=0.2)
        try:
            slot.ready.result()
        except (LoadError, ConfigError, EngineDied) as error:
            self._slots.pop(wanted.engine, None)
            await slot.served.stop()
            raise Unavailable(getattr(error, "code", "config"), str(error)) from error
        return slot

    async def _load(self, wanted: Wanted) -> _Slot:
        self.forget(wanted.name)  # it may have stood for something else
        await self._make_room()
        slot = self._slots[wanted.engine] = _Slot(wanted, self._build(wanted), self.keep_alive)

        def say(stage: str, fraction: float) -> None:
            slot.stage = (stage, fraction)

        async def start() -> None:
            await slot.served.start(say)
            for hear in self.on_loaded:
                hear(slot.served)
            slot.serving = asyncio.create_task(self._serve(wanted.engine, slot))

        slot.ready = asyncio.create_task(start())
        return slot

    async def _serve(self, engine: Engine, slot: _Slot) -> None:
        try:
            await slot.served.serve()
        except EngineDied as error:
            if self._slots.get(engine) is slot:  # the next request loads it anew
                del self._slots[engine]
            slot.served.local.lose(str(error))
            raise

    async def _make_room(self) -> None:
        """Evict what nobody uses, the least lately used first, until there is memory for another model."""
        for slot in reversed(self._idle_last()):
            held = sum(each.served.memory for each in self._idle_last())
            enough = held < self._memory if self._memory else free_memory() > slot.served.memory
            if enough:
                return
            if not slot.users and not slot.pinned:
                await self._end(next(engine for engine, each in self._slots.items() if each is slot))

    def _idle_last(self) -> list[_Slot]:
        """What is loaded, the latest used first."""
        return sorted((slot for slot in self._slots.values() if slot.serving), key=lambda slot: -slot.used)

    async def _end(self, engine: Engine) -> bool:
        slot = self._slots.pop(engine, None)
        if slot is None:
            return False
        for task in (slot.ready, slot.serving):
            if task is not None:
                task.cancel()
        await slot.served.stop()
        return True
