"""Products with weights of 8 or 4 bits and of e4m3 bytes, for GPUs: weights are widened in registers, rows stay floats.

Knows: Triton, the layouts of kernels.reference.quant and float8. Must not know: weight files, which chip this is.

Values become the rows' type exactly, a product of one group of inputs is summed in float32 and scaled once: the weight
itself is never rounded. An offset of a group is added as often as the group's inputs sum up to.
Few rows split K over programs whose sums are added in a second launch in a fixed order; how K is split depends on
the count of rows only through the choice of "few" or "many", so a row's result does on nothing else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from branchwork.kernels.reference import float8, quant
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import Quantized
from branchwork.kernels.table import chip
from branchwork.kernels.triton.float8 import decoded
from branchwork.kernels.triton.language import available, blocks, jit, power_of_2, tl, why
from branchwork.kernels.triton.tuning import Specimen, launch

__all__ = ["SPECIMENS", "available", "group_product", "linear", "step", "why"]

FEW = 32  # rows up to which a product is bound by reading the weights


@jit
def widened(values, n, k, live, inputs, type, KIND: tl.constexpr):
    """One tile of weights [N, K] as `type`: of int8, or of e4m3 bytes."""
    raw = tl.load(values + n[:, None].to(tl.int64) * inputs + k[None, :], mask=live, other=0)
    if KIND == "e4m3":
        return decoded(raw).to(type)
    return raw.to(type)


@jit
def group_product(
    row,
    values,
    scales,
    offsets,
    n,
    in_n,
    start,
    inputs,
    line,
    group,
    KIND: tl.constexpr,
    OFFSETS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What the inputs from `start` on, all of one group, add to a tile: row [BLOCK_M, BLOCK_K] times weights n, scaled.

    line: where each output's scales begin.
    """
    type = row.dtype
    if KIND == "int4":
        half = start // 2 + tl.arange(0, BLOCK_K // 2)
        at = values + n[:, None].to(tl.int64) * (inputs // 2) + half[None, :]
        byte = tl.load(at, mask=in_n[:, None] & (half >= 0)[None, :], other=0)
        low, high = (byte & 15).to(tl.int8), (byte >> 4).to(tl.int8)
        if not OFFSETS:
            low, high = low - 8, high - 8
        even, odd = tl.split(tl.reshape(row, [BLOCK_M, BLOCK_K // 2, 2]))
        part = tl.dot(even, tl.trans(low.to(type)), input_precision="ieee")
        part = tl.dot(odd, tl.trans(high.to(type)), part, input_precision="ieee")
    else:
        k = start + tl.arange(0, BLOCK_K)
        live = in_n[:, None] & ((k < inputs)[None, :] | WHOLE)
        weight = widened(values, n, k, live, inputs, type, KIND)
        part = tl.dot(row, tl.trans(weight), input_precision="ieee")
    scale = tl.load(scales + line + start // group, mask=in_n, other=0.0).to(tl.float32)
    part *= scale[None, :]
    if OFFSETS:
        shift = tl.load(offsets + line + start // group, mask=in_n, other=0.0).to(tl.float32)
        part += tl.sum(row.to(tl.float32), axis=1)[:, None] * shift[None, :]
    return part


@jit(do_not_specialize=["rows"])
def product_kernel(
    x,
    values,
    scales,
    offsets,
    bias,
    out,
    rows,
    outputs,
    inputs,
    x_t,
    groups,
    tall,
    group,
    KIND: tl.constexpr,
    OFFSETS: tl.constexpr,
    BIAS: tl.constexpr,
    WHOLE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of out [SPLITS, rows, outputs] over its split's share of the inputs.

    scales [.., groups]: one for each `tall` outputs and each `group` inputs; WHOLE: BLOCK_K divides the inputs.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    in_m, in_n = m < rows, n < outputs
    steps = tl.cdiv(tl.cdiv(inputs, BLOCK_K), SPLITS)
    first = split * steps * BLOCK_K
    last = tl.minimum(first + steps * BLOCK_K, inputs)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    line = (n // tall) * groups
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        live_x = in_m[:, None] & ((k < inputs)[None, :] | WHOLE)
        row = tl.load(x + m[:, None].to(tl.int64) * x_t + k[None, :], mask=live_x, other=0.0)
        acc += group_product(
            row, values, scales, offsets, n, in_n, start, inputs, line, group,
            KIND=KIND, OFFSETS=OFFSETS, WHOLE=WHOLE, BLOCK_M=BLOCK_M, BLOCK_K=BLOCK_K,
        )  # fmt: skip
    if BIAS:
        acc += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    at = (split.to(tl.int64) * rows + m)[:, None] * outputs + n[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


@jit
def sum_splits_kernel(parts, bias, out, size, outputs, BIAS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """out [size] = the sum of parts [SPLITS, size] in order, plus bias."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(SPLITS):
        total += tl.load(parts + split * size + at, mask=live, other=0.0)
    if BIAS:
        total += tl.load(bias + at % outputs, mask=live, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=live)


def linear(x: Tensor, weight: Quantized | Float8, bias: Tensor | None) -> Tensor:
    """x [T, K] times the weight transposed, plus bias [N]; rows are not rounded to integers. [T, N] of x's type.

    Raises ValueError for a weight whose parts do not fit or which is not contiguous.
    """
    rows, (outputs, inputs) = x.shape[0], weight.shape
    if x.shape[1] != inputs:
        raise ValueError(f"rows of {inputs} inputs are needed, got {x.shape[1]}")
    if not weight.values.is_contiguous() or not weight.scales.is_contiguous():
        raise ValueError("a contiguous weight and contiguous scales are needed")
    if x.stride(1) != 1:
        x = x.contiguous()
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    if isinstance(weight, Float8):
        float8.check(weight)
        values, offsets, kind = weight.values.view(torch.uint8), None, "e4m3"
        tall, group = weight.block
    else:
        quant.check(weight)
        values, offsets, kind = weight.values, weight.offsets, f"int{weight.bits}"
        tall, group = 1, weight.group
    name = chip(x.device)
    row = launch("int4" if kind == "int4" else "bytes", name, "few" if rows <= FEW else "many")
    row["BLOCK_K"] = step(row["BLOCK_K"], inputs, group)
    splits = row["SPLITS"] = min(row["SPLITS"], blocks(inputs, row["BLOCK_K"]))
    parts = out if splits == 1 else torch.empty((splits, rows, outputs), dtype=torch.float32, device=x.device)
    product_kernel[(blocks(rows, row["BLOCK_M"]), blocks(outputs, row["BLOCK_N"]), splits)](
        x,
        values,
        weight.scales,
        weight.scales if offsets is None else offsets,
        x if bias is None else bias,
        parts,
        rows,
        outputs,
        inputs,
        x.stride(0),
        weight.scales.shape[1],
        tall,
        group,
        KIND=kind,
        OFFSETS=offsets is not None,
        BIAS=bias is not None and splits == 1,
        WHOLE=inputs % row["BLOCK_K"] == 0,
        **row,
    )
    if splits > 1:
        last = launch("sum_splits", name)
        sum_splits_kernel[(blocks(out.numel(), last["BLOCK"]),)](
            parts, x if bias is None else bias, out, out.numel(), outputs, BIAS=bias is not None, SPLITS=splits, **last
        )
    return out


def step(most: int, inputs: int, group: int) -> int:
    """Inputs of one step: a power of two, at least 16, that no group's border cuts."""
    if group >= inputs:
        return max(16, min(most, power_of_2(inputs)))
    step = math.gcd(group, most)
    if step < 16:
        raise ValueError(f"groups of a multiple of 16 inputs are needed, got {group}")
    return step


def _signature(values: str, scales: str) -> dict[str, str]:
    pointers = {"x": "*bf16", "values": values, "scales": scales, "offsets": scales, "bias": "*bf16"}
    sizes = {"outputs": "i32:16", "inputs": "i32:16", "x_t": "i32:16", "groups": "i32:16", "group": "i32:16"}
    return pointers | sizes | {"rows": "i32", "tall": "i32"}


_KINDS = (("int8", "*i8", "*fp16", False), ("int4", "*u8", "*fp16", True), ("e4m3", "*u8", "*fp32", False))
SPECIMENS = [
    Specimen(
        f"linear {kind} {key}",
        product_kernel,
        _signature(values, scales) | {"out": "*fp32" if key == "few" else "*bf16"},
        {"KIND": kind, "OFFSETS": offsets, "BIAS": False, "WHOLE": True},
        ("int4" if kind == "int4" else "bytes", key),
    )
    for kind, values, scales, offsets in _KINDS
    for key in ("few", "many")
] + [
    Specimen(
        "sum_splits",
        sum_splits_kernel,
        {"parts": "*fp32", "bias": "*bf16", "out": "*bf16", "size": "i32:16", "outputs": "i32:16"},
        {"BIAS": True, "SPLITS": 4},
        ("sum_splits", ""),
    )
]
