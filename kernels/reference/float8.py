"""Weights as e4m3 bytes with float32 scales by blocks: what they mean, how they are made, and products: the definition.

Knows: torch. Must not know: file formats, models, hardware.
Source: Micikevicius et al., "FP8 formats for deep learning", 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 448.0  # of e4m3, which has no infinity


class Float8(NamedTuple):
    """A weight [N, K] of e4m3: values float8_e4m3fn [N, K]; w[n, k] = value * scales[n // block[0], k // block[1]].

    scales: float32 [ceil(N / block[0]), ceil(K / block[1])]. One scale for all: block = (N, K).
    """

    values: Tensor
    scales: Tensor
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


def quantize(weight: Tensor, block: tuple[int, int] | None = None) -> Float8:
    """weight [N, K], rounded to the nearest e4m3 with scales of absmax / 448 for each block (None: one for all)."""
    outputs, inputs = weight.shape
    rows, columns = block or (outputs, inputs)
    padded = torch.nn.functional.pad(weight.float(), (0, -inputs % columns, 0, -outputs % rows))
    tops = padded.abs().view(padded.shape[0] // rows, rows, -1, columns).amax((1, 3))
    scales = torch.where(tops > 0, tops / LARGEST, 1.0)
    values = (weight.float() / _spread(scales, (rows, columns), weight.shape)).clamp(-LARGEST, LARGEST)
    return Float8(values.to(torch.float8_e4m3fn), scales, (rows, columns))


def dequantize(weight: Float8, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [N, K] itself, computed in float32."""
    return (weight.values.float() * _spread(weight.scales, weight.block, weight.shape)).to(dtype)


def cat(parts: Sequence[Float8]) -> Float8:
    """Weights with the same K below each other: exactly, in the largest blocks that no border of theirs cuts."""
    inputs = parts[0].shape[1]
    columns = math.gcd(*(min(part.block[1], inputs) for part in parts))
    rows = math.gcd(*(part.block[0] for part in parts), *(part.shape[0] for part in parts[:-1]))
    scales = []
    for part in parts:
        tall, wide = part.block[0] // rows, min(part.block[1], inputs) // columns
        finer = part.scales.repeat_interleave(tall, 0).repeat_interleave(wide, 1)
        scales.append(finer[: -(-part.shape[0] // rows), : -(-inputs // columns)])
    values = torch.cat([part.values.view(torch.uint8) for part in parts])  # bytes, which every device can move
    return Float8(values.view(torch.float8_e4m3fn), torch.cat(scales), (rows, columns))


def check(weight: Float8) -> None:
    """Raises ValueError where a Float8 is not what its docstring says."""
    outputs, inputs = weight.shape
    shape = (-(-outputs // weight.block[0]), -(-inputs // weight.block[1]))
    if weight.values.dtype != torch.float8_e4m3fn or weight.scales.dtype != torch.float32:
        raise ValueError(f"e4m3 values and float32 scales are needed, got {weight.values.dtype} {weight.scales.dtype}")
    if weight.scales.shape != shape:
        raise ValueError(f"scales {shape} are needed for blocks of {weight.block}, got {tuple(weight.scales.shape)}")


def linear(x: Tensor, weight: Float8, bias: Tensor | None) -> Tensor:
    """x [T, K] times the weight transposed, in float32, plus bias [N]. Returns [T, N] of x's dtype."""
    out = x.float() @ dequantize(weight).T
    return (out if bias is None else out + bias.float()).to(x.dtype)


def _spread(scales: Tensor, block: tuple[int, int], shape: tuple[int, int] | torch.Size) -> Tensor:
    """Each element's scale [N, K]."""
    whole = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return whole[: shape[0], : shape[1]]
