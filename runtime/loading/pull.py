"""Pulling a model from the hub into the library: which files, fetched with resume, checked, and given a name.

Knows: the hub's list of files, the library's layout. Must not know: the terminal, what the weights mean.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from filelock import FileLock, Timeout

from branchwork.runtime.loading.about import about, quantization_in
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.store import LATEST, PART, Manifest, Store, canonical
from branchwork.runtime.loading.transfer import fetch

PREFERRED = ("Q4_K_M", "Q8_0")
# a hub's names become names of files here; those of sentence-transformers say how states become vectors
_SMALL = re.compile(r"[\w.-]+\.(?:json|jinja)|LICENSE[\w.-]*|[0-9]_Pooling/config\.json")
_WEIGHTS = re.compile(r"[\w.-]+\.safetensors")
_GGUF = re.compile(r"[\w.-]+\.gguf")
_HEX = re.compile(r"[0-9a-f]{40,64}")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_OTHERS = re.compile(r".*\.(?:bin|pt|pth|h5|msgpack|onnx|ckpt)")


class File(NamedTuple):
    """A file of a repository. size: bytes. digest: algorithm-hex, sha256 where the hub knows it, else git's own."""

    name: str
    size: int
    digest: str


class Step(NamedTuple):
    """What a pull is doing. stage: looking | waiting | downloading | done; done, total: bytes of all files."""

    stage: str
    file: str = ""
    digest: str = ""
    done: int = 0
    total: int = 0


Say = Callable[[Step], None]


class Asked(NamedTuple):
    """A hub name taken apart. tag: a revision or a quantization, "" for none; file: a .gguf, "" for none."""

    repository: str
    tag: str
    file: str

    @property
    def revision(self) -> str:
        return "" if quantization_in(self.tag) == self.tag.upper() else self.tag


def asked(name: str) -> Asked:
    """owner/name[:revision or quantization][/file.gguf] taken apart. Raises LoadError (name)."""
    path, _, tag = canonical(name).partition(":")
    parts = path.split("/")
    is_file = len(parts) == 3 and parts[2].endswith(".gguf")
    if len(parts) != 2 and not is_file:
        raise LoadError(
            "name",
            f"{name!r} cannot be pulled: names of the Hugging Face hub are owner/name, owner/name:revision, "
            "owner/name:Q4_K_M or owner/name/file.gguf",
        )
    return Asked("/".join(parts[:2]), "" if tag == LATEST else tag, parts[2] if is_file else "")


def pull(
    name: str,
    store: Store,
    *,
    say: Say | None = None,
    check: Callable[[Path], object] | None = None,
    patience: float = 1.0,
) -> Manifest:
    """Bring a hub's model into the library under its own name; files that are there already are not fetched again.

    say hears every step. check: called with the folder as soon as config.json is there, so that a model which cannot
    be used is known before its weights come. patience: seconds before a broken transfer is tried again.
    Raises LoadError (name, not_found, gated, offline, ambiguous, unsupported, checksum, disk, or check's own).
    """
    what, say = asked(name), say or _silent
    say(Step("looking"))
    commit, files = _listed(what)
    chosen = choose(what, files)
    repository = store.repository(what.repository)
    with _alone(store.pulling(repository), say):
        folder = _cached(what.repository, commit, chosen)
        if folder is None:
            folder = repository / commit[:12]
            _fetch_all(what, commit, chosen, repository, say, check, patience)
        path = folder / chosen[0].name if chosen[0].name.endswith(".gguf") else folder
        manifest = Manifest(path=str(path), source=name, about=about(path))
        store.put(name, manifest)
    store.sweep(repository)  # what an earlier commit had and nobody needs now
    total = sum(file.size for file in chosen)
    say(Step("done", done=total, total=total))
    return manifest


