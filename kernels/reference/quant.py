"""Weights as small integers in groups: what they mean, how they are made, and products with them: the definition.

Knows: torch. Must not know: file formats, models, hardware.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 32  # inputs that a row's quantization scales together; every group is a multiple of it


class Quantized(NamedTuple):
    """A weight [N, K]; group g of an output covers inputs [g * group, (g + 1) * group).

    bits 8: values int8 [N, K], w = scale * value (+ offset). bits 4: values uint8 [N, K / 2], input 2i in the low and
    2i + 1 in the high four bits of byte i; w = scale * (nibble - 8), or scale * nibble + offset where there are any.
    scales, offsets: float16 [N, K / group]. group is a multiple of BLOCK and divides K.
    """

    values: Tensor
    scales: Tensor
    offsets: Tensor | None
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.values.shape[0], self.values.shape[1] * (8 // self.bits)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.values, self.scales, self.offsets) if part is not None)


def dequantize(weight: Quantized, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [N, K] itself, computed in float32."""
    outputs, inputs = weight.shape
    numbers = _integers(weight).float().view(outputs, inputs // weight.group, weight.group)
    if weight.bits == 4 and weight.offsets is None:
        numbers = numbers - 8
    numbers = numbers * weight.scales.float()[..., None]
    if weight.offsets is not None:
        numbers = numbers + weight.offsets.float()[..., None]
    return numbers.view(outputs, inputs).to(dtype)


def check(weight: Quantized) -> None:
    """Raises ValueError where a Quantized is not what its docstring says."""
    outputs, inputs = weight.shape
    values, group = weight.values, weight.group
    if weight.bits not in (4, 8) or values.dtype != (torch.int8 if weight.bits == 8 else torch.uint8):
        raise ValueError(f"int8 values of 8 bits or uint8 values of 4 are needed, got {values.dtype} of {weight.bits}")
    if group < BLOCK or group % BLOCK or inputs % group:
        raise ValueError(f"a group is a multiple of {BLOCK} that divides the {inputs} inputs, not {group}")
    for part in (weight.scales, weight.offsets):
        if part is not None and (part.shape != (outputs, inputs // group) or part.dtype != torch.float16):
            shape = (outputs, inputs // group)
            raise ValueError(f"float16 {shape} is needed for each group, got {part.dtype} {tuple(part.shape)}")


def rounded_inputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] as integers -127 to 127 [T, K / BLOCK, BLOCK] and their scales [T, K / BLOCK, 1], both float32.

    BLOCK inputs of a row share absmax / 127; halves go to the even neighbour. Not finite inputs give a scale of NaN.
    """
    blocks = x.float().reshape(x.shape[0], -1, BLOCK)
    top = blocks.abs().amax(-1, keepdim=True)
    finite = (blocks - blocks).sum(-1, keepdim=True)
    inverse = torch.full_like(top, 127) / top  # torch takes 127 / top as 127 times a rounded reciprocal
    numbers = torch.where(top < 1e-30, torch.zeros_like(blocks), blocks * inverse)
    return numbers.round(), top / 127 + finite


def linear(x: Tensor, weight: Quantized, bias: Tensor | None) -> Tensor:
    """x [T, K], rounded to integers, times the weight transposed, plus bias [N]. Returns [T, N] of x's dtype.

    The definition of such a product, up to the order of its float32 sums.
    """
    numbers, scales = rounded_inputs(x)
    out = (numbers * scales).view(x.shape) @ dequantize(weight).T
    return (out if bias is None else out + bias.float()).to(x.dtype)


def rows(weight: Quantized, ids: Tensor) -> Quantized:
    """Rows of the weight at ids int64 [T], as a weight [T, K]."""
    values, scales, offsets = (
        None if part is None else part.index_select(0, ids) for part in (weight.values, weight.scales, weight.offsets)
    )
    assert values is not None and scales is not None
    return Quantized(values, scales, offsets, weight.bits, weight.group)


def cat(parts: Sequence[Quantized]) -> Quantized:
    """Weights with the same K below each other. Where they differ in bits, groups or offsets all become what holds
    every one of them exactly: 8 bits, the largest group that divides each, offsets."""
    group = math.gcd(*(part.group for part in parts))
    bits = max(part.bits for part in parts)
    shifted = any(part.offsets is not None for part in parts)
    parts = [_widened(part, bits, group, shifted) for part in parts]
    offsets = [part.offsets for part in parts if part.offsets is not None]
    return Quantized(
        torch.cat([part.values for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(offsets) if offsets else None,
        bits,
        group,
    )


def _widened(part: Quantized, bits: int, group: int, shifted: bool) -> Quantized:
    """The same weight with smaller groups, with 8 bits or with offsets."""
    scales = part.scales.repeat_interleave(part.group // group, dim=1)
    offsets = None if part.offsets is None else part.offsets.repeat_interleave(part.group // group, dim=1)
    values = part.values
    if bits > part.bits:
        values = (_integers(part) - (8 if part.offsets is None else 0)).contiguous()
    if shifted and offsets is None:
        offsets = torch.zeros_like(scales) if bits == 8 else scales * -8
    return Quantized(values, scales, offsets, bits, group)


def _integers(weight: Quantized) -> Tensor:
    """int8 [N, K]: the stored integers, 0 to 15 for four bits."""
    if weight.bits == 8:
        return weight.values
    low, high = weight.values & 15, weight.values >> 4
    return torch.stack((low, high), dim=-1).view(weight.shape).to(torch.int8)


_AT_ONCE = {"cpu": 1 << 18}  # numbers that are quantized at a time: what a core's caches hold, elsewhere 2**24


def quantize(weight: Tensor, bits: int, group: int = BLOCK, offsets: bool | None = None) -> Quantized:
    """weight [N, K], of any float type, as integers in groups of K; offsets: None for what is best: only with 4 bits.

    8 bits: rounded, with absmax / 127 for a scale. 4 bits: scale and offset of each group are searched for the least
    squared error, a grid of ranges first and then least squares for the numbers the best range gives.
    Raises ValueError for other bits and where group does not fit K.
    """
    shifted = bits == 4 if offsets is None else offsets
    outputs, inputs = weight.shape
    if bits not in (4, 8) or group < BLOCK or group % BLOCK or inputs % group:
        raise ValueError(
            f"4 or 8 bits and a group, a multiple of {BLOCK} that divides {inputs}, not {bits} and {group}"
        )
    step = max(1, _AT_ONCE.get(weight.device.type, 1 << 24) // inputs)
    parts = [_quantized(weight[n : n + step].float(), bits, group, shifted) for n in range(0, outputs, step)]
    values, scales, shifts = (torch.cat([part[i] for part in parts]) for i in range(3))
    return Quantized(values, scales, shifts if shifted else None, bits, group)


def fits(weight: Tensor, bits: int, group: int, offsets: bool | None) -> bool:
    """Whether `quantize` makes offsets. Raises ValueError where it cannot do what is asked."""
    inputs = weight.shape[1]
    if bits not in (4, 8) or group < BLOCK or group % BLOCK or inputs % group:
        raise ValueError(f"4 or 8 bits in groups of a multiple of {BLOCK} that divides {inputs}, not {bits} in {group}")
    return bits == 4 if offsets is None else offsets


def _quantized(weight: Tensor, bits: int, group: int, shifted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Values, scales and offsets of some rows."""
    outputs, inputs = weight.shape
    groups = weight.view(-1, group)
    if bits == 8:
        low, high, zero = -127, 127, 0
        begin, end = groups.aminmax(dim=1, keepdim=True)
        scale = (end - begin) / 254 if shifted else torch.maximum(end, -begin) / 127
        shift = (end + begin) / 2 if shifted else torch.zeros_like(scale)
    else:
        low, high, zero = 0, 15, 0 if shifted else 8
        scale, shift = _searched(groups, shifted)
    scale, shift = scale.half(), shift.half()
    numbers = _numbers(groups, scale.float(), shift.float(), low, high, zero)
    values = numbers.to(torch.int8).view(outputs, inputs)
    if bits == 4:
        pairs = values.view(outputs, -1, 2).to(torch.uint8)
        values = pairs[..., 0] | pairs[..., 1] << 4
    return values, scale.view(outputs, -1), shift.view(outputs, -1)


def _numbers(groups: Tensor, scale: Tensor, shift: Tensor, low: int, high: int, zero: int) -> Tensor:
    """The integers nearest to the weights, as floats."""
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return torch.addcmul(zero - shift * inverse, groups, inverse).round_().clamp_(low, high)


_RANGES = (1.0, 0.94, 0.88, 0.82, 0.76)  # shares of a group's full range that are tried


def _searched(groups: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """Scale and offset [G, 1] of nibbles 0 to 15 for weights [G, group] with nearly the least squared error."""
    begin, end = groups.aminmax(dim=1, keepdim=True)
    zero = 0 if shifted else 8
    if shifted:
        starts = [((end - begin) * share / 15, begin + (end - begin) * (1 - share) / 2) for share in _RANGES]
    else:  # the weight of most weight becomes -8, where there is one integer more
        signed = torch.where(end > -begin, -end, begin)
        starts = [(signed * share / -8, torch.zeros_like(end)) for share in (1.1, *_RANGES)]
    best = torch.full_like(end, torch.inf)
    scale, shift = starts[0]
    for one_scale, one_shift in starts:
        for _ in range(2):
            numbers = _numbers(groups, one_scale, one_shift, 0, 15, zero)
            one_scale, one_shift = _fitted(groups, numbers - zero, shifted)
            error = (
                torch.addcmul(groups - one_shift, numbers - zero, one_scale, value=-1).square_().sum(1, keepdim=True)
            )
            better = error < best
            best = torch.where(better, error, best)
            scale, shift = torch.where(better, one_scale, scale), torch.where(better, one_shift, shift)
    return scale, shift


def _fitted(groups: Tensor, numbers: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """Least squares for weights = scale * numbers + offset, by group."""
    squares = numbers.square().sum(1, keepdim=True)
    products = (numbers * groups).sum(1, keepdim=True)
    if not shifted:
        return torch.where(squares == 0, 0.0, products / squares), torch.zeros_like(products)
    count = groups.shape[1]
    total, weights = numbers.sum(1, keepdim=True), groups.sum(1, keepdim=True)
    spread = count * squares - total * total
    scale = torch.where(spread == 0, 0.0, (count * products - total * weights) / spread)
    return scale, (weights - scale * total) / count
