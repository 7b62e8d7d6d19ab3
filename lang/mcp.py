"""Tools of an MCP server as tools of the language, over stdio or streamable HTTP.

Knows: the client of the official `mcp` package, the background loop. Must not know: programs, formats of calls.
A connection lives in one task on the background loop, so its tools may be called from any thread and any event loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from branchwork.lang import loop
from branchwork.lang.errors import BackendError
from branchwork.lang.tools import Tool, ToolError

if TYPE_CHECKING:
    from mcp import Client


class McpServer:
    """A connection to an MCP server, made by `mcp`: `with` or `async with` opens and closes it.

    tools: what the server offers, listed when it was opened. A call that goes wrong (an error of the tool, a timeout, a
    server that is gone) raises, so that in a turn it becomes an error result. instructions: the server's own words.
    """

    def __init__(
        self,
        command: Sequence[str] | None,
        url: str | None,
        env: Mapping[str, str] | None,
        cwd: str | None,
        headers: Mapping[str, str] | None,
        timeout: float,
        startup: float,
    ) -> None:
        self.tools: list[Tool] = []
        self.instructions = ""
        self._command, self._url, self._env, self._cwd = command, url, env, cwd
        self._headers, self._timeout, self._startup = dict(headers or {}), timeout, startup
        self._label = " ".join(command) if command is not None else str(url)
        self._client: Client | None = None
        self._lost: BackendError | None = None
        self._stop: asyncio.Event | None = None
        self._over: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> McpServer:
        """Raises BackendError when the server cannot be started or reached."""
        self._begin().result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end().result()

    async def __aenter__(self) -> McpServer:
        try:
            await asyncio.wrap_future(self._begin())
        except asyncio.CancelledError:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.wrap_future(self._end())

    def _begin(self) -> concurrent.futures.Future[None]:
        """Start the task that holds the connection; what comes of the start."""
        if self._over is not None:
            raise RuntimeError(f"the connection to {self._label} was opened before; make another with bw.mcp(...)")
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        ready.set_running_or_notify_cancel()
        self._stop = asyncio.Event()
        self._over = asyncio.run_coroutine_threadsafe(self._hold(ready, self._stop), loop.get())
        return ready

    def _end(self) -> concurrent.futures.Future[None]:
        assert self._stop is not None and self._over is not None
        loop.post(self._stop.set)
        return self._over

    async def _hold(self, ready: concurrent.futures.Future[None], stop: asyncio.Event) -> None:
        """Open, wait, close, all in this task: the client's cancel scopes belong to the task that entered them."""
        stopping = asyncio.ensure_future(stop.wait())
        try:
            opening = asyncio.ensure_future(self._serve(ready, stop))
            await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED, timeout=self._startup)
            if not ready.done() and not opening.done():
                late = f"the MCP server {self._label} did not list its tools within {self._startup:g} s"
                ready.set_exception(BackendError(late))
                opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await opening
        except Exception as error:
            self._lost = _unreachable(self._label, error)  # once it was open, the next call says so
            if not ready.done():
                ready.set_exception(self._lost)
        finally:
            stopping.cancel()
            self._client = None

    async def _serve(self, ready: concurrent.futures.Future[None], stop: asyncio.Event) -> None:
        async with self._connected() as client:
            self.tools = await self._listed(client)
            self.instructions = client.instructions or ""
            self._client = client
            ready.set_result(None)
            await stop.wait()
            self._client = None

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        try:
            from mcp import Client, StdioServerParameters
            from mcp.client.stdio import stdio_client
            from mcp.client.streamable_http import streamable_http_client
        except ImportError as error:
            raise BackendError(
                f"MCP needs the official client, version 2 or newer: pip install 'branchwork[mcp]' ({error})"
            ) from error
        async with contextlib.AsyncExitStack() as stack:
            if self._command is not None:
                program, *args = self._command
                env = None if self._env is None else dict(self._env)
                server = StdioServerParameters(command=program, args=args, env=env, cwd=self._cwd)
                transport = stdio_client(server, errlog=sys.__stderr__ or sys.stderr)  # notebooks replace sys.stderr
            else:
                import httpx2  # what mcp itself uses

                patience = httpx2.Timeout(30.0, read=300.0)  # seconds; mcp's own: a server may hold its answer open
                web = await stack.enter_async_context(httpx2.AsyncClient(headers=self._headers, timeout=patience))
                transport = streamable_http_client(str(self._url), http_client=web)
            yield await stack.enter_async_context(Client(transport, read_timeout_seconds=self._timeout))

    async def _listed(self, client: Client) -> list[Tool]:
        found: list[Tool] = []
        cursor: str | None = None
        while True:
            page = await client.list_tools(cursor=cursor)
            for offered in page.tools:
                call = _async_function(functools.partial(self._call, offered.name))
                found.append(Tool(offered.name, offered.description or "", offered.input_schema, call))
            cursor = page.next_cursor
            if not cursor:
                return found

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        """One call, from any event loop. Raises ToolError with what the server says."""
        future = asyncio.run_coroutine_threadsafe(self._call_here(name, arguments), loop.get())
        return await asyncio.wrap_future(future)

    async def _call_here(self, name: str, arguments: dict[str, Any]) -> str:
        if self._client is None:
            raise ToolError(f"{name} could not be called: {self._lost or 'its MCP server has been closed'}")
        from mcp import MCPError

        try:
            result = await self._client.call_tool(name, arguments)
        except MCPError as error:
            raise ToolError(f"{name} could not be called: {error.message}") from error
        text = _text(result.content) or json.dumps(result.structured_content, ensure_ascii=False)
        if result.is_error:
            raise ToolError(text)
        return text


