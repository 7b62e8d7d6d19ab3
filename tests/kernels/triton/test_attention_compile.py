"""The GPU's attention compiles within the chips' limits: decode, extend, and every flag of a tile."""

from __future__ import annotations

import pytest

from branchwork.kernels import compile_all
from branchwork.kernels.triton import attention_specimens
from branchwork.kernels.triton.tuning import CHIPS

ALWAYS = ["decode 16x128 bf16", "extend 128x128 bf16"]
OURS = [specimen.name for specimen in attention_specimens.SPECIMENS]


def faults(names: list[str], target: str) -> list[str]:
    rows = [compile_all.compiled(name, target) for name in names]
    assert all(row.registers > 0 for row in rows)
    return [f"{row.kernel} on {row.target}: {row.error}" for row in rows if row.error]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_decode_and_extend_compile_within_the_limits(target: str) -> None:
    assert not faults(ALWAYS, target)


@pytest.mark.soak
@pytest.mark.parametrize("target", CHIPS)
def test_every_tile_with_every_flag_compiles_within_the_limits(target: str) -> None:
    assert not faults(OURS, target)
