"""A stack in one call computes what its model computes op by op, and a row of it what the row gives alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest
import torch

import branchwork.runtime.sapling
from branchwork import kernels
from branchwork.kernels import table
from branchwork.kernels.cpu import native, product, stack
from branchwork.kernels.reference.quant import Quantized, dequantize
from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.models.layers import Rotary
from branchwork.runtime.models.registry import load_model
from branchwork.runtime.models.spec import AttentionSpec, ModelSpec, RopeSpec
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_number_of_threads_does_not_change_a_bit_of_a_step(dtype: str) -> None:
    model = load_model(SAPLING, dtype=dtype)
    pages = forked([300, 90, 120], 0)
    rows = [(0, tokens(300, 1), pages[0]), (89, [5], pages[1]), (119, [6], pages[2])]
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2, 5):  # five: more than there are cores
        torch.set_num_threads(count)
        found.append(model.forward(step(rows, [299, 300, 301]), pool(model)))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("chunk", [64, 250])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_long_prompt_cut_into_chunks_gives_the_same_bits(dtype: str, chunk: int) -> None:
    """560 tokens: as one step they go through the products in three spans."""
    model = load_model(SAPLING, dtype=dtype)
    own, ids = forked([560], 0)[0], tokens(560, 4)
    whole = model.forward(step([(0, ids, own)], [559, 3]), pool(model))[0]
    kv = pool(model)
    for start in range(0, 560, chunk):
        piece = ids[start : start + chunk]
        last = model.forward(step([(start, piece, own)], [len(piece) - 1]), kv)[0]
    assert torch.equal(last, whole)


def integers(outputs: int, inputs: int, bits: int, group: int, shifted: bool, seed: int) -> Quantized:
    generator = torch.Generator().manual_seed(seed)
    groups = (outputs, inputs // group)
    if bits == 8:
        values = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    else:
        values = torch.randint(0, 256, (outputs, inputs // 2), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(groups, generator=generator) + 0.5) * (0.002 if bits == 8 else 0.03)
    offsets = (torch.randn(groups, generator=generator) * 0.05).half() if shifted else None
    return Quantized(values, scales.half(), offsets, bits, group)


def mixed(spec: ModelSpec, plain: bool = False) -> kernels.StackParts:
    """A model whose every product has another kind of weight; plain: the same numbers as floats."""
    a, c, f = spec.attention, spec.hidden, spec.ffn
    wide = (a.heads + 2 * a.kv_heads) * a.head_dim
    norm = torch.linspace(0.5, 1.5, c)

    def weight(*given: int) -> kernels.Affine:
        whole = integers(*given)
        return kernels.Affine(dequantize(whole) if plain else whole)

    def layer(i: int) -> kernels.LayerParts:
        at = 10 * i
        return kernels.LayerParts(
            norm=norm,
            qkv=weight(wide, c, 8, 32, False, at),
            qk_norm=None,
            out=kernels.Affine(dequantize(integers(c, a.heads * a.head_dim, 8, 32, False, at + 1))),
            post_norm=norm,
            mlp=kernels.Gated(
                gate=weight(f, c, 4, c, True, at + 2),
                up=weight(f, c, 4, c, True, at + 4),
                down=weight(c, f, 4, 32, False, at + 3),
            ),
            window=0,
        )

    embed = weight(spec.vocab, c, 8, 32, True, 99).weight
    return kernels.StackParts(
        embed=embed, norm=norm, head=embed, layer=layer, angles=Rotary(spec.rope, a.head_dim, torch.device("cpu")),
        layers=2, heads=a.heads, kv_heads=a.kv_heads, dim=a.head_dim, ffn=f, eps=spec.eps, bytes=0,
    )  # fmt: skip


SPEC = ModelSpec(
    family="llama", vocab=330, hidden=64, layers=2, ffn=96, context=1024, eps=1e-5, tied=True, mlp_bias=False,
    attention=AttentionSpec(4, 2, 16, False, False, False, (0, 0)), rope=RopeSpec("default", 10000.0, {}),
    stored="float32",
)  # fmt: skip


def test_products_of_every_kind_give_what_their_floats_give() -> None:
    whole, floats = Decoder(SPEC, mixed(SPEC)), Decoder(SPEC, mixed(SPEC, plain=True))
    assert whole._stack is not None
    one = step([(0, tokens(70, 1), forked([70], 0)[0])], [69, 5])
    found, expected = whole.forward(one, pool(whole)), floats.forward(one, pool(floats))
    assert ((found - expected).norm() / expected.norm()).item() < 0.03  # inputs are rounded to 8 bits


@pytest.mark.parametrize("missing", [(stack,), (stack, product)], ids=["one call", "library"])
def test_products_of_every_kind_serve_op_by_op(
    missing: tuple[ModuleType, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Decoder(SPEC, mixed(SPEC))
    one = step([(0, tokens(70, 1), forked([70], 0)[0])], [69, 5])
    expected = whole.forward(one, pool(whole))
    with monkeypatch.context() as patch:
        for module in missing:
            patch.setattr(module, "available", False)
            patch.setattr(module, "why", "done without")
        table.implementation.cache_clear()
        plain = Decoder(SPEC, mixed(SPEC))
        found = plain.forward(one, pool(plain))
    table.implementation.cache_clear()
    assert plain._stack is None
    assert ((found - expected).norm() / expected.norm()).item() < 0.03


def test_a_row_through_integer_products_does_not_depend_on_its_batch_or_threads() -> None:
    model = Decoder(SPEC, mixed(SPEC))
    pages = forked([300, 40, 41], 0)
    rows = [(0, tokens(300, 1), pages[0]), (0, tokens(40, 2), pages[1]), (40, [9], pages[2])]
    kv = pool(model)
    model.forward(step([(0, tokens(40, 3), pages[2])], [0]), kv)
    together = model.forward(step(rows, [299, 339, 340]), kv)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    again = model.forward(step(rows, [299, 339, 340]), kv)
    torch.set_num_threads(threads)
    assert torch.equal(again, together)
    for r, row in enumerate(rows):
        assert torch.equal(model.forward(step([row], [len(row[1]) - 1]), kv)[0], together[r]), f"row {r}"


def test_a_head_that_is_the_embedding_is_held_once() -> None:
    def held(parts: kernels.StackParts) -> int:
        built = stack.stack(parts)
        assert built is not None
        return sum(part.nbytes for part in built._held)

    parts = mixed(SPEC)
    other = parts._replace(head=integers(SPEC.vocab, SPEC.hidden, 8, 32, True, 99))
    assert held(other) - held(parts) >= SPEC.vocab * SPEC.hidden


def test_odd_head_sizes_run_op_by_op() -> None:
    assert load_model(checkpoint("llama-head-dim"), dtype="float32")._stack is None  # head size 20


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
