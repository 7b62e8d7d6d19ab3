"""Free memory is what the machine and its container leave, and a page costs what the pool allocates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from branchwork.runtime.execution import memory
from branchwork.runtime.models.registry import load_spec
from tests.checkpoints import checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("page_size, dtype", [(1, torch.float32), (16, torch.bfloat16)])
def test_bytes_per_page_is_what_the_pool_takes(page_size: int, dtype: torch.dtype) -> None:
    spec = load_spec(checkpoint("qwen3"))
    pool = memory.allocate(spec, 10, page_size, dtype, CPU)
    assert sum(layer.nbytes for layer in (*pool.k, *pool.v)) == 10 * memory.bytes_per_page(spec, page_size, dtype)


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    unlimited = memory.free_memory(CPU)
    assert unlimited > 0
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.free_memory(CPU) == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(CPU) > 2000
