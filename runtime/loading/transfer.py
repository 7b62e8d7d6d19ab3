"""One file over HTTP into a part file: resumed where it broke off, hashed while it comes.

Knows: HTTP ranges, digests. Must not know: repositories, names, the library.
"""

from __future__ import annotations

import hashlib
import http
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from branchwork.runtime.loading.errors import LoadError

_CHUNK = 1 << 20
_TRIES = 5  # in a row without a byte
_SILENCE = 60.0  # seconds before a connection that says nothing is given up
_BROKEN = (OSError, http.client.HTTPException)  # a connection that failed or ended too early; URLError among them


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def fetch(
    url: str,
    part: Path,
    *,
    size: int,
    digest: str,
    headers: Mapping[str, str],
    moved: Callable[[int], None],
    patience: float = 1.0,
) -> str:
    """Bring `part` to `size` bytes, beginning after those it has; its digest, by the algorithm that `digest` names.

    digest: sha256-hex or git-hex. moved hears how many bytes are there. Headers go to url's own host only.
    patience: seconds before a broken transfer is tried again. Raises LoadError (offline, not_found, gated).
    """
    hashed = _begun(digest, size)
    there = _hash_file(part, hashed) if part.exists() else 0
    if there > size:
        part.unlink()
        hashed, there = _begun(digest, size), 0
    moved(there)
    failed = 0
    while there < size:
        before, trouble = there, "the connection ended early"
        try:
            with _answer(url, headers, there) as answer:
                if there and answer.status != http.HTTPStatus.PARTIAL_CONTENT:  # it comes from the beginning again
                    hashed, there = _begun(digest, size), 0
                with part.open("ab" if there else "wb") as file:
                    while data := answer.read(_CHUNK):
                        file.write(data)
                        hashed.update(data)
                        there += len(data)
                        moved(min(there, size))
        except urllib.error.HTTPError as error:
            _refuse(error, url)
            trouble = str(error)
        except _BROKEN as error:
            trouble = str(error) or type(error).__name__
        failed = 0 if there > before else failed + 1
        if failed >= _TRIES:
            raise LoadError(
                "offline",
                f"the transfer of {url} breaks off at {there:,} of {size:,} bytes ({trouble}); what has come is kept, "
                "and pulling again goes on from there",
            )
        if there < size:
            time.sleep(patience)
    return f"{digest.partition('-')[0]}-{hashed.hexdigest()}"


def _answer(url: str, headers: Mapping[str, str], there: int) -> http.client.HTTPResponse:
    """The open answer with the file's bytes from `there` on, if the server can do that."""
    request = urllib.request.Request(url, headers={"User-Agent": "branchwork"})
    if there:
        request.add_header("Range", f"bytes={there}-")
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a token is not for the host that files are redirected to
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_SILENCE)
    return answer


def _refuse(error: urllib.error.HTTPError, url: str) -> None:
    """Raises LoadError where trying again is of no use."""
    if error.code in (401, 403):
        raise LoadError("gated", f"{url} may not be read ({error}); log in with `hf auth login` or set HF_TOKEN")
    if error.code in (404, 410):
        raise LoadError("not_found", f"{url} is not there ({error})")


def _begun(digest: str, size: int) -> _Hash:
    """git hashes a file's size before its bytes."""
    return hashlib.sha256() if digest.startswith("sha256-") else hashlib.sha1(f"blob {size}\0".encode())


def _hash_file(path: Path, hashed: _Hash) -> int:
    """Hash what is there; how many bytes."""
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            hashed.update(data)
        return file.tell()
