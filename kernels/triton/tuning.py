"""Launch parameters of every kernel by chip: block sizes, warps, stages. The one table that a tuner writes.

Knows: op names, chip names. Must not know: tensors, kernels' code.
Chosen by what compiles within the chips' limits of registers and shared memory; no row was timed on a device yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from branchwork.kernels.triton.tuning_attention import ATTENTION

CHIPS = ("sm_80", "sm_90", "sm_100", "gfx90a", "gfx942", "gfx950", "gfx1100")


class Specimen(NamedTuple):
    """One compiled shape of a kernel, for the compile check.

    signature: a type for each argument that is no constexpr ("*bf16", "fp32", "i32"; ":16" for multiples of 16).
    spills: chips where it is known to run out of registers: slower there, not refused.
    rows: what to launch it with: (op, key) of this table, or a mapping of chips (or "default") to parameters.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    rows: tuple[str, str] | Mapping[str, Mapping[str, Any]]
    spills: tuple[str, ...] = ()


Row = dict[str, int]

# "default" is a whole row and fits the smallest chips (64 KiB of shared memory); a chip's row holds what differs
TABLE: dict[str, dict[str, Row]] = {
    **ATTENTION,
    "norm.narrow": {"default": {"TILE": 1024, "num_warps": 4}},
    "norm.wide": {"default": {"TILE": 1024, "num_warps": 8}},
    "gate": {"default": {"BLOCK": 1024, "num_warps": 4}},
    "embedding": {"default": {"BLOCK": 2048, "num_warps": 4}},
    "rope": {"default": {"HEADS": 8, "num_warps": 4}},
    "store": {"default": {"HEADS": 8, "num_warps": 4}},
    "mask": {"default": {"BLOCK": 4096, "num_warps": 8}},
    "penalise": {"default": {"BLOCK": 256, "num_warps": 4}},
    "sample.head": {
        "default": {"TILE": 4096, "num_warps": 8},
        "sm_80": {"num_warps": 16},
        "sm_90": {"num_warps": 16},
        "sm_100": {"num_warps": 16},
        "gfx1100": {"num_warps": 16},
    },
    "sample.draw": {"default": {"TILE": 256, "num_warps": 4}, "sm_100": {"num_warps": 8}},
    # few rows: narrow tiles and K split over programs, so that every unit reads weights
    "bytes.few": {
        "default": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "SPLITS": 4, "num_warps": 4, "num_stages": 3},
        "sm_80": {"num_stages": 4},
        "sm_90": {"num_stages": 4},
        "sm_100": {"num_stages": 4},
        "gfx90a": {"num_stages": 2},
        "gfx942": {"num_stages": 2},
        "gfx1100": {"num_stages": 1},
    },
    "bytes.many": {
        "default": {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "SPLITS": 1, "num_warps": 8, "num_stages": 2},
        "sm_80": {"num_stages": 3},
        "sm_90": {"num_stages": 3},
        "sm_100": {"num_stages": 3},
        "gfx1100": {"BLOCK_N": 64, "num_stages": 1},
    },
    "int4.few": {
        "default": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "SPLITS": 4, "num_warps": 4, "num_stages": 3},
        "sm_80": {"num_stages": 4},
        "sm_90": {"num_stages": 4},
        "sm_100": {"num_stages": 4},
        "gfx90a": {"num_stages": 2},
        "gfx942": {"num_stages": 2},
        "gfx1100": {"num_stages": 1},
    },
    "int4.many": {
        "default": {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "SPLITS": 1, "num_warps": 8, "num_stages": 2},
        "sm_80": {"num_stages": 3},
        "sm_90": {"num_stages": 3},
        "sm_100": {"BLOCK_N": 64, "num_stages": 3},
        "gfx1100": {"BLOCK_N": 64, "num_stages": 1},
    },
    "sum_splits": {"default": {"BLOCK": 1024, "num_warps": 4}},
    "route": {"default": {"TILE": 1024, "num_warps": 4}},
    "experts.few": {
        "default": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        "gfx90a": {"num_stages": 2},
        "gfx942": {"num_stages": 2},
        "gfx1100": {"num_stages": 1},
    },
    "experts.many": {
        "default": {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2},
        "sm_80": {"num_stages": 3},
        "sm_90": {"BLOCK_M": 128, "num_stages": 3},
        "sm_100": {"BLOCK_M": 128, "num_stages": 3},
        "gfx1100": {"BLOCK_N": 64, "num_stages": 1},
    },
    # a step's sums stand beside the whole sums until they are scaled: half the rows of floats
    "experts.bytes few": {
        "default": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        "gfx90a": {"num_stages": 2},
        "gfx942": {"num_stages": 2},
        "gfx1100": {"num_stages": 1},
    },
    "experts.bytes many": {
        "default": {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2},
        "sm_80": {"num_stages": 3},
        "sm_90": {"num_stages": 3},
        "sm_100": {"BLOCK_N": 64, "num_stages": 3},
        "gfx1100": {"BLOCK_N": 64, "num_stages": 1},
    },
}


def launch(op: str, chip: str, key: str | None = None) -> dict[str, Any]:
    """Parameters to launch `op` with on a chip ("sm_90", "gfx942", ...; unknown ones get the default row), a new dict.

    key: which row of an op that has several, such as "few" and "many" rows. Raises KeyError for an unknown op or key.
    """
    rows = TABLE[f"{op}.{key}" if key else op]
    return {**rows["default"], **rows.get(chip, {}), "enable_fp_fusion": True}
