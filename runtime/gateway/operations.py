"""Routes for those who run the server: health, metrics, flushing the cache, the OpenAPI document.

Knows: what engines say of themselves. Must not know: dialects, answers.
"""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from starlette.responses import Response

from branchwork.runtime.gateway import engines
from branchwork.runtime.gateway.engines import Told
from branchwork.runtime.gateway.metrics import CONTENT_TYPE, Metrics
from branchwork.runtime.gateway.openapi import document
from branchwork.runtime.gateway.service import Problem, Service
from branchwork.runtime.gateway.web import JSON, Call
from branchwork.runtime.programs.host import Host

STEP_TIME = 10.0  # seconds that a step may take, unless a request for /health says otherwise
SCRAPE_TIME = 2.0  # seconds that an engine has to answer for /metrics


class Operations:
    """The handlers, and what has to be remembered between two calls of them."""

    def __init__(self, service: Service) -> None:
        self._metrics = Metrics()
        service.observers.append(self._metrics.answered)
        service.journal.sinks.append(self._metrics.asked)
        # tokens that a loaded model has computed, and since when it has
        self._progress: WeakKeyDictionary[Host, tuple[int, float]] = WeakKeyDictionary()

    async def health(self, call: Call[None]) -> Any:
        """Whether every loaded model computes: 503 when an engine does not answer between two steps, or has work and
        computes nothing, for longer than `?timeout=` seconds (10)."""
        seconds = _seconds(call.http.query_params.get("timeout", ""), STEP_TIME)
        told = await engines.stats(call.service, seconds)
        models = {one.row.name: self._state(one, seconds) for one in told}
        well = all(state["status"] == "ok" for state in models.values())
        status = "draining" if call.service.draining else "ok" if well else "stuck"
        body = msgspec.json.encode({"status": status, "under_way": call.service.under_way, "models": models})
        return Response(body, 200 if status == "ok" else 503, media_type=JSON)

    async def metrics(self, call: Call[None]) -> Any:
        """Metrics as Prometheus reads them."""
        text = self._metrics.text(await engines.stats(call.service, SCRAPE_TIME), call.service.under_way)
        return Response(text, media_type=CONTENT_TYPE)

    async def flush(self, call: Call[None]) -> Any:
        """Drop the cached KV of every loaded model, but for what running requests hold; the pages freed."""
        told = await engines.flush(call.service, STEP_TIME)
        silent = [one.row.name for one in told if one.facts is None]
        if silent:
            raise Problem(503, "engine_silent", f"no answer in {STEP_TIME:g} s from {', '.join(silent)}")
        return {"freed_pages": {one.row.name: one.facts["freed"] for one in told if one.facts is not None}}

    async def openapi(self, call: Call[None]) -> Any:
        """This document."""
        return document(call.http.app.routes)

    def _state(self, one: Told, seconds: float) -> dict[str, Any]:
        facts = one.facts
        if facts is None:
            return {"status": "stuck", "reason": f"its engine has not ended a step in {seconds:g} s"}
        key, now, computed = one.row.served.host, time.monotonic(), int(facts["computed_tokens"])
        before, since = self._progress.get(key, (-1, now))
        since = since if before == computed and facts["running"] else now
        self._progress[key] = (computed, since)
        state = {"status": "ok", "running": facts["running"], "waiting": facts["waiting"]}
        if now - since > seconds:
            idle = f"{facts['running']} requests run, and nothing was computed for {now - since:.1f} s"
            state |= {"status": "stuck", "reason": idle}
        return state


def _seconds(given: str, default: float) -> float:
    if not given:
        return default
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 600:
        raise Problem(400, "invalid_request", f"timeout={given!r} is no number of seconds, 0.01 to 600", "timeout")
    return seconds
