"""`branchwork pull, list, show, rm, cp, create`: the model library at the terminal.

Knows: the library's functions, how people read sizes and times. Must not know: manifests' files, HTTP, chats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from branchwork.status import duration, number, size

if TYPE_CHECKING:
    from branchwork.runtime.loading.pull import Step
    from branchwork.runtime.loading.store import Manifest

console = Console()
errors = Console(stderr=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="a name of the library")]


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="owner/name, owner/name:revision, owner/name:Q4_K_M or owner/name/file.gguf"
        ),
    ],
) -> None:
    """Bring a model of the Hugging Face hub into the library. A broken download goes on where it stopped."""
    with told():
        if name == "sapling":
            console.print("sapling ships with Branchwork; there is nothing to pull")
            return
        manifest = pulled(name)
    for note in _unusable(Path(manifest.path)):
        errors.print(f"note: {note}", **_PLAIN)
    about = manifest.about
    console.print(f"{name}: {size(about.size)}, {about.quantization}, {number(about.parameters)} parameters", **_PLAIN)


def list_models() -> None:
    """The models of the library: name, size, quantization, parameters, and when each was changed."""
    from branchwork.runtime.loading.create import base_of
    from branchwork.runtime.loading.hub import find_model
    from branchwork.runtime.loading.store import Store

    table = Table(box=None, pad_edge=False)
    for title in ("name", "size", "quantization", "parameters", "context", "modified"):
        table.add_column(title, justify="right" if title in ("size", "parameters", "context") else "left")
    with told():
        store = Store()
        for name in store.names():
            manifest = store.get(name)
            table.add_row(escape(name), *_facts(manifest), f"{duration(time.time() - manifest.modified)} ago")
        table.add_row("sapling", *_facts(base_of("sapling", find_model("sapling"))), "ships with Branchwork")
    console.print(table)


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a name of the library, or any other model's")],
    modelfile: Annotated[bool, typer.Option("--modelfile", help="a Modelfile that makes the same model")] = False,
    template: Annotated[bool, typer.Option("--template", help="the chat template")] = False,
    system: Annotated[bool, typer.Option("--system", help="the system prompt")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="the parameters")] = False,
    license: Annotated[bool, typer.Option("--license", help="the license")] = False,
) -> None:
    """What is known of a model, or one part of it as it is."""
    asked = {
        "modelfile": modelfile,
        "template": template,
        "system": system,
        "parameters": parameters,
        "license": license,
    }
    parts = [part for part, wanted in asked.items() if wanted]
    if len(parts) > 1:
        fail(f"one part at a time: --{' or --'.join(parts)}")
    with told():
        manifest, path = described(name)
        if parts:
            text = part_of(name, manifest, path, parts[0])
            if text:
                print(text.removesuffix("\n"))
            else:
                errors.print(f"{name} has no {_WORDS.get(parts[0], parts[0])}", **_PLAIN)
            return
        rows = _summary(name, manifest, path)
    table = Table(show_header=False)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def remove(names: Annotated[list[str], typer.Argument(metavar="NAME...", help="names of the library")]) -> None:
    """Remove names from the library, and the pulled files that no other name needs."""
    from branchwork.runtime.loading.store import Store

    with told():
        for name in names:
            freed = Store().remove(name)
            console.print(f"removed {name}" + (f", {size(freed)} freed" if freed else ""), **_PLAIN)


def copy(
    source: Annotated[str, typer.Argument(metavar="NAME", help="a name of the library, or any other model's")],
    target: Annotated[str, typer.Argument(metavar="OTHER", help="the new name")],
) -> None:
    """Give a model another name. The files are shared, not copied."""
    from branchwork.runtime.loading.store import Store

    with told():
        manifest, _ = described(source)
        Store().put(target, manifest)
    console.print(f"{target} is {source}", **_PLAIN)


def create(
    name: NameArgument,
    file: Annotated[Path, typer.Option("--file", "-f", help="the Modelfile")] = Path("Modelfile"),
) -> None:
    """Make a model of the library from a Modelfile (FROM, SYSTEM, TEMPLATE, PARAMETER, MESSAGE, LICENSE)."""
    from branchwork.runtime.gateway.named import frames_of
    from branchwork.runtime.loading.create import create, notes
    from branchwork.runtime.loading.hub import resolved
    from branchwork.runtime.loading.store import Store

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file} cannot be read: {error}; give the path of a Modelfile with -f")
    with told():
        made = create(name, text, Store(), folder=file.absolute().parent, pulled=pulled)
        told_too = notes(made)
        if not frames_of(resolved(name)).roles:
            told_too.append("its chat template has no frame for each role; programs write roles as plain lines")
    for note in told_too:
        errors.print(f"note: {note}", **_PLAIN)
    console.print(f"created {name} from {made.path}", **_PLAIN)


# the commands by the names they are called with
COMMANDS: dict[str, Callable[..., None]] = {
    "pull": pull,
    "list": list_models,
    "show": show,
    "rm": remove,
    "cp": copy,
    "create": create,
}

_PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}
_WORDS = {"system": "system prompt", "template": "chat template"}


def described(name: str) -> tuple[Manifest, Path]:
    """A model as a manifest, also one that is no name of the library, and where it lies. Raises LoadError."""
    from branchwork.runtime.loading.create import base_of
    from branchwork.runtime.loading.errors import LoadError
    from branchwork.runtime.loading.hub import resolved

    try:
        found = resolved(name, offline=True)
    except LoadError as error:
        if error.code == "offline":
            raise LoadError("not_found", f"{name} is not on this machine; `branchwork pull {name}` brings it") from None
        raise
    return found.manifest or base_of(name, found.path), found.path


def part_of(name: str, manifest: Manifest, path: Path, part: str) -> str:
    """A part of a model as text, "" for none: modelfile, template, system, parameters or license. Raises LoadError."""
    from branchwork.runtime.loading import modelfile, tokenizer

    match part:
        case "modelfile":
            return modelfile.write(manifest)
        case "template":
            return manifest.template or tokenizer.chat_template(path) or ""
        case "system":
            return manifest.system or ""
        case "parameters":
            return "\n".join(modelfile.parameter_lines(manifest.parameters))
        case _:
            return "\n\n".join(manifest.license) or _license_file(path)


def pulled(name: str) -> Manifest:
    """Pull a model, shown as it goes. Raises LoadError, also for a model that could not be run, before its weights."""
    from branchwork.runtime.loading.pull import pull
    from branchwork.runtime.loading.store import Store

    with _shown() as say:
        return pull(name, Store(), say=say, check=_check)


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong with a model is told in a sentence, and ends with status 1."""
    from branchwork.runtime.loading.errors import LoadError

    try:
        yield
    except LoadError as error:
        fail(error.message, 1)


