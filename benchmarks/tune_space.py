"""What the tuner may try for each op: block sizes, warps, stages.

Knows: parameters by op, what a chip's work-group may be. Must not know: kernels, time, files.
No row here changes what an op promises: a row's result may depend on its chip's launch parameters, never on its batch.
So the heights of attention's tiles, and the counts at which products go from few to many rows, are not parameters; and
SPLITS is one number for all counts of few rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from branchwork.kernels.triton import tuning

Space = Mapping[str, tuple[int, ...]]

_FEW = {"BLOCK_N": (32, 64, 128), "BLOCK_K": (64, 128), "num_warps": (4, 8), "num_stages": (1, 2, 3, 4)}
_MANY = {"BLOCK_M": (64, 128), "BLOCK_N": (64, 128, 256), "BLOCK_K": (32, 64)}
_MANY |= {"num_warps": (4, 8), "num_stages": (1, 2, 3, 4)}
_SPLIT = {**_FEW, "SPLITS": (2, 4, 8)}
_FLAT = {"BLOCK": (512, 1024, 2048, 4096), "num_warps": (2, 4, 8)}
_HEADS = {"HEADS": (4, 8, 16), "num_warps": (2, 4, 8)}
COUNTS = ("SPLITS",)  # parameters that say how many programs there are: what one of them takes does not depend on them
SPACES: dict[str, Space] = {
    "merge": _HEADS,
    "norm.narrow": {"TILE": (512, 1024, 2048, 4096), "num_warps": (2, 4, 8)},
    "norm.wide": {"TILE": (1024, 4096, 8192), "num_warps": (4, 8, 16)},
    "gate": _FLAT,
    "embedding": _FLAT,
    "rope": _HEADS,
    "store": _HEADS,
    "mask": {"BLOCK": (1024, 2048, 4096, 8192), "num_warps": (4, 8, 16)},
    "penalise": {"BLOCK": (128, 256, 512, 1024), "num_warps": (2, 4, 8)},
    "sample.head": {"TILE": (1024, 2048, 4096, 8192), "num_warps": (8, 16, 32)},
    "sample.draw": {"TILE": (128, 256, 512, 1024), "num_warps": (4, 8)},
    "bytes.few": _SPLIT,
    "bytes.many": _MANY,
    "int4.few": _SPLIT,
    "int4.many": _MANY,
    "sum_splits": _FLAT,
    "route": {"TILE": (256, 512, 1024, 2048), "num_warps": (1, 2, 4, 8)},
    "experts.few": _FEW,
    "experts.many": _MANY,
    "experts.bytes few": _FEW,
    "experts.bytes many": _MANY,
}


def space(op: str) -> Space:
    """What may be tried for an op with a row in the files. Raises KeyError for others."""
    if op in SPACES:
        return SPACES[op]
    height, _, width = op.removeprefix("attend.").partition("x")
    if not op.startswith("attend.") or not height.isdigit():
        raise KeyError(op)
    blocks = (16, 32) if width.endswith("f") else (16, 32, 64) if width == "256" else (32, 64, 128)
    return {"BLOCK_N": blocks, "num_warps": (4, 8), "num_stages": (1, 2, 3, 4)}


def candidates(op: str, chip: str) -> list[tuning.Row]:
    """Whole rows, the one in use first: what the space does not name is as it is.

    A work-group has 1024 threads; AMD's compiler holds a stage in registers, so that more than two of them spill.
    """
    now = tuning.rows(chip)[op]
    names = space(op)
    threads, stages = (1024 // 64 if chip.startswith("gfx9") else 1024 // 32), 2 if chip.startswith("gfx") else 9
    rows = [{**now, **dict(zip(names, values))} for values in product(*names.values())]
    fit = (row for row in rows if row["num_warps"] <= threads and row.get("num_stages", 1) <= stages)
    return [now, *(row for row in fit if row != now)]
