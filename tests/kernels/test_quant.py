"""Integer weights mean what their docstring says, join without loss, and are made with little error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from branchwork.kernels import table
from branchwork.kernels.reference.quant import Quantized, cat, check, dequantize, linear, quantize, rounded_inputs

Make = Callable[..., Quantized]


@pytest.fixture(params=table.TABLE["quantize"]["cpu"], ids=lambda entry: entry.name)
def make(request: pytest.FixtureRequest) -> Make:
    """Each implementation of `quantize`."""
    if why := table.why_missing(request.param):
        pytest.skip(why)
    return table.load(request.param)


def weights(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def error(weight: Tensor, quantized: Quantized) -> float:
    return (dequantize(quantized) - weight).square().mean().sqrt().item()


def test_eight_bits_miss_a_weight_by_half_a_step_at_most(make: Make) -> None:
    weight = weights(7, 128)
    quantized = make(weight, 8, group=64)
    step = weight.view(7, 2, 64).abs().amax(-1, keepdim=True) / 127
    assert ((dequantize(quantized) - weight).view(7, 2, 64).abs() <= step * 0.57).all()  # the scale is rounded, too


@pytest.mark.parametrize("offsets", [False, True])
def test_the_search_beats_a_scale_that_spans_the_whole_group(make: Make, offsets: bool) -> None:
    weight = weights(64, 256)
    groups = weight.view(64, 8, 32)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if offsets:
        scale = (high - low) / 15
        plain = ((groups - low) / scale).round() * scale + low
    else:
        scale = groups.abs().amax(-1, keepdim=True) / 7
        plain = (groups / scale).round() * scale
    by_range = (plain - groups).square().mean().sqrt().item()
    assert error(weight, make(weight, 4, offsets=offsets)) < 0.93 * by_range


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits, offsets, group", [(8, False, 32), (8, True, 64), (4, True, 32), (4, False, 96)])
def test_implementations_agree_on_nearly_every_number(
    make: Make, bits: int, offsets: bool, group: int, dtype: torch.dtype
) -> None:
    weight = weights(40, 192).to(dtype)
    weight[0, :32] *= 1e-7  # scales that are subnormal as float16
    found, expected = make(weight, bits, group, offsets), quantize(weight, bits, group, offsets)
    assert error(weight.float(), found) < 1.001 * error(weight.float(), expected)
    assert ((dequantize(found) - dequantize(expected)).abs() > 1e-4).float().mean() < 0.02


def test_constant_and_zero_groups_come_back(make: Make) -> None:
    weight = torch.cat((torch.zeros(1, 32), torch.full((1, 32), 0.25), torch.full((1, 32), -3.0)))
    for offsets in (False, True):
        for bits in (4, 8):
            torch.testing.assert_close(dequantize(make(weight, bits, 32, offsets)), weight, rtol=1e-3, atol=0)


def test_joined_weights_stay_the_same_numbers() -> None:
    parts = [
        quantize(weights(3, 192, 1), 8, 32),
        quantize(weights(2, 192, 2), 4, 64, offsets=True),
        quantize(weights(4, 192, 3), 4, 96, offsets=False),
    ]
    for chosen in (parts, parts[1:], parts[2:], parts[:1]):
        joined = cat(chosen)
        check(joined)
        torch.testing.assert_close(dequantize(joined), torch.cat([dequantize(part) for part in chosen]))
    assert cat(parts[1:]).bits == 4


def test_inputs_are_rounded_by_block_to_the_nearest_even_integer() -> None:
    x = torch.zeros(1, 64)
    x[0, :4] = torch.tensor([127.0, 2.5, 3.5, -2.5])
    numbers, scales = rounded_inputs(x)
    assert numbers[0, 0, :4].tolist() == [127, 2, 4, -2]
    assert scales.flatten().tolist() == [1, 0]
    assert torch.isnan(rounded_inputs(torch.full((1, 32), torch.inf))[1]).all()


def test_a_product_of_integers_is_near_the_product_it_stands_for() -> None:
    weight, x = weights(48, 256), weights(5, 256, 9)
    exact = x @ weight.T
    found = linear(x, quantize(weight, 8), None)
    assert ((found - exact).norm() / exact.norm()).item() < 0.01


def test_parts_that_do_not_fit_are_errors(make: Make) -> None:
    with pytest.raises(ValueError, match="32"):
        make(weights(2, 48), 8)
    with pytest.raises(ValueError, match="bits"):
        make(weights(2, 64), 5)
    good = quantize(weights(2, 64), 4)
    for wrong in (
        good._replace(group=48),
        good._replace(bits=8),
        good._replace(scales=good.scales[:, :1]),
        good._replace(scales=good.scales.float()),
    ):
        with pytest.raises(ValueError):
            check(wrong)
