"""Warming up runs every sort of step, within the budget, and leaves nothing but numbers in the scratch page."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from branchwork.runtime.execution import warm
from branchwork.runtime.execution.forward import Forward
from branchwork.runtime.execution.memory import allocate
from branchwork.runtime.execution.runner import Runner
from branchwork.runtime.models.registry import load_model, load_spec
from branchwork.runtime.sampling.sampler import Sampler
from tests.checkpoints import checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("page_size, kv", [(16, torch.float32), (1, torch.int8)])
def test_warming_touches_no_page_of_anybodys(page_size: int, kv: torch.dtype) -> None:
    model = load_model(checkpoint("llama"), dtype="float32")
    pool = allocate(model.spec, 3, page_size, kv, CPU, scratch=True)
    assert pool.scratch is not None
    warm.warm(Runner(Forward(model, pool), Sampler(model.spec.vocab)), pool.scratch, page_size, 1024, 64, 320)
    assert all(layer[3].any() and not layer[:3].any() for layer in (*pool.k, *pool.v))


@pytest.mark.parametrize("budget, rows", [(1, 1), (8, 2), (100, 64)])
def test_no_step_is_larger_than_any_that_may_be(budget: int, rows: int) -> None:
    sizes = [(len(plan.rows), sum(len(row.ids) for row in plan.rows)) for plan in warm.plans(0, 4, budget, rows)]
    assert sizes and all(count <= rows and tokens <= budget for count, tokens in sizes)


@pytest.mark.parametrize("name", ["llama-biases", "qwen2-window", "qwen3"])
def test_a_stand_in_has_the_models_sizes_and_a_layer_for_each_window(name: str) -> None:
    spec = load_spec(checkpoint(name))
    small = warm.stand_in(spec, torch.float32, CPU).spec
    assert small.attention.windows == tuple(dict.fromkeys(spec.attention.windows))
    same = replace(small, layers=spec.layers, attention=replace(small.attention, windows=spec.attention.windows))
    assert same == spec
    warm.compile_ahead(spec, torch.float32, CPU, 4, torch.float32)
