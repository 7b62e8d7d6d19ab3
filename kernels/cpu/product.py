"""Matrix products with weights packed once into panels by the native C library, for one to thousands of rows.

Knows: tensor layouts, the C structs and calls. Must not know: models, weight files, what the table picks.
A row's result does not depend, to the bit, on the other rows or on the number of threads; with a Quantized weight not
on the instruction set either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.cpu import linear as plain
from branchwork.kernels.cpu import native
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import BLOCK, Quantized, check, fits

available = native.available
why = native.why

PANEL = 32  # outputs that a panel holds
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_INT8, _INT4 = 2, 3


class Packed:
    """A weight [N, K] in panels with its bias [N]. struct: the bytes of its C Product, valid as long as this lives."""

    __slots__ = ("_biased", "_held", "dtype", "kind", "shape", "struct")

    def __init__(self, weight: Tensor | Quantized, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        padded = -(-outputs // PANEL) * PANEL
        scales = offsets = None
        if isinstance(weight, Quantized):
            values, self.kind, group = weight.values, _INT8 if weight.bits == 8 else _INT4, weight.group
            scales, offsets = weight.scales.contiguous(), weight.offsets
            offsets = None if offsets is None else offsets.contiguous()
            words, self.dtype = inputs * weight.bits // 32, None
        else:
            values, self.kind, group = weight, _KINDS[weight.dtype], 0
            words, self.dtype = -(-inputs // (1 + self.kind)), weight.dtype
        values = values.contiguous()
        panels = torch.empty((padded // PANEL, words, PANEL), dtype=torch.int32)
        kept = [
            None if part is None else part.new_empty((padded // PANEL, inputs // group, PANEL))
            for part in (scales, offsets)
        ]
        addresses = [_address(part) for part in (values, scales, offsets, panels, *kept)]
        native.check(native.library().bw_pack(native.PACKING.pack(*addresses, inputs, outputs, self.kind, group)))
        self.shape = (outputs, inputs)
        self._held = (panels, _padded(bias, outputs), *kept)
        self._biased: tuple[Tensor | None, bytes, Tensor] = (None, b"", panels)
        held = [_address(part) for part in self._held]
        self.struct = native.PRODUCT.pack(held[0], *held[1:], inputs, outputs, self.kind, group)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._held if part is not None)

    def with_bias(self, bias: Tensor | None) -> bytes:
        """The C Product with another bias [N] in place of its own; the last one is kept, since it comes again."""
        if bias is None:
            return self.struct
        if self._biased[0] is not bias:
            wide = _padded(bias, self.shape[0])
            panels, _, scales, offsets, *sizes = native.PRODUCT.unpack(self.struct)
            self._biased = (bias, native.PRODUCT.pack(panels, wide.data_ptr(), scales, offsets, *sizes), wide)
        return self._biased[1]

    def to_dense(self) -> Tensor:
        """The weight [N, K], dequantized to float32 where it is of integers."""
        return rows(self, torch.arange(self.shape[0])).to(self.dtype or torch.float32)


def pack(weight: Tensor | Quantized | Float8, bias: Tensor | None = None) -> Packed:
    """weight [N, K], float32, bfloat16 or Quantized, in panels; bias [N]. The weight is read once, by all threads, and
    not kept.

    Raises ValueError for other types and for shapes that do not fit.
    """
    if isinstance(weight, Quantized):
        check(weight)
    elif isinstance(weight, Float8):
        raise ValueError("weights of e4m3 cannot be packed: dequantize them first")
    elif weight.dtype not in _KINDS or weight.dim() != 2:
        raise ValueError(
            f"weights [N, K] of float32 or bfloat16 can be packed, not {weight.dtype} {tuple(weight.shape)}"
        )
    return Packed(weight, bias)


def pack_linear(weight: Tensor | Quantized | Float8, dtype: torch.dtype | None = None) -> Packed | Tensor:
    """The weight packed, a Float8 as the numbers it stands for; as it is, where torch alone computes in its type."""
    if isinstance(weight, Float8):
        weight = plain.pack_linear(weight, dtype)
    if isinstance(weight, Tensor) and weight.dtype not in _KINDS:
        return weight
    return pack(weight)


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
    """As `kernels.linear`, for packed and plain weights. Raises ValueError where shapes or types do not fit."""
    if not isinstance(weight, Packed):
        return plain.linear(x, weight, bias)
    if x.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x [T, {weight.shape[1]}] is needed, got {tuple(x.shape)}")
    if weight.dtype is not None and x.dtype != weight.dtype:
        raise ValueError(f"a weight of {weight.dtype} takes x of that type, got {x.dtype}")
    given = x.contiguous() if x.dtype in _KINDS else x.float().contiguous()
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=given.dtype)
    product = weight.with_bias(bias)
    native.check(native.library().bw_linear(product, given.data_ptr(), out.data_ptr(), x.shape[0], _KINDS[given.dtype]))
    return out.to(x.dtype)


def rows(weight: Packed, ids: Tensor) -> Tensor:
    """Rows of the weight at ids int64 [T], float32 [T, K]: an embedding read from the packed table.

    Raises IndexError for ids that are no outputs of the weight.
    """
    out = torch.empty((ids.shape[0], weight.shape[1]))
    ids = ids.contiguous()
    native.check(native.library().bw_weight_rows(weight.struct, ids.data_ptr(), out.data_ptr(), ids.shape[0]))
    return out


def quantize(weight: Tensor, bits: int, group: int = BLOCK, offsets: bool | None = None) -> Quantized:
    """As `kernels.quantize`."""
    shifted = fits(weight, bits, group, offsets)
    outputs, inputs = weight.shape
    weight = (weight if weight.dtype in _KINDS else weight.float()).contiguous()
    values = torch.empty((outputs, inputs * bits // 8), dtype=torch.int8 if bits == 8 else torch.uint8)
    scales = torch.empty((outputs, inputs // group), dtype=torch.float16)
    shifts = torch.empty_like(scales) if shifted else None
    addresses = (weight.data_ptr(), values.data_ptr(), scales.data_ptr(), _address(shifts))
    call = native.QUANTIZING.pack(*addresses, outputs, inputs, bits, group, 0)
    native.check(native.library().bw_quantize(call, _KINDS[weight.dtype]))
    return Quantized(values, scales, shifts, bits, group)


def _address(part: Tensor | None) -> int:
    return 0 if part is None else part.data_ptr()


def _padded(bias: Tensor | None, outputs: int) -> Tensor:
    """The bias as float32 with zeros up to whole panels."""
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"a bias for {outputs} outputs is needed, got {tuple(bias.shape)}")
    wide = torch.zeros(-(-outputs // PANEL) * PANEL)
    if bias is not None:
        wide[:outputs] = bias
    return wide
