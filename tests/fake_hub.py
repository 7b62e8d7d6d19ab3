"""A hub on this machine: the few answers that pulling needs, with transfers that break off and bytes that are wrong.

Knows: the hub's addresses and JSON. Must not know: the library under test.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

COMMIT = "c0ffee" + "0" * 34


class Asked(NamedTuple):
    """A request for a file. start: of its Range, 0 without one."""

    file: str
    start: int
    token: str | None


class Hub:
    """repositories: owner/name -> file name -> bytes. breaks: file -> after how many bytes its next transfers end.

    damaged: files whose bytes are changed on the way. asked: every request for a file.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.breaks: dict[str, list[int]] = {}
        self.damaged: set[str] = set()
        self.ranges = True
        self.redirects = False  # whether files are fetched from another address, as from the hub's storage
        self.commit = COMMIT
        self.gated: set[str] = set()
        self.asked: list[Asked] = []
        self.endpoint = ""

    def info(self, repository: str) -> dict[str, Any]:
        files = self.repositories[repository]
        return {
            "id": repository,
            "sha": self.commit,
            "siblings": [_sibling(name, data) for name, data in files.items()],
            "tags": [],
            "private": False,
            "gated": False,
            "downloads": 0,
            "likes": 0,
        }


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": _git(data)}
    if name.endswith((".safetensors", ".gguf")):
        told["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return told


def _git(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@contextmanager
def serving(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    hub = Hub(repositories)

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

        def do_GET(self) -> None:
            listing = re.fullmatch(r"/api/models/([^/]+/[^/?]+)(?:/revision/([^?]+))?(?:\?.*)?", self.path)
            if listing:
                self._list(listing[1], listing[2])
                return
            found = re.fullmatch(r"(?:/elsewhere)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            if found is None:
                self._json(404, {"error": "there is no such page"}, {})
                return
            if hub.redirects and not self.path.startswith("/elsewhere"):
                self._json(302, {}, {"Location": f"{hub.endpoint}/elsewhere{self.path}"})
                return
            self._send_file(found[1], found[3])

        def _list(self, repository: str, revision: str | None) -> None:
            if repository in hub.gated:
                self._json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            elif repository not in hub.repositories:
                self._json(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
            elif revision not in (None, "main", hub.commit, "v1"):
                self._json(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
            else:
                self._json(200, hub.info(repository), {})

        def _send_file(self, repository: str, name: str) -> None:
            data = hub.repositories[repository][name]
            said = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(said[1]) if said else 0
            hub.asked.append(Asked(name, start, self.headers.get("Authorization")))
            start = start if hub.ranges else 0
            if name in hub.damaged:
                data = bytes(byte ^ 1 for byte in data)
            rest = data[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            limits = hub.breaks.get(name)
            self.wfile.write(rest[: limits.pop(0)] if limits else rest)
            self.close_connection = True

        def _json(self, status: int, value: object, headers: dict[str, str]) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            for key, what in {"Content-Type": "application/json", "Content-Length": str(len(text)), **headers}.items():
                self.send_header(key, what)
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def files_of(folder: Path) -> dict[str, bytes]:
    """A directory's files, as a repository has them."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
