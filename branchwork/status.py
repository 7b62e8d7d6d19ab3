"""`branchwork ps`: what a running runtime serves, from its stats, in rows that people read.

Knows: names and units of stats. Must not know: connections, the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Table = list[tuple[str, ...]]


def describe(endpoint: str, stats: dict[str, Any]) -> Table:
    """(what, finding) rows. stats: as a runtime answers, see RuntimeBackend.stats()."""
    cached = stats["pages_cached"] * stats["page_size"]
    tokens = stats["pages"] * stats["page_size"]
    pool = "none, as it is a model for embeddings"
    if tokens:
        share = stats["pages_used"] / stats["pages"]
        pool = f"{size(stats['kv_bytes'])} for {tokens:,} tokens, {share:.1%} in use ({cached:,} tokens cached)"
    return [
        ("endpoint", endpoint),
        ("model", f"{stats['model']}, {number(stats['parameters'])} parameters, context {stats['context']:,}"),
        ("weights", f"{stats['weights']}, {size(stats['weight_bytes'])}"),
        ("device", f"{stats['device']}, {stats['threads']} thread{'s' * (stats['threads'] != 1)}"),
        ("KV pool", pool),
        ("requests", f"{stats['running']} running, {stats['waiting']} waiting, {stats['finished']:,} finished"),
        ("programs", f"{stats['programs']} open"),
        ("prompt tokens", f"{stats['prompt_tokens']:,}, {stats['hit_rate']:.1%} of them found in the cache"),
        ("up for", duration(stats["uptime"])),
    ]


def loaded(models: Sequence[Mapping[str, Any]]) -> Table:
    """Loaded models as rows: name, memory, what it is, who uses it, when it goes."""
    return [
        (
            model["name"],
            size(model["memory"]),
            f"{model['weights']} on {model['device']}",
            f"{model['users']} request{'s' * (model['users'] != 1)}",
            "stays" if model["expires"] is None else f"goes in {duration(model['expires'])}",
        )
        for model in models
    ]


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def number(count: float) -> str:
    """A count of parameters as people read it."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def duration(seconds: float) -> str:
    """Seconds as days, hours, minutes or seconds, the two largest."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])
