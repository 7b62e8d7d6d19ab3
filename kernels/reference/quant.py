"""Weights as small integers in groups: what they mean, how they are made, and products with them: the definition.

Knows: torch. Must not know: file formats, models, hardware.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 32  # inputs that a row's quantization scales together; every group is a multiple of it


class Quantized(NamedTuple):
    """A weight [N, K]; group g of an output covers inputs [g * group, (g + 1) * group).

    bits 8: values int8 [N, K], w = scale * value (+ offset). bits 4: values uint8 [N, K / 2], input 2i in the low and
    2i + 1 in the high four bits of byte i; w = scale * (nibble - 8), or scale * nibble + offset where offsets are given.
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
    """x [T, K] as integers -127 to 127 [T, K / BLOCK, BLOCK] and their scales [T, K / BLOCK, 1], both float32: each BLOCK
    inputs of a row share absmax / 127, halves go to the even neighbour. Not finite inputs give a scale of NaN."""
    blocks = x.float().reshape(x.shape[0], -1, BLOCK)
    top = blocks.abs().amax(-1, keepdim=True)
    finite = (blocks - blocks).sum(-1, keepdim=True)
    numbers = torch.where(top < 1e-30, torch.zeros_like(blocks), blocks * (127 / top))
    return numbers.round(), top / 127 + finite


def linear(x: Tensor, weight: Quantized, bias: Tensor | None) -> Tensor:
    """x [T, K], rounded to integers, times the weight transposed, plus bias [N]: the definition of such a product, up to
    the order of its float32 sums. Returns [T, N] of x's dtype."""
    numbers, scales = rounded_inputs(x)
    out = (numbers * scales).view(x.shape) @ dequantize(weight).T
    return (out if bias is None else out + bias.float()).to(x.dtype)


def cat(parts: Sequence[Quantized]) -> Quantized:
    """Weights with the same K below each other. Where they differ in bits, groups or offsets all become what holds
    every one of them exactly: 8 bits, the smallest group, offsets."""
    group = min(part.group for part in parts)
    mixed = len({part.bits for part in parts}) > 1
    shifted = len({part.offsets is None for part in parts}) > 1
    parts = [_widened(part, 8 if mixed else part.bits, group, shifted) for part in parts]
    bits = max(part.bits for part in parts)
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
    scales = part.scales.repeat_interleave(part.group // group, dim=1)
    offsets = None if part.offsets is None else part.offsets.repeat_interleave(part.group // group, dim=1)
    values = part.values
    if bits == 8 and part.bits == 4:
        numbers = _integers(part)
        values = (numbers if part.offsets is not None else numbers - 8).contiguous()
    if shifted and offsets is None:
        offsets = torch.zeros_like(scales) if bits == 8 else scales * -8
    return Quantized(values, scales, offsets, bits, group)


def _integers(weight: Quantized) -> Tensor:
    """int8 [N, K]: the stored integers, 0 to 15 for four bits."""
    if weight.bits == 8:
        return weight.values
    low, high = weight.values & 15, weight.values >> 4
    return torch.stack((low, high), dim=-1).view(weight.shape).to(torch.int8)
