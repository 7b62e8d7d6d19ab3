"""Free memory is what the machine and its container leave, and a page costs what the pool allocates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from branchwork.runtime.execution import memory
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.registry import load_spec
from tests.checkpoints import checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("page_size, dtype", [(1, torch.float32), (16, torch.bfloat16), (4, torch.int8)])
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


def test_the_tightest_of_nested_groups_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUP", own)
    for name, limit in (("", "max"), ("outer", "7000"), ("outer/inner", "9000")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "memory.current").write_text("3000\n")
        (tmp_path / name / "memory.max").write_text(f"{limit}\n")
    assert memory.free_memory(CPU) == 4000


def test_a_file_that_was_read_is_not_memory_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 1500\nactive_file 500\n")
    assert memory.free_memory(CPU) == 3500


def test_limits_of_the_first_version_of_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("3000\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("5000\n")
    assert memory.free_memory(CPU) == 2000


def test_a_kv_type_that_attention_cannot_read_is_refused() -> None:
    assert memory.kv_dtype("auto", torch.bfloat16, CPU) == torch.bfloat16
    assert memory.kv_dtype("int8", torch.float32, CPU) == torch.int8
    with pytest.raises(LoadError, match="kv_dtype=float32 does not go with a model that computes in bfloat16"):
        memory.kv_dtype("float32", torch.bfloat16, CPU)


def test_a_pool_that_cannot_be_had_is_made_smaller_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec(checkpoint("qwen3"))
    free = 101 * memory.bytes_per_page(spec, 4, torch.float32)
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    pool, note = memory.allocate_most(spec, 150, 10, 4, torch.float32, CPU)
    assert 90 <= pool.pages <= 101 and note.startswith(f"KV cache: {pool.pages} pages of 4 tokens instead of 150")
    pool, note = memory.allocate_most(spec, 101, 10, 4, torch.float32, CPU)
    assert (pool.pages, note) == (101, "")
    with pytest.raises(LoadError, match="102 KV pages"):
        memory.allocate_most(spec, 150, 102, 4, torch.float32, CPU)


def test_a_scratch_page_is_one_more_behind_the_others() -> None:
    spec = load_spec(checkpoint("qwen3"))
    pool = memory.allocate(spec, 10, 4, torch.float32, CPU, scratch=True)
    assert pool.pages == pool.scratch == 10 and len(pool.k[0]) == 11
    assert memory.allocate(spec, 10, 4, torch.float32, CPU).scratch is None


def test_working_memory_holds_what_a_step_allocates() -> None:
    spec = load_spec(checkpoint("llama"))
    small, large = (memory.working_memory(spec, torch.bfloat16, budget, 8) for budget in (1024, 2048))
    a = spec.attention
    kept = 2 * spec.hidden + (a.heads + 2 * a.kv_heads) * a.head_dim + a.heads * a.head_dim
    assert large - small >= 1024 * kept * 2
    more = memory.working_memory(spec, torch.bfloat16, 1024, 16)
    assert more - small >= 8 * spec.vocab * (4 + 2)
    assert memory.working_memory(spec, torch.bfloat16, 1024, 8, graphs=True) - small == memory.graph_memory(spec, 8)


def test_e4m3_keys_and_values_are_for_gpus() -> None:
    assert memory.kv_dtype("float8", torch.bfloat16, torch.device("cuda")) == torch.float8_e4m3fn
    with pytest.raises(LoadError, match="kv_dtype=float8 is for GPUs; on a CPU give kv_dtype=int8"):
        memory.kv_dtype("float8", torch.bfloat16, CPU)
