"""The table chooses the best implementation that this machine and these sizes allow, and says why not a better one."""

from __future__ import annotations

import pytest
import torch

from branchwork import kernels
from branchwork.kernels import table
from branchwork.kernels.cpu import attention, fused
from branchwork.kernels.reference.norm import rms_norm


def test_every_op_of_the_door_is_a_row_of_the_table() -> None:
    ops = {name for name in kernels.__all__ if name[0].islower()}  # the rest are types
    assert ops - {"kv_row", "report", "serves_float8"} == set(table.TABLE)


def test_a_machine_without_the_native_library_falls_back_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused, "available", False)
    monkeypatch.setattr(fused, "why", "no compiler at install")
    monkeypatch.setattr(attention, "available", False)
    monkeypatch.setattr(attention, "why", "no compiler at install")
    chosen = {choice.op: choice for choice in table.report("cpu")}
    assert chosen["paged_attention"] == ("paged_attention", "torch", (("native", "no compiler at install"),))
    assert chosen["rms_norm"].chosen == "reference"
    table.implementation.cache_clear()
    assert table.implementation("rms_norm", "cpu") is rms_norm
    table.implementation.cache_clear()


def test_head_sizes_that_the_native_kernel_cannot_take_go_to_torch() -> None:
    q = torch.rand(1, 2, 20)
    pool = torch.rand(3, 1, 1, 20)
    one = torch.ones(1, dtype=torch.int32)
    rows = torch.tensor([0, 1], dtype=torch.int32)
    out = kernels.paged_attention(q, pool, pool, one[:, None], rows, one, 1.0, 0)
    torch.testing.assert_close(out, pool[1, 0].expand(1, 2, 20))


def test_an_unknown_op_or_device_is_an_error() -> None:
    with pytest.raises(KeyError):
        table.implementation("rms_norm", "tpu")
    with pytest.raises(KeyError):
        table.implementation("fft", "cpu")
