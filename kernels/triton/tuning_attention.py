"""Launch parameters of the attention kernels, by chip: the part of tuning's table that speaks of tiles.

Knows: chips by name. Must not know: kernels, models. No row has been timed on a device yet: registers, spills and
shared memory filtered them, and the first thing to do with a device is to order them by time.

The key of "attend" is a tile's height and the padded width of a head vector, at least 128; "f" for float32.
"""

from __future__ import annotations

Row = dict[str, int]


def _row(block: int, warps: int, stages: int) -> Row:
    return {"BLOCK_N": block, "num_warps": warps, "num_stages": stages}


ATTENTION: dict[str, dict[str, Row]] = {
    "attend.16x128": {
        "default": _row(64, 4, 2),
        "sm_80": _row(64, 4, 3),
        "sm_90": _row(64, 4, 3),
        "sm_100": _row(64, 4, 3),
        "gfx1100": _row(16, 8, 1),
    },
    "attend.64x128": {
        "default": _row(32, 8, 1),
        "sm_80": _row(64, 8, 2),
        "sm_90": _row(64, 8, 2),
        "sm_100": _row(64, 8, 2),
        "gfx1100": _row(16, 16, 1),
    },
    "attend.128x128": {
        "default": _row(32, 8, 1),
        "sm_80": _row(32, 8, 2),
        "sm_90": _row(64, 8, 2),
        "sm_100": _row(64, 8, 2),
        "gfx1100": _row(16, 16, 1),
    },
    "attend.16x256": {"default": _row(32, 4, 1), "gfx1100": _row(16, 8, 1)},
    "attend.64x256": {"default": _row(32, 8, 1), "sm_100": _row(32, 4, 1), "gfx1100": _row(16, 16, 1)},
    "attend.16x128f": {"default": _row(32, 8, 1), "gfx1100": _row(16, 16, 1)},
    "attend.32x128f": {"default": _row(16, 8, 1), "gfx1100": _row(16, 16, 1)},
    "attend.16x256f": {"default": _row(16, 8, 1)},
    "attend.32x256f": {"default": _row(16, 8, 1)},
    "merge": {"default": {"HEADS": 8, "num_warps": 4, "num_stages": 1}},
}


def heights(key: str) -> tuple[int, ...]:
    """Heights of the tiles that have rows for a width such as "128" or "128f", ascending."""
    pairs = (op.removeprefix("attend.").split("x") for op in ATTENTION if op.startswith("attend."))
    return tuple(sorted(int(height) for height, width in pairs if width == key))
