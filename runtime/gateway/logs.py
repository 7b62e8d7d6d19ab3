"""One line a request, for people or for machines.

Knows: what the journal keeps of a request. Must not know: who asked, HTTP, models.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TextIO

import msgspec

from branchwork.runtime.gateway.journal import Asked

FORMATS = ("json", "text", "off")


def sink(form: str, out: TextIO | None = None) -> Callable[[Asked], None]:
    """Writes a line for every request it hears of, to standard error unless told otherwise. form: json or text."""
    write = _as_json if form == "json" else _as_text

    def hear(asked: Asked) -> None:
        print(write(asked), file=out or sys.stderr, flush=True)

    return hear


def facts(asked: Asked) -> dict[str, Any]:
    """What is worth a line. Times are seconds; those of the engine are the first answer's."""
    told: dict[str, Any] = {
        "time": datetime.fromtimestamp(asked.began, timezone.utc).isoformat(timespec="milliseconds"),
        "id": asked.id,
        "method": asked.method,
        "path": asked.path,
        "route": asked.route,
        "status": asked.status,
        "seconds": round(asked.seconds, 6),
    }
    if asked.model:
        told["model"] = asked.model
    if asked.answers:
        told |= {name: getattr(asked, name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")}
        told |= {name: round(asked.answers[0].get(name, 0.0), 6) for name in ("queued_s", "first_s", "total_s")}
        told["finish_reasons"] = [answer.get("finish_reason", "choice") for answer in asked.answers]
    return told


def _as_json(asked: Asked) -> str:
    return msgspec.json.encode(facts(asked)).decode()


def _as_text(asked: Asked) -> str:
    told = facts(asked)
    path = repr(told["path"])[1:-1]  # it may hold line ends, which must not look like lines of ours
    parts = [told["time"], str(told["status"]), told["method"], path, f"{told['seconds'] * 1e3:.1f} ms"]
    if "model" in told:
        parts.append(repr(told["model"])[1:-1])
    if "prompt_tokens" in told:
        parts.append(f"{told['prompt_tokens']} + {told['completion_tokens']} tokens ({told['cached_tokens']} cached)")
    return "  ".join([*parts, told["id"]])
