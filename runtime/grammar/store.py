"""What has been compiled before: the newest in memory, and files that outlive the process.

Knows: keys, bytes, a folder shared with other processes. Must not know: what the bytes mean, constraints, vocabularies.

A file is a magic line, the SHA-256 of the payload, the payload. It appears whole (written aside, then renamed), so
readers need no lock; a file that is cut off, foreign or altered is said in the log, not used, and written again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Generic, TypeVar

MAGIC = b"branchwork grammar 1\n"
SUFFIX = ".grammar"
_SWEEP = 16  # files written between two looks at the folder's size

log = logging.getLogger(__name__)
T = TypeVar("T")


def default_folder() -> Path:
    """The user's cache folder for compiled grammars. It need not exist."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "branchwork" / "grammars"


def key(*parts: bytes) -> str:
    """A name for what is made from these parts, usable as a file name."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


class Recent(Generic[T]):
    """The most recently used values up to a number of bytes (the newest is kept however big). Not thread-safe."""

    def __init__(self, budget: int) -> None:
        self.budget, self.size = budget, 0
        self._values: OrderedDict[bytes, tuple[T, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: bytes) -> T | None:
        found = self._values.get(name)
        if found is None:
            return None
        self._values.move_to_end(name)
        return found[0]

    def put(self, name: bytes, value: T, size: int) -> None:
        self.drop(name)
        self._values[name] = (value, size)
        self.size += size
        while self.size > self.budget and len(self._values) > 1:
            self.size -= self._values.popitem(last=False)[1][1]

    def drop(self, name: bytes) -> None:
        self.size -= self._values.pop(name, (None, 0))[1]


class Store:
    """Files of compiled grammars in one folder, oldest use removed past `limit` bytes. Safe between processes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._written = 0

    def get(self, name: str) -> bytes | None:
        """What `put` stored under this name, None when there is nothing that can be used."""
        path = self.folder / (name + SUFFIX)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the grammar cache cannot read %s: %s", path, error)
            return None
        head = len(MAGIC)
        payload = data[head + 32 :]
        if data[:head] != MAGIC or data[head : head + 32] != hashlib.sha256(payload).digest():
            log.warning("the grammar cache ignores %s: damaged or not its own; it will be written again", path)
            return None
        try:
            os.utime(path)  # what is used stays: removal goes by this time
        except OSError as error:  # removed by another process in between, or not ours: it was read, that is enough
            log.debug("%s: %s", path, error)
        return payload

    def put(self, name: str, payload: bytes) -> None:
        """Store under this name. A folder that cannot be written to is said in the log."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, aside = tempfile.mkstemp(dir=self.folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(MAGIC + hashlib.sha256(payload).digest() + payload)
                os.replace(aside, self.folder / (name + SUFFIX))
            except BaseException:
                os.unlink(aside)
                raise
        except OSError as error:
            log.warning("the grammar cache cannot write to %s: %s", self.folder, error)
            return
        if self._written % _SWEEP == 0:
            self.sweep()
        self._written += 1

    def sweep(self) -> None:
        """Remove the files that were used longest ago until the rest fits the limit; parts left by dead writers too."""
        found: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self.folder):
            if not entry.name.endswith((SUFFIX, ".part")):
                continue
            try:
                known = entry.stat()
            except FileNotFoundError:  # another process removed it
                continue
            found.append((known.st_mtime, known.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size
