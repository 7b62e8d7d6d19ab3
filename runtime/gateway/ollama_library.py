"""Ollama's routes of the model library: tags, ps, show, pull, create, copy, delete.

Knows: Ollama's fields of models. Must not know: how models answer, where their files lie.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response

from branchwork.lang.reasoning import reasoning_of
from branchwork.runtime.gateway.library import Entry, entries, entry, entry_of, known, problem, pulled
from branchwork.runtime.gateway.ollama_dialect import as_lines, broken
from branchwork.runtime.gateway.ollama_fields import stamp
from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.gateway.web import LINES, Call, Stream
from branchwork.runtime.loading import modelfile, parameters
from branchwork.runtime.loading.create import check_template, put
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.pull import Step
from branchwork.runtime.loading.store import LATEST, RESERVED, Message, Store

_CENTURY = 100 * 365 * 86400.0  # seconds; what is kept longer is told to expire then
_ROUND = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


class Named(msgspec.Struct):
    """A model by its name; `name` is what older clients call it."""

    model: str = ""
    name: str = ""
    stream: bool | None = None

    @property
    def asked(self) -> str:
        """Raises Problem 400."""
        if not (self.model or self.name):
            raise Problem(400, "invalid_request", "model is required", "model")
        return self.model or self.name


class Copy(msgspec.Struct):
    source: str
    destination: str


class Create(Named):
    """A model made of another: as single fields, or in `modelfile`."""

    source: str = msgspec.field(name="from", default="")
    modelfile: str = ""
    system: str | None = None
    template: str | None = None
    license: str | list[str] | None = None
    parameters: dict[str, Any] | None = None
    messages: list[Message] | None = None
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    quantize: str | None = None


async def tags(call: Call[None]) -> Any:
    found = []
    for one in await entries(call.service):
        modified = stamp(one.manifest.modified)
        found.append({**_listed(one), "modified_at": modified, "size": one.manifest.about.size})
    return {"models": found}


async def running(call: Call[None]) -> Any:
    found = []
    for row in call.service.models.loaded():
        on_device = 0 if row.served.info.device == "cpu" else row.memory
        left = min(row.expires, _CENTURY)
        found.append(
            {
                **_listed(entry_of(row.served)),
                "size": row.memory,
                "size_vram": on_device,
                "expires_at": stamp(time.time() + left),
                "context_length": row.served.info.context,
            }
        )
    return {"models": found}


async def show(call: Call[Named]) -> Any:
    found = await known(call.service, call.body.asked)
    manifest = found.entry.manifest
    about = manifest.about
    can = {
        "completion": True,
        "tools": "tools" in found.template,
        "thinking": reasoning_of(found.template, about.family) is not None,
    }
    return {
        "license": found.license,
        "modelfile": found.modelfile,
        "parameters": found.parameters,
        "template": found.template,
        "system": manifest.system or "",
        "messages": [{"role": one.role, "content": one.content} for one in manifest.messages],
        "details": _details(found.entry),
        "model_info": {
            "general.architecture": about.family,
            "general.parameter_count": about.parameters,
            f"{about.family}.context_length": about.context,
        },
        "capabilities": [name for name, there in can.items() if there],
        "modified_at": stamp(manifest.modified),
    }


async def pull(call: Call[Named]) -> Any:
    name = call.body.asked
    return await _reported(call.body, _pulling(name))


async def create(call: Call[Create]) -> Any:
    body = call.body
    for field in ("files", "adapters", "quantize"):
        if getattr(body, field):
            text = f"{field} is not served here: create from a model of the library, or with `branchwork create`"
            raise Problem(400, "unsupported", text, field)
    try:
        said = modelfile.read(body.modelfile) if body.modelfile else modelfile.Modelfile(body.source)
        if not said.base:
            raise Problem(400, "invalid_request", "from is required: the model that this one is made of", "from")
        said = _with_fields(said, body)
        parameters.check(said.parameters)
        if said.template is not None:
            check_template(said.template)
    except LoadError as error:
        raise problem(error) from error
    return await _reported(body, _creating(call.service, body.asked, said))


async def copy(call: Call[Copy]) -> Any:
    found = await entry(call.service, call.body.source)
    try:
        await asyncio.to_thread(Store().put, call.body.destination, found.manifest)
    except LoadError as error:
        raise problem(error) from error
    return Response()


async def delete(call: Call[Named]) -> Any:
    wanted = call.service.wanted(call.body.asked)
    try:
        await asyncio.to_thread(Store().remove, wanted.name)
    except LoadError as error:
        raise problem(error) from error
    call.service.models.forget(wanted.name)
    return Response()


async def _reported(body: Named, steps: AsyncGenerator[dict[str, Any], None]) -> Any:
    """What is done, line by line, or its last line."""
    if body.stream is not False:
        return Stream(LINES, as_lines(steps), broken)
    async with aclosing(steps):
        return [step async for step in steps][-1]


async def _pulling(name: str) -> AsyncGenerator[dict[str, Any], None]:
    """The steps of a pull in Ollama's words. What cannot be had is told by a status, before any of them."""
    if name.removesuffix(f":{LATEST}") not in RESERVED:
        async with aclosing(pulled(name, Store())) as steps:
            begun = False
            async for step in steps:
                if step.stage == "looking":
                    continue
                if not begun:
                    yield {"status": "pulling manifest"}
                begun = True
                if step.stage == "downloading":
                    yield _progress(step)
        yield {"status": "verifying sha256 digest"}
        yield {"status": "writing manifest"}
    yield {"status": "success"}


