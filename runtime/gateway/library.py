"""The model library as a server shows and changes it: what is listed, what is known of a name, pulls that report.

Knows: the library's functions, names that are served without being in it. Must not know: HTTP, any dialect's fields.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

import msgspec

from branchwork.runtime.gateway.served import Served
from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.loading import modelfile, pull, tokenizer
from branchwork.runtime.loading.create import base_of
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import Resolved, find_model, resolved
from branchwork.runtime.loading.store import LATEST, RESERVED, Manifest, Store

_STATUS = {"not_found": 404, "gated": 403, "offline": 502, "checksum": 502, "disk": 507, "damaged": 500}


class Entry(NamedTuple):
    """A model by the name it is listed under, its tag always there."""

    name: str
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Of what the name stands for, whenever it was given it; sha256 in hex."""
        timeless = msgspec.structs.replace(self.manifest, modified=0.0)
        return hashlib.sha256(msgspec.json.encode(timeless)).hexdigest()


class Known(NamedTuple):
    """All that is known of a model, as texts. parameters, modelfile: as a Modelfile has them."""

    entry: Entry
    template: str
    parameters: str
    modelfile: str
    license: str


def problem(error: LoadError) -> Problem:
    """A LoadError as what a client is told."""
    return Problem(_STATUS.get(error.code, 400), error.code, error.message, "model")


async def entries(service: Service) -> list[Entry]:
    """Everything that can be asked for by name. Names whose files cannot be read are left out."""
    found = []
    for name in service.models.names():
        with contextlib.suppress(LoadError):
            found.append(await asyncio.to_thread(_entry, name))
    return found


async def entry(service: Service, name: str) -> Entry:
    """A model that is served, by name. Raises Problem 404."""
    wanted = service.wanted(name)
    try:
        return await asyncio.to_thread(_entry, wanted.name)
    except LoadError as error:
        raise problem(error) from error


def entry_of(served: Served) -> Entry:
    """A loaded model, also one whose name has changed its meaning since."""
    return _described(served.name, served.found)


async def known(service: Service, name: str) -> Known:
    """Raises Problem 404."""
    found = await entry(service, name)
    try:
        return await asyncio.to_thread(_known, found)
    except LoadError as error:
        raise problem(error) from error


async def pulled(name: str, store: Store) -> AsyncGenerator[pull.Step, None]:
    """Pull a model into the library; what is being done. Leaving early breaks it off; what has come is kept.

    Raises Problem.
    """
    steps: asyncio.Queue[pull.Step | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    left = False

    def say(step: pull.Step) -> None:
        if left:
            raise _Left
        loop.call_soon_threadsafe(steps.put_nowait, step)

    def work() -> None:
        try:
            pull.pull(name, store, say=say)
        finally:
            loop.call_soon_threadsafe(steps.put_nowait, None)

    task = asyncio.create_task(asyncio.to_thread(work))
    task.add_done_callback(_forget)
    try:
        while (step := await steps.get()) is not None:
            yield step
        await task
    except LoadError as error:
        raise problem(error) from error
    finally:
        left = True


class _Left(Exception):
    """Nobody wants the rest of a pull."""


def _forget(task: asyncio.Task[None]) -> None:
    """What a pull that nobody waits for has come to is nobody's business."""
    if not task.cancelled():
        task.exception()


def _entry(name: str) -> Entry:
    return _described(name, resolved(name, offline=True))


def _described(name: str, found: Resolved) -> Entry:
    if found.manifest is not None:
        return Entry(found.name, found.manifest)
    made = msgspec.structs.replace(base_of(name, found.path), modified=found.path.stat().st_mtime)
    return Entry(f"{name}:{LATEST}" if name in RESERVED else name, made)


def _known(found: Entry) -> Known:
    manifest = found.manifest
    path = find_model(manifest.path)
    return Known(
        found,
        manifest.template or tokenizer.chat_template(path) or "",
        "\n".join(modelfile.parameter_lines(manifest.parameters)),
        modelfile.write(manifest),
        "\n\n".join(manifest.license) or _license_file(path),
    )


def _license_file(path: Path) -> str:
    files = sorted(path.glob("LICENSE*"))  # of a directory; a file has none beside it
    return "\n\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
