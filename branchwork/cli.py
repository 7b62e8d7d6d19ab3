"""The `branchwork` command: demo, run, serve, ps, bench, doctor, quantize, keys, and those of the library.

Knows: the terminal, what each command starts. Must not know: how any of it works. Heavy rooms are imported by the
command that needs them, so that `branchwork --help` answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from branchwork import library
from branchwork.library import console, errors, fail

if TYPE_CHECKING:
    import branchwork as bw

app = typer.Typer(
    name="branchwork",
    help="Programs for language models, and the runtime that runs them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="sapling, a library name, directory, .gguf file or hub name")
]
OptionOption = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="runtime option, repeatable")
]


@app.command()
def demo(model: ModelOption = "sapling", option: OptionOption = None) -> None:
    """Run a small program (turns, gen, select, fork) on its own runtime and show what was shared."""
    from branchwork.demo import show

    show(console, model, lambda: start(model, _options(option)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE.py", help="a model to chat with, or a program; what follows is its own")
    ],
    model: ModelOption = "sapling",
    endpoint: Annotated[str, typer.Option(help="a running runtime's endpoint instead of an embedded one")] = "",
    option: OptionOption = None,
) -> None:
    """Chat with the model NAME, or run FILE.py, on an embedded runtime or the one at --endpoint.

    branchwork run NAME [--verbose] [PROMPT]: without a PROMPT a chat in the terminal; with one, or with text on
    standard input, one answer. --verbose: figures after each answer.

    branchwork run FILE.py [ARGUMENTS]: the program's default backend is the runtime with --model.
    """
    if not name.endswith(".py"):
        from branchwork import talk

        if model != "sapling":
            fail(f"-m {model} is for programs; the model to chat with is {name}")
        talk.run(name, context.args, endpoint, _options(option), start)
        return
    import branchwork as bw

    file = Path(name)
    if not file.is_file():
        fail(f"{file} is not a file; give the path of a Python program")
    backend = bw.connect(endpoint) if endpoint else start(model, _options(option))
    bw.set_default_backend(backend)
    sys.argv = [str(file), *context.args]
    try:
        runpy.run_path(str(file), run_name="__main__")
    finally:
        backend.shutdown() if isinstance(backend, bw.Runtime) else backend.close()


@app.command()
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="sapling, a library name, directory, .gguf file or hub name"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="address of the HTTP server; other machines' need --api-keys")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="its port; 0 for any that is free")] = 8000,
    api_keys: Annotated[Path | None, typer.Option(help="file of keys that clients have to show, one a line")] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="web page that may ask from a browser, such as https://example.org")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file, for https")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its private key")] = None,
    rate: Annotated[int, typer.Option(min=0, help="requests a minute of one key; 0 for any number")] = 0,
    keep_alive: Annotated[float, typer.Option(min=0, help="seconds that a model nobody asks stays loaded")] = 300.0,
    memory: Annotated[float, typer.Option(min=0, help="GiB that all models may take; 0 for what is free")] = 0.0,
    grace: Annotated[float, typer.Option(min=0, help="seconds that requests get to end on SIGTERM")] = 10.0,
    log: Annotated[str, typer.Option(help="a line a request on standard error: json, text or off")] = "off",
    endpoint: Annotated[str, typer.Option(help="for programs: ipc:///path or tcp://127.0.0.1:port")] = "",
    curve_keys: Annotated[Path | None, typer.Option(help="folder made by `branchwork keys`")] = None,
    option: OptionOption = None,
) -> None:
    """Serve models over HTTP (OpenAI's, Ollama's and Anthropic's ways) and to programs, until interrupted.

    The first MODEL is loaded at once and is the one that programs run on; others when they are asked for.
    """
    from branchwork.runtime.config import ConfigError
    from branchwork.runtime.gateway import main as gateway
    from branchwork.runtime.gateway.app import Access, read_keys
    from branchwork.runtime.gateway.logs import FORMATS
    from branchwork.runtime.gateway.service import Limits
    from branchwork.runtime.gateway.site import Http

    _options(option)
    if log not in FORMATS:
        fail(f"--log {log} is none of {', '.join(FORMATS)}")
    try:
        keys = read_keys(api_keys) if api_keys is not None else ()
    except ConfigError as error:
        fail(str(error))
    access = Access(keys, tuple(origin or ()))
    http = Http(host, port, access, Limits(rate=rate), tls_certificate, tls_key, grace, log)
    endpoint = endpoint or default_endpoint()
    errors.print(f"connect with: [bold]branchwork.connect({endpoint!r})[/]", highlight=False)
    errors.print("Ctrl-C ends the runtime")
    with loading_bar() as say:
        arguments = gateway.Arguments(
            models or ["sapling"],
            endpoint,
            option or [],
            curve_keys,
            http=http,
            memory=memory,
            keep_alive=keep_alive,
            say=say,
        )
        status = asyncio.run(gateway.serve(arguments))
    raise typer.Exit(status)


@app.command()
def bench(
    model: ModelOption = "sapling",
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="N,..", help="prompts of N tokens")] = "512",
    generate: Annotated[
        str, typer.Option("--generate", "-n", metavar="N,..", help="N tokens after a short one")
    ] = "128",
    batch: Annotated[str, typer.Option("--batch", "-b", metavar="N,..", help="N such generations at once")] = "16",
    shared: Annotated[str, typer.Option("--shared", metavar="N,..", help="N of them after one common prompt")] = "16",
    repeats: Annotated[int, typer.Option("--repeats", "-r", min=1, help="measured rounds")] = 5,
    output: Annotated[str, typer.Option("--output", help="table, json, md or csv")] = "table",
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the rows to this file")] = None,
    option: OptionOption = None,
) -> None:
    """Tokens per second of prompts, generation, batches and shared prompts, beside what the machine could do.

    Lengths are lists (-p 512,2048), 0 leaves a test out. Tokens are not guessed ahead unless -o speculative=auto.
    """
    from branchwork import bench as benchmark
    from branchwork import bench_report as report
    from branchwork.runtime.loading.hub import find_model

    if output not in report.FORMATS:
        fail(f"--output {output} is none of {', '.join(report.FORMATS)}")
    lengths = [
        _lengths(f"--{name}", text)
        for name, text in zip(("prompt", "generate", "batch", "shared"), (prompt, generate, batch, shared))
    ]
    options = {"speculative": "off", **_options(option)}
    try:
        wanted = benchmark.workloads(*lengths)
        with start(model, options) as runtime, loading_bar() as say:
            rows, rates = benchmark.measure(runtime, find_model(model), wanted, repeats, say)
    except ValueError as error:
        fail(str(error))
    if output == "table":
        report.show(console, rows, rates, options)
    else:
        print(report.written(output, rows, rates, options))
    if json_file is not None:
        json_file.write_text(report.written("json", rows, rates, options) + "\n", encoding="utf-8")


@app.command()
def ps(
    endpoint: Annotated[str, typer.Option(help="a running runtime's endpoint; default: of `branchwork serve`")] = "",
    curve_keys: Annotated[str, typer.Option(help="folder with its CURVE keys, for another machine")] = "",
) -> None:
    """What a running runtime serves: its models, memory, requests and hit rate."""
    from branchwork.status import describe, loaded

    with _running(endpoint, curve_keys) as (where, backend):
        rows, models = describe(where, backend.stats()), loaded(backend.ask("models")["models"])
    _print_table("", rows)
    if len(models) > 1:
        _print_table("loaded models", models)


@app.command()
def stop(
    name: Annotated[str, typer.Argument(help="a model that a running server has loaded")],
    endpoint: Annotated[str, typer.Option(help="a running runtime's endpoint; default: of `branchwork serve`")] = "",
    curve_keys: Annotated[str, typer.Option(help="folder with its CURVE keys, for another machine")] = "",
) -> None:
    """Let a loaded model go, as soon as nobody uses it, and give back its memory."""
    with _running(endpoint, curve_keys) as (where, backend):
        if not backend.ask(f"stop {name}")["stopped"]:
            names = ", ".join(model["name"] for model in backend.ask("models")["models"])
            fail(f"{name!r} is not loaded at {where}, or is what programs there run on; loaded: {names}")
    console.print(f"{name} goes when its last request has ended", highlight=False)


@app.command()
def doctor(
    model: Annotated[str, typer.Option("--model", "-m", help="also examine this model: name, directory or file")] = "",
) -> None:
    """What this machine has, which kernels would be chosen, what is missing and why; what a model would take."""
    from branchwork.doctor import examine
    from branchwork.runtime.loading.errors import LoadError

    try:
        tables = examine(model)
    except LoadError as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    for title, rows in tables:
        _print_table(title, rows)


@app.command()
def quantize(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="sapling, a library name, directory, .gguf file or hub name")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the directory to write; must not exist")],
    kind: Annotated[str, typer.Option("--type", "-t", help="int8 or int4; fp8 for GPUs")] = "int8",
) -> None:
    """Write IN again with its matrices in 8 or 4 bits: a smaller model that loads at once."""
    from branchwork.quantize import write_quantized
    from branchwork.runtime.loading.errors import LoadError
    from branchwork.runtime.loading.hub import find_model, shown

    try:
        with shown("downloading") as progress:
            model = find_model(source, progress=progress)
        with shown(f"quantizing to {kind}") as progress:
            before, after = write_quantized(model, out, kind, progress=progress)
    except LoadError as error:
        fail(error.message)
    console.print(f"{model}: {before / 1e6:,.1f} MB", highlight=False, soft_wrap=True)
    console.print(f"{out}: {after / 1e6:,.1f} MB, {after / before:.0%}", highlight=False, soft_wrap=True)


@app.command()
def keys(folder: Annotated[Path, typer.Argument(help="where to write server.key_secret and clients/")]) -> None:
    """Make CURVE keys for a runtime that other machines may reach."""
    import zmq.auth

    clients = folder / "clients"
    clients.mkdir(parents=True, mode=0o700, exist_ok=True)
    if (folder / "server.key_secret").exists():
        fail(f"{folder} already has keys; remove them first if you mean to replace them")
    zmq.auth.create_certificates(folder, "server")
    zmq.auth.create_certificates(folder, "client")
    (folder / "client.key").rename(clients / "client.key")
    console.print(f"server: branchwork serve --curve-keys {folder} --endpoint tcp://0.0.0.0:5570")
    console.print(f"client: branchwork.connect('tcp://HOST:5570', curve_keys='{folder}')")


for _name, _command in library.COMMANDS.items():
    app.command(_name)(_command)


@contextlib.contextmanager
def loading_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error while a runtime loads; it goes away at the stage "ready"."""
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("starting", total=1.0)

        def say(stage: str, fraction: float) -> None:
            progress.update(task, description=stage, completed=fraction)
            if stage == "ready":
                progress.stop()

        yield say


def start(model: str, options: Mapping[str, Any]) -> bw.Runtime:
    """A runtime of one's own, with its loading shown."""
    import branchwork as bw

    with loading_bar() as say:
        return bw.Runtime(model, progress=say, **options)


def default_endpoint() -> str:
    """The ipc endpoint of `branchwork serve`, in a folder only its user can enter; loopback without ipc."""
    import zmq

    if not zmq.has("ipc"):
        return "tcp://127.0.0.1:5570"
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base) / f"branchwork-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        fail(f"{folder} can be entered by other users; remove it, or give --endpoint")
    return f"ipc://{folder}/runtime"