def _progress(step: Step) -> dict[str, Any]:
    digest = step.digest.replace("-", ":", 1)
    named = step.digest.partition("-")[2][:12]
    return {"status": f"pulling {named}", "digest": digest, "total": step.total, "completed": step.done}


async def _creating(service: Service, name: str, said: modelfile.Modelfile) -> AsyncGenerator[dict[str, Any], None]:
    """The steps of making a model; its base is pulled if it is not here. Only names of models are read as bases."""
    store = Store()
    base = said.base
    if base.removesuffix(f":{LATEST}") not in RESERVED and await asyncio.to_thread(store.find, base) is None:
        async with aclosing(_pulling(base)) as steps:
            async for step in steps:
                if step["status"] != "success":
                    yield step
    found = await entry(service, base)
    yield {"status": "using existing layer sha256:" + found.digest}
    try:
        await asyncio.to_thread(put, name, said, found.manifest, store)
    except LoadError as error:
        raise problem(error) from error
    yield {"status": "writing manifest"}
    yield {"status": "success"}


def _with_fields(said: modelfile.Modelfile, body: Create) -> modelfile.Modelfile:
    """A Modelfile with what single fields say besides."""
    for one in body.messages or ():
        if one.role not in modelfile.ROLES:
            text = f"the role of a first message is one of {', '.join(modelfile.ROLES)}, not {one.role!r}"
            raise Problem(400, "invalid_request", text, "messages")
    licenses = [body.license] if isinstance(body.license, str) else body.license
    given = {name: [value] if name == "stop" and isinstance(value, str) else value for name, value in _set(body)}
    return said._replace(
        system=body.system if body.system is not None else said.system,
        template=body.template or said.template,
        license=tuple(licenses or said.license),
        messages=tuple(body.messages or said.messages),
        parameters={**said.parameters, **given},
    )


def _set(body: Create) -> list[tuple[str, Any]]:
    found = [(name, value) for name, value in (body.parameters or {}).items() if value is not None]
    for name, value in found:
        texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
        if not (texts or isinstance(value, (bool, int, float, str))):
            raise Problem(400, "invalid_request", f"parameter {name} takes a number, a text or texts", "parameters")
    return found


def _listed(one: Entry) -> dict[str, Any]:
    return {"name": one.name, "model": one.name, "digest": one.digest, "details": _details(one)}


def _details(one: Entry) -> dict[str, Any]:
    manifest = one.manifest
    about = manifest.about
    return {
        "parent_model": manifest.source if manifest.source != one.name.removesuffix(f":{LATEST}") else "",
        "format": "gguf" if manifest.path.endswith(".gguf") else "safetensors",
        "family": about.family,
        "families": [about.family],
        "parameter_size": _rounded(about.parameters),
        "quantization_level": about.quantization,
    }


def _rounded(count: int) -> str:
    size, unit = next(((size, unit) for size, unit in _ROUND if count >= size), (1, ""))
    return f"{count / size:.1f}{unit}" if unit else str(count)
