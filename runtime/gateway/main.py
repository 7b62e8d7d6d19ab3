"""The gateway process: composition root of the text side; starts the engine, then serves programs over ZeroMQ.

Knows: options, the order in which things start and end. Must not know: nodes, ids, torch.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import zmq
import zmq.asyncio

from branchwork.runtime.config import ConfigError, parse
from branchwork.runtime.gateway.models import KEEP_ALIVE, Models, Unavailable, Wanted
from branchwork.runtime.gateway.named import options_of
from branchwork.runtime.gateway.programs import Server, bind
from branchwork.runtime.gateway.served import Served
from branchwork.runtime.gateway.service import Service
from branchwork.runtime.gateway.site import Http, Site
from branchwork.runtime.gateway.supervisor import EngineDied
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import resolved
from branchwork.runtime.loading.store import LATEST, RESERVED, Manifest, Store

REFUSAL_TIME = 5.0  # seconds that a failed gateway stays to tell clients why


class Arguments(NamedTuple):
    """models: their names; the first is loaded at once and serves programs, others when HTTP asks for them.

    endpoint: ipc:///path or tcp://host:port. options: name=value strings. watch_stdin: end when stdin ends.
    http: where to serve HTTP, None for nowhere. memory: GiB that all loaded models may take, 0 for what is free.
    keep_alive: seconds that a model nobody asks stays loaded; the first one always does.
    say(stage, fraction) hears of loading, last of the stage "ready".
    """

    models: Sequence[str]
    endpoint: str
    options: list[str]
    curve_keys: Path | None = None
    watch_stdin: bool = False
    http: Http | None = None
    memory: float = 0.0
    keep_alive: float = KEEP_ALIVE
    say: Callable[[str, float], None] | None = None


async def serve(arguments: Arguments) -> int:
    """Bind, start the engine, serve until told to stop. The exit status."""
    folder = Path(tempfile.mkdtemp(prefix="branchwork-"))  # created 0700: only its user can enter
    server: Server | None = None
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    if arguments.watch_stdin:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _on_stdin, stopping)
    try:
        server = Server(bind(arguments.endpoint, arguments.curve_keys), token=os.environ.get("BRANCHWORK_TOKEN", ""))
        server.models = models = _models(arguments, folder, server)
        site = None if arguments.http is None else Site(arguments.http, Service(models, arguments.http.limits))
        receiving = asyncio.create_task(server.receive())
        print(f"gateway: listening on {server.endpoint}", file=sys.stderr, flush=True)
        if site is not None:
            print(f"gateway: HTTP at {site.url}", file=sys.stderr, flush=True)
        try:
            running = asyncio.create_task(_run(arguments, models, server))
            waiting = asyncio.create_task(stopping.wait())
            asked = asyncio.create_task(server.stopped.wait())
            others = {asyncio.create_task(models.watch())} | ({site.start()} if site is not None else set())
            await asyncio.wait({running, waiting, asked, receiving, *others}, return_when=asyncio.FIRST_COMPLETED)
            for task in (running, receiving, *others):
                if task.done():
                    task.result()
            if site is not None:
                await site.drain()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        except (LoadError, ConfigError, EngineDied, Unavailable) as error:
            code = getattr(error, "code", "config")
            print(f"gateway: {code}: {error}", file=sys.stderr, flush=True)
            server.refuse(code, str(error))
            await asyncio.wait({waiting, asked}, timeout=REFUSAL_TIME, return_when=asyncio.FIRST_COMPLETED)
            return 1
        finally:
            await models.close()
        return 0
    except zmq.ZMQError as error:
        print(f"gateway: cannot listen on {arguments.endpoint}: {error}", file=sys.stderr, flush=True)
        return 1
    except ConfigError as error:
        print(f"gateway: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        if server is not None:
            server.close()
        shutil.rmtree(folder, ignore_errors=True)


def _models(arguments: Arguments, folder: Path, server: Server) -> Models:
    """Those that were named, under their whole names and the last part of each; the packaged one; the library's."""
    named = list(dict.fromkeys([*arguments.models, "sapling"]))
    known = {Path(name).name: name for name in reversed(named)} | {name: name for name in named}
    store = Store()

    read: dict[str, tuple[Manifest, Wanted]] = {}  # what was made of manifests, as long as they are the same

    def find(name: str) -> Wanted | None:
        name = known.get(name.removesuffix(f":{LATEST}"), name)
        manifest = store.find(name) if name not in RESERVED else None
        if manifest is None:
            return Wanted(name, name, tuple(arguments.options)) if name in named else None
        if name not in read or read[name][0] != manifest:
            found = resolved(name)
            listed = name if name in named else found.name
            read[name] = manifest, Wanted(listed, manifest.path, tuple(options_of(found, arguments.options)), found)
        return read[name][1]

    def build(wanted: Wanted) -> Served:
        own = Path(tempfile.mkdtemp(dir=folder))
        return Served(wanted.name, wanted.options, own, server.emit, wanted.found)

    def names() -> list[str]:
        return [*named, *(name for name in store.names() if name.removesuffix(f":{LATEST}") not in named)]

    memory = int(arguments.memory * 2**30)
    return Models(find, build, names=names, memory=memory, keep_alive=arguments.keep_alive, pinned=named[:1])


async def _run(arguments: Arguments, models: Models, server: Server) -> None:
    """Load the first model and serve programs with it."""
    first = arguments.models[0]
    config = parse([f"model={first}", *arguments.options])

    def say(stage: str, fraction: float) -> None:
        server.loading(stage, fraction)
        if arguments.say is not None:
            arguments.say(stage, fraction)

    async with models.use(first, say=say) as served:
        _keep_garbage_rare()
        if arguments.say is not None:
            arguments.say("ready", 1.0)
        server.open(served.host, served.info, config.window)
        await models.serving(first)


def _keep_garbage_rare() -> None:
    """What was loaded stays, and hardly anything of a request is in a cycle: looking through all of it again and again
    takes a fifth of the gateway's time for a token (benchmarks/LOG.md, "The server")."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _on_stdin(stopping: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stopping.set()


def main() -> None:
    """Entry of a process that belongs to another one; a person starts `branchwork serve`."""
    parser = argparse.ArgumentParser(prog="branchwork.runtime.gateway.main")
    parser.add_argument("--model", default="sapling")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    sys.exit(asyncio.run(serve(Arguments([given.model], given.endpoint, given.option, watch_stdin=True))))


if __name__ == "__main__":
    main()
