"""Responses that are kept for later: one SQLite file in the user's cache folder.

Knows: SQLite, how long a response is kept. Must not know: what is in one, HTTP, models.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

KEPT = 30 * 86_400.0  # seconds
_TABLE = """create table if not exists responses (
    id text primary key, owner text, created real, head text, response blob, input blob, messages blob, ids blob,
    text text
)"""


class Kept(NamedTuple):
    """A response. head: what its conversation began with, as one text. messages: of the whole conversation, the answer
    among them; ids and text: the same as the model has read and written it."""

    id: str
    owner: str
    head: str
    response: dict[str, Any]
    input: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    ids: list[int]
    text: str


def default_file() -> Path:
    """In the user's cache folder. It need not exist."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "branchwork" / "responses.sqlite"


class Store:
    """Opened when it is first needed; several processes may share the file. Methods wait for the disk."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._opened: sqlite3.Connection | None = None

    def put(self, kept: Kept) -> None:
        """Keep one, and let go of those that are too old."""
        row = (
            kept.id,
            kept.owner,
            time.time(),
            kept.head,
            *(msgspec.json.encode(part) for part in (kept.response, kept.input, kept.messages)),
            array("i", kept.ids).tobytes(),
            kept.text,
        )
        with self._lock, self._database() as database:
            database.execute("delete from responses where created < ?", (time.time() - KEPT,))
            database.execute("insert into responses values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def get(self, number: str, owner: str) -> Kept | None:
        """One by its id; None for one of another owner too."""
        query = "select id, owner, head, response, input, messages, ids, text from responses where id = ? and owner = ?"
        with self._lock, self._database() as database:
            row = database.execute(query, (number, owner)).fetchone()
        if row is None:
            return None
        response, given, messages = (msgspec.json.decode(part) for part in row[3:6])
        return Kept(row[0], row[1], row[2], response, given, messages, list(array("i", row[6])), row[7])

    def delete(self, number: str, owner: str) -> bool:
        """Whether there was one."""
        with self._lock, self._database() as database:
            return database.execute("delete from responses where id = ? and owner = ?", (number, owner)).rowcount > 0

    def _database(self) -> sqlite3.Connection:
        if self._opened is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch(mode=0o600)  # conversations are their user's own
            self._opened = sqlite3.connect(self._file, timeout=30, check_same_thread=False)
            self._opened.execute("pragma journal_mode = wal")
            self._opened.execute(_TABLE)
        return self._opened
