"""The HTTP application on a socket: uvicorn inside the gateway's own event loop, and its end in order.

Knows: uvicorn, addresses, certificates. Must not know: routes, models.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import uvicorn

from branchwork.lang.protocol import is_loopback
from branchwork.runtime.config import ConfigError
from branchwork.runtime.gateway import logs
from branchwork.runtime.gateway.app import Access, application
from branchwork.runtime.gateway.service import Limits, Service
from branchwork.runtime.gateway.tracing import tracing


class Http(NamedTuple):
    """certificate, private_key: PEM files for TLS. grace: seconds that requests under way get when the server ends.
    log: one line a request on standard error, as json or text, or off."""

    host: str = "127.0.0.1"
    port: int = 8000
    access: Access = Access()
    limits: Limits = Limits()
    certificate: Path | None = None
    private_key: Path | None = None
    grace: float = 10.0
    log: str = "off"


class Site:
    """Bound on creation. Raises ConfigError where it cannot be, or where others could reach it without a key."""

    def __init__(self, http: Http, service: Service) -> None:
        self._http = http
        self._service = service
        if not is_loopback(http.host) and not http.access.keys:
            raise ConfigError(f"{http.host} can be reached from other machines; give --api-keys, or --host 127.0.0.1")
        family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
        try:
            self._socket = socket.create_server((http.host, http.port), family=family, backlog=2048)
        except OSError as error:
            where = f"{http.host} port {http.port}"
            raise ConfigError(f"HTTP cannot listen on {where}: {error}; give another --port") from error
        config = uvicorn.Config(
            application(service, http.access),
            log_config=None,
            access_log=False,
            lifespan="off",
            ssl_certfile=http.certificate,
            ssl_keyfile=http.private_key,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )
        try:
            config.load()
        except (OSError, ValueError) as error:  # ssl's errors are OSErrors
            raise ConfigError(f"the TLS certificate or its key cannot be used: {error}") from error
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None
        self._tracing = tracing()
        if self._tracing is not None:
            service.journal.sinks.append(self._tracing.hear)
        if http.log != "off":
            service.journal.sinks.append(logs.sink(http.log))

    @property
    def url(self) -> str:
        """Where it can be asked."""
        host, port = self._socket.getsockname()[:2]
        scheme = "https" if self._http.certificate is not None else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def start(self) -> asyncio.Task[None]:
        """Serve from now on."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        return self._serving

    async def drain(self) -> None:
        """Refuse what is new, let what is under way end within the grace time, and say so."""
        if self._service.under_way:
            text = f"{self._service.under_way} requests are under way; they have {self._http.grace:g} s to end"
            print(f"gateway: {text}", file=sys.stderr, flush=True)
        done = await self._service.drain(self._http.grace)
        if not done:
            print(f"gateway: {self._service.under_way} requests were cut off", file=sys.stderr, flush=True)
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the gateway's."""
        yield
