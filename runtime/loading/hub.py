"""From a model's name to its files: the packaged model, the library, a directory, a GGUF file, a download from the hub.

Knows: names, huggingface_hub. Must not know: what the files mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from branchwork.runtime.loading import parameters
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_file import SUFFIX, is_gguf
from branchwork.runtime.loading.go_template import is_go, to_jinja
from branchwork.runtime.loading.store import RESERVED, Manifest, Message, Store, Value, canonical

PACKAGED = "sapling"
PACKAGED_DRAFT = "sapling-draft"
_WANTED = ("*.json", "*.safetensors", "*.jinja")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

Progress = Callable[[float], None]


def find_model(name: str, *, progress: Progress | None = None, offline: bool = False) -> Path:
    """The directory or GGUF file of model `name`: "sapling", a name of the library, a directory, a .gguf file, or
    owner/name on the Hugging Face hub (downloaded once, then cached): the first of these that there is. A directory
    without a config.json but with one .gguf stands for that file.

    progress hears the fraction downloaded. offline: only what is cached already (HF_HUB_OFFLINE=1 has the same effect).
    Raises LoadError (not_found, offline, gated) saying what to do.
    """
    if name == PACKAGED:
        return _packaged()
    if name == PACKAGED_DRAFT:
        return _packaged("draft")
    manifest = Store().find(name)
    return _stored(name, manifest) if manifest is not None else _elsewhere(name, progress, offline)


class Resolved(NamedTuple):
    """What a model's name stands for. system, template, messages, adapter: None and empty for the model's own.

    template: Jinja. parameters: as Modelfiles name them; knobs: the same as sampling parameters, defaults where a
    caller gave none; options: the same as a runtime's name=value options. manifest: of the library, if it is its name.
    """

    name: str
    path: Path
    system: str | None = None
    template: str | None = None
    messages: tuple[Message, ...] = ()
    parameters: Mapping[str, Value] = {}
    knobs: Mapping[str, Any] = {}
    options: tuple[str, ...] = ()
    license: tuple[str, ...] = ()
    manifest: Manifest | None = None


def resolved(name: str, *, progress: Progress | None = None, offline: bool = False) -> Resolved:
    """As find_model, with everything that the library says of the name.

    Raises LoadError as find_model does, also for a stored template or parameter that cannot be used.
    """
    manifest = Store().find(name) if name not in RESERVED else None
    if manifest is None:
        return Resolved(name, find_model(name, progress=progress, offline=offline))
    return Resolved(
        canonical(name),
        _stored(name, manifest),
        manifest.system,
        jinja(manifest.template),
        manifest.messages,
        manifest.parameters,
        parameters.knobs(manifest.parameters),
        parameters.options(manifest.parameters),
        manifest.license,
        manifest,
    )


def jinja(template: str | None) -> str | None:
    """A template in Jinja, whatever it was written in. Raises LoadError (template)."""
    return to_jinja(template) if template is not None and is_go(template) else template


def _stored(name: str, manifest: Manifest) -> Path:
    """The files that a library name points at. Raises LoadError (not_found) when they have gone."""
    if manifest.path in RESERVED:
        return find_model(manifest.path)
    path = Path(manifest.path)
    if not path.exists():
        again = f"pull it again: branchwork pull {name}" if path.is_relative_to(Store().hub) else "create it again"
        raise LoadError(
            "not_found", f"the library's model {name!r} lies in {path}, which is not there any more; {again}"
        )
    return _inside(path) if path.is_dir() else path


def _elsewhere(name: str, progress: Progress | None, offline: bool) -> Path:
    """A name that is not the library's."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _inside(path)
    if is_gguf(path):
        return path
    if path.is_file() or path.is_absolute() or name.startswith((".", "~")) or not _REPOSITORY.fullmatch(name):
        nowhere = "is no directory, no .gguf file, no name of the library and no hub name (owner/name)"
        what = "is a file, but no .gguf" if path.is_file() else nowhere
        raise LoadError("not_found", f"model {name!r} {what}; the packaged model is called {PACKAGED!r}")
    return _download(name, progress, offline)


def _inside(directory: Path) -> Path:
    """A directory, or the one GGUF file that is all it holds of a model."""
    if (directory / "config.json").is_file():
        return directory
    files = sorted(directory.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:8])
        raise LoadError("not_found", f"{directory} holds {len(files)} .gguf files; name the one to load: {names}")
    return files[0] if files else directory


@contextmanager
def shown(title: str) -> Iterator[Progress]:
    """A rich progress bar on standard error; yields the function that moves it."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


def _packaged(part: str = "") -> Path:
    path = Path(__file__).parent.parent / PACKAGED / part
    if not (path / "config.json").is_file():
        raise LoadError("not_found", f"this installation lacks the packaged model's files in {path}; install it again")
    return path


def _download(name: str, progress: Progress | None, offline: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        bars = _reporting(progress) if progress is not None else None
        where = snapshot_download(name, allow_patterns=list(_WANTED), tqdm_class=bars, local_files_only=offline)
    except errors.GatedRepoError as error:
        raise LoadError(
            "gated",
            f"model {name!r} asks for its terms to be accepted: visit https://huggingface.co/{name}, then log in "
            "with `hf auth login` or set HF_TOKEN",
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise LoadError(
            "not_found",
            f"model {name!r} is neither a directory here nor a public model on the hub; check the spelling, "
            "or log in with `hf auth login` if it is private",
        ) from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # offline, or the cache lacks files
        raise LoadError(
            "offline",
            f"model {name!r} is not complete in the local cache and the hub cannot be reached ({error!s:.200}); "
            f"go online and try again (`branchwork pull {name}` goes on where it broke off), or use a directory, or "
            f"the packaged model {PACKAGED!r}",
        ) from error
    return Path(where)


def _reporting(progress: Progress) -> Any:
    """A tqdm class for huggingface_hub that draws nothing and reports how much of all bytes has come.

    The hub counts bytes on several bars (network, disk), whose totals grow while it learns of more files.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    counting: list[Any] = []

    class Reporting(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": _Nowhere()})
            if kwargs.get("unit") == "B":
                counting.append(self)

        def update(self, n: float | None = 1) -> Any:
            moved = super().update(n)
            total = sum(bar.total or 0 for bar in counting)
            if total:
                progress(min(sum(bar.n for bar in counting) / total, 1.0))
            return moved

    return Reporting


class _Nowhere:
    """A stream that drops what tqdm draws."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        return