@contextlib.contextmanager
def _running(endpoint: str, curve_keys: str) -> Iterator[tuple[str, bw.RuntimeBackend]]:
    """A connection to a running runtime, and where that is."""
    import branchwork as bw

    endpoint = endpoint or default_endpoint()
    try:
        backend = bw.connect(endpoint, token=os.environ.get("BRANCHWORK_TOKEN", ""), curve_keys=curve_keys, timeout=3)
    except bw.RuntimeUnavailable as error:
        errors.print(f"no runtime serves at {endpoint}; `branchwork serve` starts one", highlight=False, soft_wrap=True)
        errors.print(f"({escape(str(error))})", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    try:
        yield endpoint, backend
    finally:
        backend.close()


def _print_table(title: str, rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(title=title or None, title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _lengths(name: str, text: str) -> list[int]:
    """The whole numbers of a list like 512,2048."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        fail(f"{name} {text}: whole numbers with commas between them are needed, like 512,2048; 0 leaves it out")
    return [int(part) for part in parts]


def _options(option: list[str] | None) -> dict[str, Any]:
    from branchwork.runtime.config import ConfigError, parse

    try:
        parse(option or [])
    except ConfigError as error:
        fail(str(error))
    return dict(item.split("=", 1) for item in option or [])


def main() -> None:
    """Run the command line. Errors of programs and runtimes are told in a sentence; Ctrl-C ends with status 130."""
    import branchwork as bw

    try:
        status = app(standalone_mode=False)  # the status of typer.Exit comes back as the value
    except (bw.ProgramError, bw.BackendError) as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        with contextlib.suppress(OSError):
            errors.print("interrupted")
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "show"):  # click's own usage errors know how to show themselves
            raise
        error.show()
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
