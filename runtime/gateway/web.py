"""What HTTP dialects share: reading a body, streaming an answer, errors in each dialect's shape, clients that leave.

Knows: Starlette, JSON, Service's admission. Must not know: any dialect's fields, models.
"""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from branchwork.runtime.gateway.service import Problem, Service

T = TypeVar("T")
JSON = "application/json"
EVENTS = "text/event-stream"  # server-sent events
LINES = "application/x-ndjson"  # a JSON object a line


class Stream(NamedTuple):
    """An answer in parts, as bytes that go out as they are. What it raises before the first part is an error response;
    later, `broken` writes it into the stream."""

    media: str
    parts: AsyncGenerator[bytes, None]
    broken: Callable[[Problem], bytes]


def plain(problem: Problem) -> dict[str, Any]:
    """A problem as the runtime's own routes tell it."""
    return {"error": {"code": problem.code, "message": problem.message, "param": problem.param}}


class Documented(Route):
    """A route that the OpenAPI document tells of. takes: its body's type, None for none."""

    def __init__(
        self, path: str, endpoint: Callable[..., Any], method: str, dialect: str, takes: Any, about: str
    ) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method, self.dialect, self.takes, self.about = method, dialect, takes, about


class Dialect(NamedTuple):
    """shape: an error's JSON body and further headers."""

    name: str
    shape: Callable[[Problem], tuple[Any, dict[str, str]]]

    def error(self, problem: Problem) -> Response:
        """The response for a problem."""
        body, headers = self.shape(problem)
        if problem.retry_after is not None:
            headers = {**headers, "retry-after": str(max(1, round(problem.retry_after)))}
        return Response(msgspec.json.encode(body), problem.status, headers, JSON)


class Call(NamedTuple, Generic[T]):
    """One request: its decoded body (None for routes without one), and HTTP's own."""

    service: Service
    body: T
    http: Request


def route(
    service: Service,
    dialect: Dialect,
    method: str,
    path: str,
    body: type[T] | None,
    handle: Callable[[Call[Any]], Awaitable[Response | Stream | Any]],
    *,
    counted: bool = True,
) -> Route:
    """A route whose handler gets the body decoded as `body` (a msgspec type). Its result: a Response, a Stream, or what
    becomes JSON. A client that leaves cancels the handler. counted: limits hold, and draining waits for it."""
    decoder = None if body is None else msgspec.json.Decoder(body)

    async def endpoint(request: Request) -> Response:
        stack = ExitStack()
        try:
            service.journal.takes(path)
            if counted:
                stack.enter_context(service.admitted(_key(request)))
            decoded = None if decoder is None else _decoded(decoder, await _read(request, service.limits.body))
            outcome = await _unless_left(request, handle(Call(service, decoded, request)))
            if isinstance(outcome, Stream):
                return await _streaming(request, outcome, stack.pop_all())
            return outcome if isinstance(outcome, Response) else Response(msgspec.json.encode(outcome), media_type=JSON)
        except Problem as problem:
            return dialect.error(problem)
        except Exception as error:  # a fault of ours: this request's alone
            traceback.print_exc()
            text = f"the server failed at this request ({type(error).__name__}); its log says where"
            return dialect.error(Problem(500, "internal_error", text))
        finally:
            stack.close()

    about = " ".join((handle.__doc__ or "").split())
    return Documented(path, endpoint, method, dialect.name, body, about)


class _Parts(StreamingResponse):
    """Ends what makes its parts when the client leaves."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = self.body_iterator
        assert isinstance(parts, AsyncGenerator)
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            return  # nobody is left to be told
        finally:
            await parts.aclose()


async def _streaming(request: Request, stream: Stream, stack: ExitStack) -> Response:
    """The response of a stream that has given its first part. Raises Problem when it does not."""
    try:
        first = await _unless_left(request, anext(stream.parts))
    except BaseException:
        stack.close()
        raise

    async def parts() -> AsyncGenerator[bytes, None]:
        with stack:
            async with aclosing(stream.parts) as rest:
                yield first
                try:
                    async for part in rest:
                        yield part
                except Problem as problem:
                    yield stream.broken(problem)

    return _Parts(parts(), media_type=stream.media, headers={"cache-control": "no-cache"})


def event(value: Any, name: str = "") -> bytes:
    """A server-sent event of a value as JSON, or of a text as it is."""
    data = value.encode() if isinstance(value, str) else msgspec.json.encode(value)
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + data + b"\n\n"


def line(value: Any) -> bytes:
    """A line of JSON."""
    return msgspec.json.encode(value) + b"\n"


def bearer(request: Request) -> str:
    """The key that a request shows, in any of the usual headers; "" for none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


def _key(request: Request) -> str:
    """Whose request it is, for the rate limit: its key, or else its address."""
    return bearer(request) or (request.client.host if request.client else "")


async def _read(request: Request, limit: int) -> bytes:
    """The body. Raises Problem 413 as soon as it is longer than it may be."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Problem(413, "too_large", f"the request is larger than {limit} bytes, which is as large as it may be")
        parts.append(part)
    return b"".join(parts)


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Problem(400, "invalid_request", str(error), _place(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "invalid_json", f"the request's body is no JSON: {error}") from error


def _place(complaint: str) -> str | None:
    """The field that msgspec complains about: what is missing, within the place it names."""
    _, _, where = complaint.partition(" - at `$")
    missing = re.search("missing required field `(.*?)`", complaint)
    return ".".join(part for part in (where.strip("`").strip("."), missing[1] if missing else "") if part) or None


async def _unless_left(request: Request, work: Awaitable[Any]) -> Any:
    """The result of the work, which is cancelled when the client leaves meanwhile."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Problem(499, "client_left", "the client left before its answer was there")
    finally:
        for one in (task, watch):
            if not one.done():
                one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive()).get("type") != "http.disconnect":
        pass
