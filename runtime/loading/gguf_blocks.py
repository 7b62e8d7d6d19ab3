"""GGML's block formats as weights of small integers in groups: what each block's bytes mean, exactly.

Knows: the layouts of Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K. Must not know: files, names, architectures.
Blocks are rows of bytes [B, size]; the weights of a matrix's row follow each other block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from branchwork.kernels.reference.quant import Quantized


class Decoded(NamedTuple):
    """values as in Quantized, [B, ...]; scales, offsets float32 [B, groups of a block], not yet rounded."""

    values: Tensor
    scales: Tensor
    offsets: Tensor | None


class Form(NamedTuple):
    """weights, size: of a block, in weights and in bytes. group: weights that share a scale."""

    weights: int
    size: int
    bits: int
    group: int
    decode: Callable[[Tensor], Decoded]


def exact(kind: str, data: Tensor, shape: tuple[int, ...]) -> Quantized:
    """A matrix [N, K] with scales and offsets that are still float32: dequantized, it gives the format's own values.

    data: its bytes, uint8. Groups are 32, of Q6_K 16.
    """
    form = FORMS[kind]
    rows = shape[0]
    values, scales, offsets = form.decode(data.view(-1, form.size))
    return Quantized(
        values.reshape(rows, -1),
        scales.reshape(rows, -1),
        None if offsets is None else offsets.reshape(rows, -1),
        form.bits,
        form.group,
    )


def rounded(weight: Quantized) -> Quantized:
    """Scales and offsets as float16: those of the formats ending in 0 and 1 are float16 already and stay as they are,
    those of K formats are products of two numbers and move by 1 part in 2048 at most (or 3e-8 near zero)."""
    offsets = None if weight.offsets is None else weight.offsets.half()
    return weight._replace(scales=weight.scales.half(), offsets=offsets)


def _halves(blocks: Tensor, begin: int) -> Tensor:
    """The float16 at byte `begin` of each block, as float32 [B, 1]."""
    return blocks[:, begin : begin + 2].contiguous().view(torch.float16).float()


def _pairs(codes: Tensor) -> Tensor:
    """16 bytes [..., 16], weight i in the low and i + 16 in the high half of byte i, to weights 2i and 2i + 1."""
    return _together(codes & 15, codes >> 4)


def _together(first: Tensor, second: Tensor) -> Tensor:
    """Four-bit weights, one a byte, of two runs that follow each other, packed two by two."""
    return torch.cat([run[..., ::2] | run[..., 1::2] << 4 for run in (first, second)], dim=-1)


def _q8_0(blocks: Tensor) -> Decoded:
    return Decoded(blocks[:, 2:].view(torch.int8), _halves(blocks, 0), None)


def _q4_0(blocks: Tensor) -> Decoded:
    return Decoded(_pairs(blocks[:, 2:]), _halves(blocks, 0), None)


def _q4_1(blocks: Tensor) -> Decoded:
    return Decoded(_pairs(blocks[:, 4:]), _halves(blocks, 0), _halves(blocks, 2))


_BITS = torch.arange(8, dtype=torch.uint8)


def _fives(high: Tensor, low: Tensor) -> Tensor:
    """Weights 0 to 31 as int8 [B, 32]: of the 32 bits in `high` [B, 4] bit i is weight i's fifth; low as in _pairs."""
    fifth = (high[..., None] >> _BITS & 1).flatten(1)
    return (torch.cat((low & 15, low >> 4), dim=-1) | fifth << 4).view(torch.int8)


def _q5_0(blocks: Tensor) -> Decoded:
    return Decoded(_fives(blocks[:, 2:6], blocks[:, 6:]) - 16, _halves(blocks, 0), None)


def _q5_1(blocks: Tensor) -> Decoded:
    return Decoded(_fives(blocks[:, 4:8], blocks[:, 8:]), _halves(blocks, 0), _halves(blocks, 2))


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets of a K block's eight groups, float32 [B, 8].

    Twelve bytes: six-bit factors of groups 0 to 3 in bytes 0 to 3 (scale) and 4 to 7 (minimum); of groups 4 to 7 the
    low four bits in bytes 8 to 11 (scale low, minimum high), the upper two in the top bits of bytes 0 to 3 and 4 to 7.
    """
    packed = blocks[:, 4:16]
    scale, least, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    factors = torch.cat((scale & 63, (both & 15) | (scale >> 2 & 48)), dim=-1)
    minima = torch.cat((least & 63, both >> 4 | (least >> 2 & 48)), dim=-1)
    return _halves(blocks, 0) * factors.float(), -(_halves(blocks, 2) * minima.float())


def _q4_k(blocks: Tensor) -> Decoded:
    codes = blocks[:, 16:].view(-1, 4, 32)  # 32 bytes hold two groups: the first in the low halves
    return Decoded(_together(codes & 15, codes >> 4).flatten(1), *_k_scales(blocks))


def _q5_k(blocks: Tensor) -> Decoded:
    codes = blocks[:, 48:].view(-1, 4, 32)
    fifth = blocks[:, 16:48, None].transpose(1, 2) >> _BITS[:, None] & 1  # [B, 8, 32]
    values = torch.stack((codes & 15, codes >> 4), dim=2).view(-1, 8, 32) | fifth << 4
    return Decoded(values.flatten(1).view(torch.int8), *_k_scales(blocks))


def _q6_k(blocks: Tensor) -> Decoded:
    low = blocks[:, :128].view(-1, 2, 1, 64) >> torch.tensor([0, 4], dtype=torch.uint8)[:, None] & 15
    high = blocks[:, 128:192].view(-1, 2, 1, 32) >> _BITS[::2, None] & 3  # [B, 2, 4, 32]
    values = (low.view(-1, 2, 4, 32) | high << 4).view(torch.int8) - 32
    scales = blocks[:, 192:208].view(torch.int8).float() * _halves(blocks, 208)
    return Decoded(values.flatten(1), scales, None)


FORMS = {
    "Q8_0": Form(32, 34, 8, 32, _q8_0),
    "Q4_0": Form(32, 18, 4, 32, _q4_0),
    "Q4_1": Form(32, 20, 4, 32, _q4_1),
    "Q5_0": Form(32, 22, 8, 32, _q5_0),
    "Q5_1": Form(32, 24, 8, 32, _q5_1),
    "Q4_K": Form(256, 144, 4, 32, _q4_k),
    "Q5_K": Form(256, 176, 8, 32, _q5_k),
    "Q6_K": Form(256, 210, 8, 16, _q6_k),
}