def fail(message: str, status: int = 2) -> NoReturn:
    """Tell a person what is wrong and end the command."""
    errors.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(status)


@contextmanager
def _shown() -> Iterator[Callable[[Step], None]]:
    """A bar with bytes and rate on a terminal; a line for each file elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task("asking the hub", total=None)
        last = ""

        def say(step: Step) -> None:
            nonlocal last
            words = {"looking": "asking the hub", "waiting": "another pull of this is under way; waiting"}
            text = f"{step.stage} {step.file}".strip()
            text = words.get(step.stage, text)
            bar.update(task, description=escape(text), completed=step.done, total=step.total or None)
            if text != last and not errors.is_terminal:
                errors.print(text, **_PLAIN)
            last = text

        yield say


def _check(path: Path) -> None:
    """Raises LoadError for a model that cannot be run here."""
    from branchwork.runtime.models import registry  # takes a second: not before the hub has answered

    if registry.is_encoder(path):
        registry.load_encoder_spec(path)
    else:
        registry.load_spec(path)


def _unusable(path: Path) -> list[str]:
    """Why a pulled model cannot be run here; of a GGUF file that is known only when it is there."""
    from branchwork.runtime.loading.errors import LoadError

    try:
        _check(path)
    except LoadError as error:
        return [f"it cannot be run: {error.message}"]
    return []


def _facts(manifest: Manifest) -> tuple[str, str, str, str]:
    about = manifest.about
    return size(about.size), about.quantization, number(about.parameters), f"{about.context:,}"


def _summary(name: str, manifest: Manifest, path: Path) -> Iterator[tuple[str, str]]:
    about = manifest.about
    yield "model", f"{name}, {about.family}, {number(about.parameters)} parameters"
    yield "weights", f"{about.quantization}, {size(about.size)}"
    yield "context", f"{about.context:,} tokens"
    yield "files", str(path)
    if manifest.source and manifest.source not in (name, str(path)):
        yield "from", manifest.source
    if manifest.system is not None:
        yield "system", manifest.system
    if manifest.template is not None:
        yield "template", "its own (show --template)"
    for line in part_of(name, manifest, path, "parameters").splitlines():
        yield "parameter", line
    if manifest.messages:
        yield "messages", str(len(manifest.messages))
    license = part_of(name, manifest, path, "license").strip()
    if license:
        yield "license", license.splitlines()[0].strip()


def _license_file(path: Path) -> str:
    files = sorted(path.glob("LICENSE*"))  # of a directory; a file has none beside it
    return "\n\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
