"""e4m3 numbers as bytes, for chips with and without the type: decoded by shifts, encoded with rounding to even.

Knows: the OCP format: 4 bits of exponent (bias 7), 3 of mantissa, no infinity. Must not know: what the numbers mean.
Source: Micikevicius et al., "FP8 formats for deep learning", 2022.
"""

from __future__ import annotations

from branchwork.kernels.triton.language import jit, tl


@jit
def decoded(byte):
    """uint8 to float32, exactly. The exponent and mantissa are read as a float16 of 1/256 the size."""
    wide = byte.to(tl.uint16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    value = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), value)


@jit
def encoded(value):
    """float32 to uint8, to nearest even; beyond 448 (infinity, too) 448, and NaN stays NaN."""
    size = tl.minimum(tl.abs(value), 448.0)
    bits = size.to(tl.uint32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960  # 960: exponent bias 127 becomes 7
    small = ((size * 512.0 + 12582912.0) - 12582912.0).to(tl.uint32)  # below 2**-6 the steps are 2**-9
    code = tl.where(size < 0.015625, small, normal)
    code = tl.where(value != value, 0x7F, code)
    return (code | ((value.to(tl.uint32, bitcast=True) >> 24) & 0x80)).to(tl.uint8)
