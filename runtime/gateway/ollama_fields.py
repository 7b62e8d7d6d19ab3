"""Fields that Ollama's requests share, read: options, how long a model stays, formats, times.

Knows: Ollama's words for them. Must not know: models, prompts, HTTP.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from branchwork.lang.constraint import Constraint
from branchwork.lang.toolformats import ToolSpec
from branchwork.runtime.gateway import turns
from branchwork.runtime.gateway.replies import schema
from branchwork.runtime.gateway.service import Problem
from branchwork.runtime.loading import parameters as settings
from branchwork.runtime.loading.errors import LoadError

# what Ollama's clients count on where neither they nor the model say anything
DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
NANOSECONDS = 1e9
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"[-+]?((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+|[-+]?0")
_STEP = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def knobs(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Sampling parameters (lang.params) of `options`. Raises Problem 400 for one that is unknown or cannot be had.

    num_ctx is none of them: see window. A num_predict of 0 or less means as long as there is room.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if given.get("num_predict") == 0:
        given["num_predict"] = -1
    try:
        settings.check(given)
    except LoadError as error:
        raise Problem(400, "invalid_option", error.message, "options") from error
    return settings.knobs(given)


def window(options: Mapping[str, Any] | None) -> int | None:
    """num_ctx: the most tokens that prompt and answer may have together; None for what the model has."""
    return (options or {}).get("num_ctx")


def seconds(keep_alive: float | str | None) -> float | None:
    """keep_alive in seconds: a number of them, or Go's way of writing it ("5m", "1h30m"); below 0 is for ever.

    Raises Problem 400.
    """
    if keep_alive is None:
        return None
    if isinstance(keep_alive, str):
        if not _DURATION.fullmatch(keep_alive):
            text = f"keep_alive is {keep_alive!r}; it takes seconds as a number, or a duration such as 5m, 1h30m or -1s"
            raise Problem(400, "invalid_request", text, "keep_alive")
        size = sum(float(number) * _UNITS[unit] for number, unit in _STEP.findall(keep_alive))
        keep_alive = -size if keep_alive.startswith("-") else size
    return math.inf if keep_alive < 0 else float(keep_alive)


def shape(format: str | Mapping[str, Any] | None) -> Constraint | None:
    """What `format` asks of an answer: "json" for any JSON object, or a JSON Schema. Raises Problem 400."""
    if format is None or format == "":
        return None
    if format == "json":
        return schema({"type": "object"})
    if isinstance(format, str):
        raise Problem(400, "invalid_request", f"format is {format!r}; it takes json or a JSON Schema", "format")
    return schema(format)


def specs(tools: list[dict[str, Any]] | None) -> list[ToolSpec]:
    """The tools of a request. Raises Problem 400."""
    found = []
    for tool in tools or []:
        function = tool.get("function")
        if tool.get("type", "function") != "function" or not isinstance(function, dict) or not function.get("name"):
            raise Problem(400, "invalid_request", "a tool is {type: function, function: {name, ...}}", "tools")
        arguments = function.get("parameters")
        if not isinstance(arguments, (dict, type(None))):
            raise Problem(400, "invalid_request", "the parameters of a tool are a JSON Schema, an object", "tools")
        found.append((str(function["name"]), str(function.get("description") or ""), arguments))
    return turns.specs(found)


def stamp(when: float | None = None) -> str:
    """A time (seconds since 1970, now for None) as RFC 3339."""
    return (
        datetime.fromtimestamp(time.time() if when is None else when, timezone.utc).isoformat().replace("+00:00", "Z")
    )


def nanoseconds(duration: float) -> int:
    return round(duration * NANOSECONDS)
