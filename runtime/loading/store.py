"""The model library on this machine: names that stand for a model with a system prompt, template and parameters.

Knows: manifests, the files that were pulled, who still needs them. Must not know: the hub, Modelfiles, what a model is.
A manifest is a small JSON file that points at a model; only pulled files belong to the library, below hub/.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec
from filelock import FileLock, Timeout

from branchwork.runtime.loading.errors import LoadError

PART = ".part"  # ends the name of a file that is being downloaded
LATEST = "latest"  # the tag of a name without one
RESERVED = ("sapling", "sapling-draft")  # ship with the package
_NAME = re.compile(
    r"(?P<path>[A-Za-z0-9][\w.-]*(?:/\w[\w.-]*){0,3})(?::(?P<tag>\w[\w.-]*))?(?P<file>/\w[\w.-]*\.gguf)?", re.ASCII
)
_HOSTS = ("hf.co/", "huggingface.co/", "https://huggingface.co/", "https://hf.co/")
_LONGEST = 200  # bytes of a file name that every file system takes


class Message(msgspec.Struct, frozen=True):
    """A turn that every chat begins with. role: system | user | assistant."""

    role: str
    content: str


class About(msgspec.Struct, frozen=True, omit_defaults=True):
    """What lists say of a model. parameters: how many; quantization: such as Q4_K_M, BF16; size: bytes of weights."""

    family: str = ""
    parameters: int = 0
    quantization: str = ""
    context: int = 0  # tokens
    size: int = 0


Value = bool | int | float | str | list[str]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a name stands for. path: a packaged model's name, or an absolute directory or GGUF file.

    source: where it came from, in words that `pull` or `create` take. template: as it was written, Go or Jinja.
    parameters: by their names in Modelfiles. None and empty: the model's own. modified: seconds since 1970.
    """

    path: str
    source: str = ""
    system: str | None = None
    template: str | None = None
    parameters: dict[str, Value] = {}
    messages: tuple[Message, ...] = ()
    license: tuple[str, ...] = ()
    about: About = About()
    modified: float = 0.0


def canonical(name: str) -> str:
    """The one spelling of a library name, its tag always there. Raises LoadError (name).

    A hub's host in front is dropped; in owner/name:tag/file.gguf the tag moves to the end.
    """
    plain = name
    for host in _HOSTS:
        plain = plain.removeprefix(host)
    found = _NAME.fullmatch(plain)
    if found is None:
        raise LoadError(
            "name",
            f"{name!r} is no name for a model: letters, digits, '.', '_' and '-', parts with '/' between them, "
            "and a tag after ':' (assistant, assistant:short, owner/name)",
        )
    whole = f"{found['path']}{found['file'] or ''}:{found['tag'] or LATEST}"
    if len(_file_name(whole)) > _LONGEST:
        raise LoadError("name", f"{name!r} is too long for a name; use at most {_LONGEST} letters")
    return whole


def home() -> Path:
    """Where the library lies: BRANCHWORK_HOME, else branchwork/ in the user's cache folder. It need not exist."""
    given = os.environ.get("BRANCHWORK_HOME")
    if given:
        return Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "branchwork"


