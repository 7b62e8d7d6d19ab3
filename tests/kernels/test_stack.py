"""A stack in one call computes what its model computes op by op, and a row of it what the row gives alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import branchwork.runtime.sapling
from branchwork import kernels
from branchwork.kernels import table
from branchwork.kernels.cpu import native, stack
from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.models.registry import load_model
from branchwork.runtime.models.step import Step
from tests.checkpoints import CHECKPOINTS, checkpoint

pytestmark = pytest.mark.skipif(not stack.available, reason=stack.why)
SAPLING = Path(branchwork.runtime.sapling.__file__).parent
PAGES = 600


def op_by_op(directory: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    with monkeypatch.context() as patch:
        patch.setattr(stack, "available", False)
        patch.setattr(stack, "why", "compared with it")
        table.implementation.cache_clear()
        model = load_model(directory, dtype=dtype)
        table.implementation.cache_clear()
    assert model._stack is None
    return model


def pool(model: Decoder, size: int = 1, dtype: torch.dtype | None = None) -> KVPool:
    a = model.spec.attention
    return KVPool(model.spec.layers, PAGES, a.kv_heads, size, a.head_dim, dtype or model.dtype, model.device)


def step(rows: list[tuple[int, list[int], list[int]]], places: list[int]) -> Step:
    """rows: (position of the first id, ids, a page for each position up to the last id)."""
    cuts = [0, *(len(ids) for _, ids, _ in rows)]
    positions = [start + i for start, ids, _ in rows for i in range(len(ids))]
    pages = torch.full((len(rows), max(len(pages) for _, _, pages in rows)), 2**30, dtype=torch.int32)
    for r, (_, _, own) in enumerate(rows):
        pages[r, : len(own)] = torch.tensor(own)
    return Step(
        ids=torch.tensor([i for _, ids, _ in rows for i in ids]),
        positions=torch.tensor(positions),
        cu_rows=torch.tensor(cuts).cumsum(0).int(),
        kv_len=torch.tensor([start + len(ids) for start, ids, _ in rows]).int(),
        page_table=pages,
        slots=torch.tensor([own[start + i] for start, ids, own in rows for i in range(len(ids))]),
        logits_index=torch.tensor(places),
    )


def forked(lengths: list[int], shared: int) -> list[list[int]]:
    """Pages of rows that have their first `shared` positions in common."""
    stock = iter(torch.randperm(PAGES, generator=torch.Generator().manual_seed(1)).tolist())
    first = [next(stock) for _ in range(shared)]
    return [[*first[:length], *(next(stock) for _ in range(length - shared))] for length in lengths]


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_stack_equals_the_model_op_by_op(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, plain = load_model(checkpoint(name), dtype="float32"), op_by_op(checkpoint(name), "float32", monkeypatch)
    if fused._stack is None:
        pytest.skip("the library does not take this head size")
    pages = forked([70, 21, 3], 0)
    rows = [(0, tokens(len(own), seed), own) for seed, own in enumerate(pages)]
    one = step(rows, [69, 93, 0, 69])
    if native.vector_width(width) != width:
        native.vector_width()
        pytest.skip(f"no vectors of {width} floats here")
    found = fused.forward(one, pool(fused))
    native.vector_width()
    expected = plain.forward(one, pool(plain))
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-4


@pytest.mark.parametrize("size", [1, 16])
def test_a_stack_keeps_int8_keys_and_values_as_the_model_op_by_op_does(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, plain = load_model(SAPLING, dtype="float32"), op_by_op(SAPLING, "float32", monkeypatch)
    kept, expected = pool(fused, size, torch.int8), pool(plain, size, torch.int8)
    chain = tokens(90, 1)
    one = step([(0, chain, list(range(90)))], list(range(90)))
    one = dataclasses.replace(one, page_table=torch.arange(-(-90 // size), dtype=torch.int32)[None])
    found, logits = fused.forward(one, kept), plain.forward(one, expected)
    assert ((found - logits).abs().max() / logits.abs().max()).item() < 0.02
    row = expected.k[0].shape[-1] - 8
    for mine, other in zip((*kept.k, *kept.v), (*expected.k, *expected.v), strict=True):
        apart = (mine[..., :row].int() - other[..., :row].int()).abs()  # deeper layers see other roundings
        assert apart.max() <= 8 and apart.float().mean() < 0.2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_share_pages_get_to_the_bit_what_each_gets_alone(dtype: str) -> None:
    """Forks of different lengths, shared up to 0, 40, 64, 100 and 150 positions, mixed, beside a prefill row."""
    model = load_model(SAPLING, dtype=dtype)
    kv = pool(model)
    generator = torch.Generator().manual_seed(5)
    for layer in (*kv.k, *kv.v):
        layer.copy_(torch.randn(layer.shape, generator=generator))
    trunk, *others = forked([150, 40, 1, 90], 0)
    spare = iter(sorted(set(range(PAGES)) - set(trunk) - {page for own in others for page in own}))
    rows = [(len(own) - 1, [7], own) for own in others]
    for cut, length in ((150, 151), (150, 160), (100, 150), (64, 120), (100, 130), (40, 41), (64, 96), (150, 155)):
        rows.append((length - 1, [11 + cut], [*trunk[:cut], *(next(spare) for _ in range(length - cut))]))
    rows.insert(4, (20, tokens(20, 3), others[0]))
    del rows[0]  # the prefill row's pages are its own
    starts = torch.tensor([0, *(len(ids) for _, ids, _ in rows)]).cumsum(0).tolist()
    together = model.forward(step(rows, [end - 1 for end in starts[1:]]), kv)
    for r, row in enumerate(rows):
        assert torch.equal(model.forward(step([row], [len(row[1]) - 1]), kv)[0], together[r]), f"row {r}"


def test_large_models_and_odd_sizes_run_op_by_op() -> None:
    assert load_model(checkpoint("llama-head-dim"), dtype="float32")._stack is None  # head size 20
    parts = kernels.StackParts(
        embed=torch.zeros(8, 16),
        norm=torch.zeros(16),
        head=torch.zeros(8, 16),
        layer=lambda i: pytest.fail("a stack that is not made reads no layer"),
        angles=lambda positions: (positions, positions),
        layers=1,
        heads=2,
        kv_heads=1,
        dim=8,
        ffn=16,
        eps=1e-5,
        bytes=1 << 30,
    )
    assert kernels.stack(parts) is None


def test_ids_pages_and_places_out_of_range_are_errors() -> None:
    model = load_model(checkpoint("llama"), dtype="float32")
    if model._stack is None:
        pytest.skip("runs op by op here")
    for rows, places in (
        ([(0, [10**6], [1])], [0]),
        ([(0, [5], [PAGES])], [0]),
        ([(0, [5], [1])], [1]),
    ):
        with pytest.raises(IndexError):
            model.forward(step(rows, places), pool(model))
