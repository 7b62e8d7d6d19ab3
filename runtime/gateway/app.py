"""The HTTP application: routes of every dialect, keys, cross-origin rules, and shutting down in order.

Knows: which dialects there are, who may ask. Must not know: any dialect's fields, models' insides.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from branchwork.lang.protocol import is_loopback
from branchwork.runtime.config import ConfigError
from branchwork.runtime.gateway import anthropic, native, ollama, openai, page
from branchwork.runtime.gateway.journal import Journalled
from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.gateway.web import bearer

# the first one whose paths a request's begins with shapes its errors
DIALECTS = (anthropic, ollama, openai, native)
OPEN = ("/health", *[path for path, _ in page.files()])  # paths that need no key


class Access(NamedTuple):
    """keys: those that are let in, none for everybody. origins: web pages that may ask from a browser."""

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


def read_keys(path: Path) -> tuple[str, ...]:
    """Keys of a file, one a line; empty lines and those that begin with # do not count. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"the file of API keys cannot be read: {error}") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise ConfigError(f"{path} holds no key; write one a line")
    return keys


def application(service: Service, access: Access = Access()) -> Starlette:  # noqa: B008 (frozen)
    """The ASGI application."""
    middleware: list[Middleware] = [Middleware(Journalled, journal=service.journal)]
    if access.origins:
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=list(access.origins), allow_methods=["*"], allow_headers=["*"])
        )
    middleware.append(Middleware(_Here, access=access))
    if access.keys:
        middleware.append(Middleware(_Keys, keys=access.keys))
    routes = [route for dialect in DIALECTS for route in dialect.routes(service)]
    app = Starlette(routes=routes, middleware=middleware)
    app.add_exception_handler(404, _nowhere)
    app.add_exception_handler(405, _nowhere)
    return app


class _Here:
    """Keeps web pages out that nobody let in: a browser on this machine reaches loopback for any page it shows.

    A request that says which page it is from must be from this site or from one of the origins. Without keys the site
    answers to loopback's names alone, so that no page can come under a name of its own that leads here.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._wrong(Request(scope)) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await shaper(scope["path"])(problem)(scope, receive, send)

    def _wrong(self, request: Request) -> Problem | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not self._access.keys and not is_loopback(_name(host)):
            what = f"this server answers to localhost and loopback addresses, not to {host!r}"
            return Problem(403, "forbidden_host", f"{what}; give it --api-keys for others")
        if origin is None or origin in self._access.origins or origin.partition("://")[2] == host:
            return None
        text = f"pages of {origin} may not ask this server; --origin {origin} lets them"
        return Problem(403, "forbidden_origin", text)


def _name(host: str) -> str:
    """A Host header without its port; "" for one that is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class _Keys:
    """Lets those in who show one of the keys. Every key is compared, each in constant time."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or self._known(bearer(Request(scope))):
            await self._app(scope, receive, send)
            return
        problem = Problem(401, "invalid_api_key", "an API key is needed: give it as Authorization: Bearer KEY")
        await shaper(scope["path"])(problem)(scope, receive, send)

    def _known(self, given: str) -> bool:
        return sum(hmac.compare_digest(given.encode(), key) for key in self._keys) > 0


def shaper(path: str):  # type: ignore[no-untyped-def]
    """How errors look where a path belongs."""
    best = next((one for one in DIALECTS if path.startswith(one.PREFIXES)), native)
    return best.DIALECT.error


async def _nowhere(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    what = f"{request.method} {request.url.path}"
    text = f"there is no {what} here" if status == 404 else f"{what}: another method is needed"
    response: Response = shaper(request.url.path)(Problem(status, "not_found", text))
    return response
