"""Packed experts give what their definition gives, and a token what it gives alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from branchwork import kernels
from branchwork.kernels import table
from branchwork.kernels.cpu import moe, native
from branchwork.kernels.reference import float8, quant
from branchwork.kernels.reference import moe as plain

CPU = torch.device("cpu")
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
COUNT, CHANNELS, FFN = 9, 64, 96


def blocks(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(3)

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=draw) / shape[1] ** 0.5).to(dtype)

    return [(weight(2 * FFN, CHANNELS), weight(CHANNELS, FFN)) for _ in range(COUNT)]


def routed(tokens: int, dtype: torch.dtype, top_k: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, gains and experts; no token goes to the last expert."""
    torch.manual_seed(tokens)
    logits = torch.randn(tokens, COUNT)
    logits[:, -1] = -torch.inf
    return torch.randn(tokens, CHANNELS).to(dtype), *kernels.route(logits, top_k, True)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_packed_experts_give_what_the_definition_gives(tokens: int, dtype: torch.dtype) -> None:
    x, gains, experts = routed(tokens, dtype)
    packed = kernels.pack_experts(blocks(dtype), COUNT, dtype, CPU)
    stacked = [torch.stack(weights) for weights in zip(*blocks(dtype), strict=True)]
    exact = plain.expert_mlp(x.double(), *(part.double() for part in stacked), gains.double(), experts)
    for weights in (packed, plain.pack_experts(blocks(dtype), COUNT, dtype)):
        found = kernels.expert_mlp(x, *weights, gains, experts)
        assert found.dtype == dtype
        assert ((found - exact).abs().max() / exact.abs().max()).item() < CLOSE[dtype]


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_experts_are_multiplied_as_they_are(bits: int) -> None:
    small = [(quant.quantize(first, bits), quant.quantize(second, bits)) for first, second in blocks(torch.float32)]
    x, gains, experts = routed(30, torch.float32)
    gate_up, down = kernels.pack_experts(small, COUNT, torch.float32, CPU)
    if native.available:
        held = sum(part.nbytes for weights in (gate_up, down) for part in weights)
        assert held < COUNT * 3 * CHANNELS * FFN * (1.2 if bits == 8 else 0.7)
    found = kernels.expert_mlp(x, gate_up, down, gains, experts)
    expected = plain.expert_mlp(x, *plain.pack_experts(small, COUNT, torch.float32), gains, experts)
    assert ((found - expected).norm() / expected.norm()).item() < 0.02  # without the library inputs are not rounded


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_does_not_depend_on_its_batch(dtype: torch.dtype, threads: int) -> None:
    """To the bit, the choice of experts included."""
    x, _, _ = routed(50, dtype)
    router = kernels.pack_linear(torch.randn(COUNT, CHANNELS).to(dtype))
    weights = kernels.pack_experts(blocks(dtype), COUNT, dtype, CPU)

    def mixed(rows: Tensor) -> Tensor:
        return kernels.expert_mlp(rows, *weights, *kernels.route(kernels.linear(rows, router), 3, True))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = mixed(x)
        for first, last in ((0, 1), (7, 8), (3, 20), (17, 50), (49, 50)):
            assert torch.equal(mixed(x[first:last]), together[first:last]), f"tokens {first} to {last}"
    finally:
        torch.set_num_threads(before)


def test_no_tokens_go_nowhere() -> None:
    x, gains, experts = routed(0, torch.float32)
    packed = kernels.pack_experts(blocks(torch.float32), COUNT, torch.float32, CPU)
    assert moe.expert_mlp(x, *packed, gains, experts).shape == (0, CHANNELS)


@pytest.mark.parametrize("entry", table.TABLE["pack_linear"]["cpu"][:-1], ids=lambda entry: entry.name)
def test_weights_of_e4m3_become_floats_on_a_cpu(entry: table.Entry) -> None:
    if why := table.why_missing(entry):
        pytest.skip(why)
    weight, x = float8.quantize(torch.randn(40, 64), (1, 64)), torch.randn(5, 64)
    packed = table.load(entry)(weight, torch.float32)
    multiply = table.load(next(other for other in table.TABLE["linear"]["cpu"] if other.name == entry.name))
    torch.testing.assert_close(multiply(x, packed, None), x @ float8.dequantize(weight).T, rtol=1e-5, atol=1e-4)
