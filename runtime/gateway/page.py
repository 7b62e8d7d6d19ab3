"""The page at /: its files, and what it shows as it happens, once a second.

Knows: the files, the journal, what engines say of themselves. Must not know: dialects, how the page looks.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.responses import Response

from branchwork.runtime import wire
from branchwork.runtime.gateway import engines
from branchwork.runtime.gateway.journal import Asked
from branchwork.runtime.gateway.metrics import held
from branchwork.runtime.gateway.models import FOREVER, Row
from branchwork.runtime.gateway.service import Service
from branchwork.runtime.gateway.web import EVENTS, Call, Stream, event, plain

PERIOD = 1.0  # seconds
ANSWER_TIME = 0.8  # seconds that an engine has to say something each time
FILES = Path(__file__).parent / "dashboard"
MEDIA = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SAFE = {  # nothing from elsewhere, nothing inline, in nobody's frame
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_SHOWN = (  # of an engine's stats
    "running",
    "waiting",
    "hit_rate",
    "prompt_tokens",
    "reused_tokens",
    "computed_tokens",
    "generated_tokens",
    "finished",
    "pages",
    "pages_free",
    "pages_cached",
    "pages_available",
    "page_size",
    "kv_bytes",
    "weight_bytes",
    "resident_bytes",
    "context",
    "device",
    "weights",
    "uptime",
)


def files() -> list[tuple[str, Callable[[Call[None]], Awaitable[Response]]]]:
    """(path, handler) of every file of the page; index.html is at /."""
    found = sorted(path for path in FILES.iterdir() if path.suffix in MEDIA)
    return [("/" if path.name == "index.html" else f"/dashboard/{path.name}", _sender(path)) for path in found]


def _sender(path: Path) -> Callable[[Call[None]], Awaitable[Response]]:
    body = path.read_bytes()

    async def send(call: Call[None]) -> Response:
        return Response(body, headers=SAFE, media_type=MEDIA[path.suffix])

    send.__doc__ = f"The page's {path.name}."
    return send


class Page:
    """What the page shows. service: whose."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def events(self, call: Call[None]) -> Any:
        """What the server does, once a second, as server-sent events: `now`, and `tree` for `?tree=MODEL`."""
        return Stream(EVENTS, self._events(call.http.query_params.get("tree", "")), lambda one: event(plain(one)))

    async def _events(self, model: str) -> AsyncGenerator[bytes, None]:
        told = 0  # requests that have ended are told once each
        before: wire.Tree | None = None
        while not self._service.draining:
            began = time.monotonic()
            fresh = [asked for asked in self._service.journal.ended if asked.ended > told]
            told = fresh[-1].ended if fresh else told
            yield event(await self._now(fresh), "now")
            row = next((row for row in self._service.models.loaded() if row.name == model), None)
            if row is not None:
                tree = await engines.within(row.served.host.tree(), ANSWER_TIME)
                if tree is not None and tree != before:
                    before = tree
                    yield event(_tree(row, tree), "tree")
            await asyncio.sleep(max(PERIOD - (time.monotonic() - began), 0.1))

    async def _now(self, fresh: list[Asked]) -> dict[str, Any]:
        told = await engines.stats(self._service, ANSWER_TIME)
        under_way = self._service.journal.under_way.values()
        return {
            "time": time.time(),
            "names": list(self._service.models.names()),
            "models": [_model(one) for one in told],
            "under_way": [_asked(asked) for asked in under_way if asked.model],
            "ended": [_asked(asked) for asked in fresh],
        }


def _model(one: engines.Told) -> dict[str, Any]:
    row, facts = one
    shown: dict[str, Any] = {"name": row.name, "memory": row.memory, "users": row.users, "answers": facts is not None}
    shown["expires"] = None if row.expires == FOREVER else row.expires
    if facts is not None:
        shown |= {name: facts[name] for name in _SHOWN} | {"usage": held(facts)}
    return shown


def _asked(asked: Asked) -> dict[str, Any]:
    return msgspec.structs.asdict(asked)


def _tree(row: Row, tree: wire.Tree) -> dict[str, Any]:
    """nodes: parent, tokens, pages, locks, children, idle, text; see wire.TreeNode."""
    nodes = [
        (
            node.parent,
            node.tokens,
            node.pages,
            node.locks,
            node.children,
            node.idle,
            row.served.texts.text_of(array("i", node.head)),
        )
        for node in tree.nodes
    ]
    return {"model": row.name, "total": tree.total, "nodes": nodes}
