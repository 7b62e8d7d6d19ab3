"""The gateway process: composition root of the text side; starts the engine, then serves programs over ZeroMQ.

Knows: options, the order in which things start and end. Must not know: nodes, ids, torch.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import zmq
import zmq.asyncio

from branchwork.lang.protocol import ModelInfo
from branchwork.runtime import wire
from branchwork.runtime.config import ConfigError, cores, parse
from branchwork.runtime.gateway.named import frames_of, options_of
from branchwork.runtime.gateway.programs import Server, bind
from branchwork.runtime.gateway.supervisor import EngineDied, Supervisor
from branchwork.runtime.gateway.text import Texts
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import resolved
from branchwork.runtime.loading.tokenizer import eos_ids
from branchwork.runtime.programs.host import Host

REFUSAL_TIME = 5.0  # seconds that a failed gateway stays to tell clients why


class Arguments(NamedTuple):
    """endpoint: ipc:///path or tcp://host:port. options: name=value strings. watch_stdin: end when stdin ends.

    say(stage, fraction) hears of loading, last of the stage "ready".
    """

    model: str
    endpoint: str
    options: list[str]
    curve_keys: Path | None = None
    watch_stdin: bool = False
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
        receiving = asyncio.create_task(server.receive())
        print(f"gateway: listening on {server.endpoint}", file=sys.stderr, flush=True)
        try:
            running = asyncio.create_task(_run(arguments, folder, server))
            waiting = asyncio.create_task(stopping.wait())
            asked = asyncio.create_task(server.stopped.wait())
            await asyncio.wait({running, waiting, asked, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            if receiving.done():
                receiving.result()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        except (LoadError, ConfigError, EngineDied) as error:
            code = getattr(error, "code", "config")
            print(f"gateway: {code}: {error}", file=sys.stderr, flush=True)
            server.refuse(code, str(error))
            await asyncio.wait({waiting, asked}, timeout=REFUSAL_TIME, return_when=asyncio.FIRST_COMPLETED)
            return 1
        return 0
    except (zmq.ZMQError, ConfigError) as error:
        print(f"gateway: cannot listen on {arguments.endpoint}: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        if server is not None:
            server.close()
        shutil.rmtree(folder, ignore_errors=True)


async def _run(arguments: Arguments, folder: Path, server: Server) -> None:
    config = parse([f"model={arguments.model}", *arguments.options])

    def say(stage: str, fraction: float) -> None:
        server.loading(stage, fraction)
        if arguments.say is not None:
            arguments.say(stage, fraction)

    say("finding the model", 0.0)
    loop = asyncio.get_running_loop()

    def downloading(fraction: float) -> None:
        loop.call_soon_threadsafe(say, "downloading the model", fraction)

    found = await asyncio.to_thread(resolved, config.model, progress=downloading)
    directory, options = found.path, options_of(found, arguments.options)
    config = parse([f"model={arguments.model}", *options])
    hosts: list[Host] = []
    supervisor = Supervisor(
        _engine_command(directory, options),
        folder,
        threads=config.threads or cores(),
        restarts=config.restarts,
        on_messages=lambda messages: hosts[0].on_messages(messages),
        in_flight=lambda: hosts[0].restart(),
        on_loading=say,
    )
    try:
        starting = asyncio.create_task(supervisor.start())  # the tokenizer is read while the weights are
        texts = await asyncio.to_thread(Texts, directory)
        model_frames = frames_of(found)
        ends = eos_ids(directory)
        host = Host(texts, model_frames, eos=ends, max_branches=config.max_branches, emit=server.emit)
        hosts.append(host)
        ready = await starting
        info = ModelInfo(
            name=Path(config.model).name,
            family=ready.family,
            context=ready.context,
            vocab=ready.vocab,
            eos_ids=ends,
            frames=model_frames,
            pages=ready.pages,
            page_size=ready.page_size,
            device=ready.device,
            knobs=dict(found.knobs),
        )
        host.attach(supervisor.send, ready.context, _facts(info.name, ready))
        if arguments.say is not None:
            arguments.say("ready", 1.0)
        server.open(host, info, config.window)
        await supervisor.serve()
    finally:
        await supervisor.stop()


def _facts(name: str, ready: wire.Ready) -> dict[str, float | int | str]:
    """What stats say of a runtime besides its counters."""
    return {
        "model": name,
        "weights": ready.quantization or ready.dtype,
        "dtype": ready.dtype,
        "weight_bytes": ready.weight_bytes,
        "read_bytes": ready.read_bytes,
        "parameters": ready.parameters,
        "in_layers": ready.in_layers,
        "kv_bytes": ready.kv_bytes,
        "page_size": ready.page_size,
        "context": ready.context,
        "device": ready.device,
        "threads": ready.threads,
    }


def _engine_command(directory: Path, options: list[str]) -> list[str]:
    command = [sys.executable, "-m", "branchwork.runtime.assembly", "--directory", str(directory)]
    for option in options:
        command += ["--option", option]
    return command


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
    sys.exit(asyncio.run(serve(Arguments(given.model, given.endpoint, given.option, watch_stdin=True))))


if __name__ == "__main__":
    main()