class Store:
    """The library below `root` (default: home()). Any number of processes may use one at the same time."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home()
        self.hub = self.root / "hub"  # repository/commit/file, as pull lays it out
        self._manifests = self.root / "manifests"

    def names(self) -> list[str]:
        """Every name with its tag, sorted."""
        return sorted(unquote(path.name.removesuffix(".json")) for path in self._manifests.glob("*.json"))

    def find(self, name: str) -> Manifest | None:
        """What a name stands for; None for none, also for what cannot be a name. Raises LoadError (damaged)."""
        try:
            path = self._path(name)
        except LoadError:
            return None
        return _read(path)

    def get(self, name: str) -> Manifest:
        """As find. Raises LoadError (not_found, damaged) instead of None."""
        found = self.find(name)
        if found is None:
            raise LoadError("not_found", f"there is no model {name!r} in the library; `branchwork list` shows them all")
        return found

    def put(self, name: str, manifest: Manifest, *, keep: bool = False) -> None:
        """Let a name stand for a model from now on. Files of the library that nobody needs any more are freed.

        keep: raise LoadError (exists) rather than change a name that is taken. Raises LoadError (name).
        """
        path = self._path(name)
        if canonical(name).partition(":")[0] in RESERVED:
            raise LoadError("name", f"{name!r} is the packaged model's name; choose another")
        with self._changing():
            before = _read(path)
            if before is not None and keep:
                raise LoadError("exists", f"there is a model {name!r} already")
            _write(path, msgspec.structs.replace(manifest, modified=time.time()))
            if before is not None and before.path != manifest.path:
                self._free(Path(before.path))

    def copy(self, name: str, other: str) -> None:
        """Let `other` stand for what `name` stands for. Raises LoadError (not_found, name)."""
        self.put(other, self.get(name))

    def remove(self, name: str) -> int:
        """Forget a name; bytes that were freed. Files stay which another name needs, or which were never pulled.

        Raises LoadError (not_found).
        """
        if name in RESERVED:
            raise LoadError("name", f"{name} ships with the package and cannot be removed")
        with self._changing():
            begun = self.repository(canonical(name).partition(":")[0])
            if self.find(name) is None and begun.is_dir() and not any(begun in path.parents for path in self._kept()):
                return self._free(begun)  # a pull that never came to its end
            manifest = self.get(name)
            self._path(name).unlink()
            return self._free(Path(manifest.path))

    def repository(self, name: str) -> Path:
        """The folder of a hub's repository owner/name: commits, and blobs/ by their digests, hard-linked."""
        return self.hub / "--".join(name.split("/")[:2])

    def pulling(self, repository: Path) -> FileLock:
        """A lock on a repository's folder, against another pull of it and against freeing its files."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{repository.name}.lock")

    def sweep(self, repository: Path) -> int:
        """Free what nobody needs of a repository's folder. Bytes that were freed."""
        with self._changing():
            return self._free(repository)

    def check(self) -> None:
        """Every name can be read, every pulled file is somebody's. Raises AssertionError."""
        kept = self._kept()
        for repository in self.hub.glob("*/"):
            for file in _files(repository):
                assert file in kept or file.stat().st_nlink > 1 or file.suffix == PART, f"{file} is nobody's"

    def _free(self, path: Path) -> int:
        """Remove what no name needs of the repository that `path` lies in; nothing while it is being pulled.

        The bytes that were freed. A download that was broken off stays as long as anything of its repository does.
        """
        if not path.is_relative_to(self.hub):
            return 0
        repository = self.hub / path.relative_to(self.hub).parts[0]
        freed = 0
        with contextlib.suppress(Timeout), self.pulling(repository).acquire(timeout=0):
            kept, blobs = self._kept(), repository / "blobs"
            for file in [file for file in _files(repository) if file.parent != blobs and file not in kept]:
                file.unlink()
            used = any(repository in file.parents for file in kept)
            for file in _files(blobs):  # a blob is hard-linked from every commit that has it
                if file.stat().st_nlink == 1 and not (used and file.suffix == PART):
                    freed += file.stat().st_size
                    file.unlink()
            for folder in sorted(_folders(repository), reverse=True):
                if not any(folder.iterdir()):
                    folder.rmdir()
        return freed

    def _kept(self) -> set[Path]:
        """The pulled files that some name needs."""
        kept: set[Path] = set()
        for name in self.names():
            path = Path(self.get(name).path)
            if path.is_relative_to(self.hub):
                kept.update([path] if path.is_file() else _files(path))
        return kept

    def _path(self, name: str) -> Path:
        return self._manifests / _file_name(canonical(name))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """One process at a time changes names."""
        self._manifests.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / "lock"):
            yield


def _file_name(name: str) -> str:
    return quote(name, safe="") + ".json"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _folders(folder: Path) -> list[Path]:
    return [folder, *(path for path in folder.rglob("*") if path.is_dir())] if folder.is_dir() else []


def _read(path: Path) -> Manifest | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise LoadError(
            "damaged", f"{path} cannot be read ({error}); remove this file, then pull or create the model again"
        ) from error


def _write(path: Path, manifest: Manifest) -> None:
    """All of it or nothing, whatever happens meanwhile."""
    number, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with open(number, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
