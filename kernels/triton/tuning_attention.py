"""Launch parameters of the attention kernels, by chip: chosen by what compiles within each chip's limits.

Knows: chips by name. Must not know: kernels, models. No row has been timed on a device yet: registers, spills and
shared memory filtered them, and the first thing to do with a device is to order them by time.

ATTENTION[op][chip][key]; a chip's missing keys are the default's. The key of "attend" is a tile's height and the bytes
of a head vector of q, padded to a power of two and at least 256.
"""

from __future__ import annotations

Row = dict[str, int]


def _row(block: int, warps: int, stages: int) -> Row:
    return {"BLOCK_N": block, "num_warps": warps, "num_stages": stages}


ATTENTION: dict[str, dict[str, dict[str, Row]]] = {
    "attend": {
        "default": {
            "16x256": _row(64, 4, 2),
            "64x256": _row(64, 4, 2),
            "128x256": _row(64, 8, 2),
            "16x512": _row(32, 4, 2),
            "64x512": _row(32, 8, 1),
            "16x1024": _row(16, 4, 1),
            "64x1024": _row(16, 8, 1),
        },
    },
    "merge": {"default": {"": {"HEADS": 8, "num_warps": 4, "num_stages": 1}}},
}


def launch(op: str, chip: str, key: str = "") -> Row:
    """The parameters of an op on a chip such as sm_90 or gfx942; unknown chips get the default's."""
    rows = ATTENTION[op]
    return rows.get(chip, {}).get(key) or rows["default"][key]


def heights(head_bytes: int) -> tuple[int, ...]:
    """Heights of the tiles for head vectors of q of 256, 512 or 1024 bytes, ascending."""
    keys = (key.split("x") for key in ATTENTION["attend"]["default"])
    return tuple(sorted(int(height) for height, size in keys if int(size) == head_bytes))
