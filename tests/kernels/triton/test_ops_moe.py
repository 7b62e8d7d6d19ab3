"""Routing and expert products of the GPU against their definitions, in the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from branchwork.kernels.reference import float8, quant
from branchwork.kernels.reference import moe as plain
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import Quantized
from branchwork.kernels.triton import moe

pytestmark = pytest.mark.interpreted

CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("size, top_k", [(8, 2), (60, 4), (1, 1), (5, 5)])
def test_tokens_go_to_their_likeliest_experts(size: int, top_k: int, renormalize: bool) -> None:
    logits = torch.randn(37, size + 3)[:, :size]
    logits[3] = logits[4] = 0.0  # equal: the first experts
    gains, experts = moe.route(logits, top_k, renormalize)
    expected_gains, expected = plain.route(logits, top_k, renormalize)
    assert torch.equal(experts, expected)
    torch.testing.assert_close(gains, expected_gains, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("block", [4, 16])
def test_every_slot_is_in_one_block_of_its_own_expert(block: int) -> None:
    for tokens, size, top_k in ((1, 4, 2), (9, 4, 2), (50, 3, 1), (7, 64, 6)):
        experts = torch.rand(tokens, size).argsort(-1)[:, :top_k].int()
        slots, owners = moe.sorted_slots(experts, size, block)
        held = slots.view(-1, block)
        assert sorted(slots[slots < experts.numel()].tolist()) == list(range(experts.numel()))
        for line, owner in zip(held, owners.tolist(), strict=True):
            own = line[line < experts.numel()].long()
            assert (experts.flatten()[own] == owner).all() and (owner >= 0) == (len(own) > 0)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    "tokens, size, top_k, channels, ffn", [(1, 4, 2, 64, 32), (11, 3, 2, 40, 24), (60, 3, 1, 32, 48)]
)
def test_expert_blocks_are_weighed_and_added(
    tokens: int, size: int, top_k: int, channels: int, ffn: int, dtype: torch.dtype
) -> None:
    x = torch.randn(tokens, channels + 8).to(dtype)[:, :channels]
    gate_up = (torch.randn(size, 2 * ffn, channels) / 8).to(dtype)
    down = (torch.randn(size, channels, ffn) / 8).to(dtype)
    gains, experts = plain.route(torch.randn(tokens, size), top_k, True)
    found = moe.expert_mlp(x, gate_up, down, gains, experts)
    exact = plain.expert_mlp(x.double(), gate_up.double(), down.double(), gains.double(), experts)
    assert found.dtype == dtype
    assert ((found - exact).abs().max() / exact.abs().max()) < CLOSE[dtype]


KINDS: dict[str, Callable[[Tensor], Quantized | Float8]] = {
    "int8": lambda weight: quant.quantize(weight, 8),
    "int8 with offsets": lambda weight: quant.quantize(weight, 8, offsets=True),
    "int4": lambda weight: quant.quantize(weight, 4, offsets=False),
    "int4 with offsets": lambda weight: quant.quantize(weight, 4),
    "e4m3": float8.quantize,
    "e4m3 rows": lambda weight: float8.quantize(weight, (1, weight.shape[1])),
    "e4m3 blocks": lambda weight: float8.quantize(weight, (16, 32)),
}


@pytest.mark.parametrize("tokens", [5, pytest.param(60, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", KINDS)
def test_expert_weights_of_bytes_are_never_rounded(kind: str, tokens: int) -> None:
    size, channels, ffn = 3, 64, 96
    blocks = [
        (KINDS[kind](torch.randn(2 * ffn, channels) / 8), KINDS[kind](torch.randn(channels, ffn) / 8))
        for _ in range(size)
    ]
    gate_up, down = moe.pack_experts(blocks, size, torch.float32)
    assert sum(part.nbytes for part in (gate_up, down)) == sum(part.nbytes for block in blocks for part in block)
    wide = [torch.stack([floats(weight) for weight in half]) for half in zip(*blocks, strict=True)]
    gains, experts = plain.route(torch.randn(tokens, size), 2, True)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(tokens, channels).to(dtype)
        found = moe.expert_mlp(x, gate_up, down, gains, experts)
        exact = plain.expert_mlp(x.double(), *wide, gains.double(), experts)
        assert found.dtype == dtype
        assert ((found - exact).abs().max() / exact.abs().max()) < CLOSE[dtype]


def test_experts_that_are_stored_in_different_ways_become_floats() -> None:
    weights = [torch.randn(64, 32), quant.quantize(torch.randn(64, 32), 8), float8.quantize(torch.randn(64, 32))]
    same, mixed = moe.pack_experts([(weights[0], weight) for weight in weights], 3, torch.bfloat16)
    assert isinstance(same, Tensor) and isinstance(mixed, Tensor)
    assert same.dtype == mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, torch.stack([floats(weight).bfloat16() for weight in weights]))


def floats(weight: Tensor | Quantized | Float8) -> Tensor:
    if isinstance(weight, Tensor):
        return weight
    return (quant.dequantize(weight) if isinstance(weight, Quantized) else float8.dequantize(weight)).double()


def test_no_tokens_go_nowhere() -> None:
    none = torch.empty(0, 2)
    assert moe.route(torch.empty(0, 4), 2, True)[0].shape == (0, 2)
    out = moe.expert_mlp(torch.empty(0, 8), torch.rand(4, 8, 8), torch.rand(4, 8, 4), none, none.int())
    assert out.shape == (0, 8)
    with pytest.raises(ValueError, match="contiguous"):
        moe.expert_mlp(torch.empty(1, 8), torch.rand(4, 8, 8).mT, torch.rand(4, 8, 4), none, none.int())
