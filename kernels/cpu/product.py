"""Matrix products with weights packed once into panels by the native C library, for one to thousands of rows.

Knows: tensor layouts, the C structs and calls. Must not know: models, weight files, which implementation the table picks.
A row's result does not depend, to the bit, on the other rows or on the number of threads; with a Quantized weight not on
the instruction set either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.cpu import native
from branchwork.kernels.reference.quant import Quantized

available = native.available
why = native.why

PANEL = 32  # outputs that a panel holds
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_INT8, _INT4 = 2, 3


class Packed:
    """A weight [N, K] with its bias in panels. struct: the bytes of its C Product, valid as long as this lives."""

    def __init__(self, panels: Tensor, bias: Tensor, scales: Tensor | None, offsets: Tensor | None, sizes: Sizes) -> None:
        self._held = (panels, bias, scales, offsets)
        outputs, inputs, kind, group = sizes
        self.shape = (outputs, inputs)
        self.struct = native.PRODUCT.pack(
            panels.data_ptr(), bias.data_ptr(), _address(scales), _address(offsets), inputs, outputs, kind, group
        )

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._held if part is not None)

    @property
    def panels(self) -> int:
        return -(-self.shape[0] // PANEL)


Sizes = tuple[int, int, int, int]  # outputs, inputs, kind, group


def pack(weight: Tensor | Quantized, bias: Tensor | None = None) -> Packed:
    """weight [N, K], float32, bfloat16 or Quantized, in panels; bias [N]. The weight is read once and not kept.

    Raises ValueError for other types and for shapes that do not fit.
    """
    outputs, inputs = weight.shape
    padded = -(-outputs // PANEL) * PANEL
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"a bias for {outputs} outputs is needed, got {tuple(bias.shape)}")
    wide = torch.zeros(padded)
    if bias is not None:
        wide[:outputs] = bias
    if isinstance(weight, Quantized):
        kind, values = _INT8 if weight.bits == 8 else _INT4, weight.values
        words, group = inputs * weight.bits // 32, weight.group
        scales, offsets = weight.scales.contiguous(), weight.offsets
        offsets = None if offsets is None else offsets.contiguous()
        _check_groups(weight)
    else:
        if weight.dtype not in _KINDS:
            raise ValueError(f"weights are packed as float32, bfloat16 or Quantized, not {weight.dtype}")
        kind, values, group, scales, offsets = _KINDS[weight.dtype], weight, 0, None, None
        words = -(-inputs // (1 + kind))
    values = values.contiguous()
    panels = torch.empty((padded // PANEL, words, PANEL), dtype=torch.int32)
    packed = [None if part is None else part.new_empty((padded, inputs // group)) for part in (scales, offsets)]
    native.check(
        native.library().bw_pack(
            native.PACKING.pack(
                values.data_ptr(), _address(scales), _address(offsets),
                panels.data_ptr(), *map(_address, packed), inputs, outputs, kind, group,
            )
        )
    )  # fmt: skip
    return Packed(panels, wide, packed[0], packed[1], (outputs, inputs, kind, group))


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
    """x [T, K] times a packed weight [N, K] transposed, plus the bias it was packed with. Returns [T, N] of x's dtype."""
    raise NotImplementedError


def _address(part: Tensor | None) -> int:
    return 0 if part is None else part.data_ptr()


def _check_groups(weight: Quantized) -> None:
    outputs, inputs = weight.shape
    if weight.group % 32 or inputs % weight.group:
        raise ValueError(f"groups of {weight.group} inputs: a multiple of 32 that divides the {inputs} inputs is needed")
    shape = (outputs, inputs // weight.group)
    for part in (weight.scales, weight.offsets):
        if part is not None and (part.shape != shape or part.dtype != torch.float16):
            raise ValueError(f"float16 {shape} is needed per group, got {part.dtype} {tuple(part.shape)}")