@contextmanager
def _alone(lock: FileLock, say: Say) -> Iterator[None]:
    """While nobody else pulls the same repository."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(Step("waiting"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def choose(what: Asked, files: Sequence[File]) -> list[File]:
    """The files of a repository that make up the model: small ones first, or the one GGUF file.

    Raises LoadError (not_found, ambiguous, unsupported) listing what there is.
    """
    ggufs = [file for file in files if _GGUF.fullmatch(file.name) and not file.name.startswith("mmproj")]
    weights = [file for file in files if _WEIGHTS.fullmatch(file.name)]
    wants_gguf = what.file or (what.tag and not what.revision)
    if weights and not wants_gguf:
        named = [file for file in weights if file.name.startswith("model")]
        return [file for file in files if _SMALL.fullmatch(file.name)] + (named or weights)
    if ggufs:
        return [_one(what, ggufs)]
    others = [file.name for file in files if _OTHERS.fullmatch(file.name)]
    raise LoadError(
        "unsupported",
        f"{what.repository} has no weights in safetensors or GGUF files"
        + (f", only {', '.join(others[:4])}; ask for a conversion" if others else ""),
    )


def _one(what: Asked, ggufs: Sequence[File]) -> File:
    """The GGUF file that is meant: the one named, the only one of a quantization, or the usual choice."""
    whole = [file for file in ggufs if not _SPLIT.search(file.name)]
    wanted = what.tag.upper() if what.tag and not what.revision else ""
    if what.file:
        found = [file for file in ggufs if file.name == what.file]
    elif wanted:
        found = [file for file in whole if quantization_in(file.name) == wanted]
    elif len(whole) == 1:
        found = whole
    else:
        kinds = [[file for file in whole if quantization_in(file.name) == kind] for kind in PREFERRED]
        found = next((kind for kind in kinds if kind), [])
    if len(found) == 1:
        return found[0]
    shown = [f"  {what.repository}/{file.name}  {file.size / 1e9:.2f} GB" for file in sorted(whole, key=lambda f: f[1])]
    choices = "\n".join(shown or ["  (only files in several parts, which are not read here)"])
    missing = what.file or wanted
    raise LoadError(
        "not_found" if missing and not found else "ambiguous",
        (f"{what.repository} has no {missing}" if missing and not found else f"{what.repository} has several models")
        + f"; pull one of these:\n{choices}",
    )


def _listed(what: Asked) -> tuple[str, list[File]]:
    """The commit that is meant and its files."""
    from huggingface_hub import HfApi, errors

    where = what.repository + (f" at {what.revision}" if what.revision else "")
    try:
        info: Any = HfApi().model_info(what.repository, revision=what.revision or None, files_metadata=True)
    except errors.GatedRepoError as error:
        raise LoadError(
            "gated",
            f"{where} asks for its terms to be accepted: visit https://huggingface.co/{what.repository}, then log in "
            "with `hf auth login` or set HF_TOKEN",
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise LoadError(
            "not_found", f"{where} is not on the hub, or private; check the spelling, or log in with `hf auth login`"
        ) from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise LoadError("offline", f"the hub cannot be reached to pull {where} ({error!s:.200})") from error
    files = [
        File(each.rfilename, each.size or 0, f"sha256-{each.lfs.sha256}" if each.lfs else f"git-{each.blob_id}")
        for each in info.siblings or []
    ]
    if not all(
        _HEX.fullmatch(digest) for digest in (str(info.sha), *(file.digest.partition("-")[2] for file in files))
    ):
        raise LoadError("damaged", f"the hub's list of the files of {where} has digests that are none")
    return str(info.sha), files


def _cached(repository: str, commit: str, files: Sequence[File]) -> Path | None:
    """Where the hub's own cache on this machine has all the files already; they are used from there."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repository, file.name, revision=commit) for file in files]
    paths = [Path(path) for path in found if isinstance(path, str)]
    if len(paths) == len(files) and all(path.stat().st_size == file.size for path, file in zip(paths, files)):
        return next(path.parent for path, file in zip(paths, files) if "/" not in file.name)
    return None


def _fetch_all(
    what: Asked,
    commit: str,
    files: Sequence[File],
    repository: Path,
    say: Say,
    check: Callable[[Path], object] | None,
    patience: float,
) -> None:
    """Every file as a blob of its digest, linked into the commit's folder."""
    blobs, folder = repository / "blobs", repository / commit[:12]
    blobs.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    total = sum(file.size for file in files)
    _check_space(blobs, [file for file in files if not (blobs / file.digest).exists()])
    before = 0
    for file in files:
        blob, checking = blobs / file.digest, file.name == "config.json"
        if not blob.exists():
            say(Step("downloading", file.name, file.digest, before, total))
            moved = partial(_say_moved, say, file, before, total)
            _fetch_one(what, commit, file, blob, moved, patience)
        before += file.size
        target = folder / file.name
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            _link(blob, target)
        if checking and check is not None:
            check(folder)


def _silent(step: Step) -> None:
    return


def _say_moved(say: Say, file: File, before: int, total: int, done: int) -> None:
    say(Step("downloading", file.name, file.digest, before + done, total))


def _fetch_one(what: Asked, commit: str, file: File, blob: Path, moved: Callable[[int], None], patience: float) -> None:
    from huggingface_hub import HfApi, get_token

    url = f"{HfApi().endpoint}/{what.repository}/resolve/{commit}/{quote(file.name)}"
    part = blob.with_name(blob.name + PART)
    headers = {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
    found = fetch(url, part, size=file.size, digest=file.digest, headers=headers, moved=moved, patience=patience)
    if found != file.digest:
        part.unlink()
        raise LoadError(
            "checksum",
            f"{file.name} of {what.repository} was damaged on the way: its digest is {found}, the hub says "
            f"{file.digest}. What came was removed; pull again",
        )
    os.replace(part, blob)


def _link(blob: Path, target: Path) -> None:
    try:
        os.link(blob, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(blob, target)


def _check_space(folder: Path, files: Sequence[File]) -> None:
    parts = [folder / (file.digest + PART) for file in files]
    needed = sum(file.size for file in files) - sum(part.stat().st_size for part in parts if part.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise LoadError(
            "disk",
            f"{needed / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free in {folder}; make room, "
            "or let BRANCHWORK_HOME name a folder on another disk",
        )