def _async_function(call: functools.partial[Any]) -> Any:
    async def function(**arguments: Any) -> str:
        return str(await call(arguments))

    return function


def _text(content: Sequence[Any]) -> str:
    """The texts of a result; of anything else that there was some."""
    parts: list[str] = []
    for block in content:
        if block.type == "text":
            parts.append(block.text)
        elif block.type == "resource" and getattr(block.resource, "text", None) is not None:
            parts.append(block.resource.text)
        else:
            parts.append(f"[{block.type}]")
    return "\n".join(parts)


def _unreachable(label: str, error: BaseException) -> BackendError:
    """The first real error in what may be a group of them."""
    while (inner := getattr(error, "exceptions", None)) is not None:
        error = inner[0]
    if isinstance(error, BackendError):
        return error
    return BackendError(f"the MCP server {label} cannot be used: {type(error).__name__}: {error}")


def mcp(
    command: Sequence[str] | None = None,
    *,
    url: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    startup: float = 60.0,
) -> McpServer:
    """A connection to an MCP server, opened by `with` or `async with`; its `tools` go to bw.tools and bw.agent.

    command: a program to start, with its arguments, that speaks MCP over stdin and stdout. env: variables for it; of
    this process' own it gets a few harmless ones (PATH, HOME ...). cwd: its folder. url: of a server that speaks
    streamable HTTP. headers: for it (authorization ...). timeout: seconds for each call. startup: seconds until the
    server has listed its tools.

    Needs the extra branchwork[mcp]. Opening raises BackendError; here TypeError for neither or both of command and url.
    """
    if (command is None) == (url is None):
        raise TypeError("an MCP server is either a command=[...] to start or a url= to reach; give one of them")
    if isinstance(command, str) or (command is not None and not command):
        raise TypeError(f"command is a list, the program and its arguments, not {command!r}")
    if url is not None and (env is not None or cwd is not None):
        raise TypeError("env and cwd are for a command; a server at a url runs by itself")
    if command is not None and headers is not None:
        raise TypeError("headers are for a url; give a command what it needs as env")
    return McpServer(command, url, env, cwd, headers, timeout, startup)
