"""Mixtures of experts on GPUs: routing, and products of tokens sorted by expert in tiles of one expert each.

Knows: Triton, weights of floats, of integers and of e4m3. Must not know: models, which chip this is.
Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from branchwork.kernels.reference import float8, quant
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.moe import Stored
from branchwork.kernels.reference.quant import Quantized
from branchwork.kernels.table import chip
from branchwork.kernels.triton.activation import silu_mul
from branchwork.kernels.triton.language import available, blocks, jit, power_of_2, tl, why
from branchwork.kernels.triton.quant import group_product, step
from branchwork.kernels.triton.tuning import Specimen, launch

__all__ = ["SPECIMENS", "available", "expert_mlp", "pack_experts", "route", "sorted_slots", "why"]

FEW = 16  # slots an expert gets on average up to which narrow tiles are used


@jit(do_not_specialize=["count"])
def route_kernel(
    logits,
    gains,
    experts,
    count,
    row_stride,
    size,
    TOP_K: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Softmax of ROWS rows, then TOP_K times the likeliest expert that is left, the first among equals."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, SIZE)
    live = (row < count)[:, None] & (expert < size)[None, :]
    value = tl.load(logits + row[:, None] * row_stride + expert[None, :], mask=live, other=float("-inf")).to(tl.float32)
    value = tl.where((row < count)[:, None], value, 0.0)
    chance = tl.exp(value - tl.max(value, axis=1)[:, None])
    whole = tl.sum(chance, axis=1)
    left = tl.where((expert < size)[None, :], chance, -1.0)
    taken = tl.zeros([ROWS], tl.float32)
    at = row * TOP_K
    for turn in tl.static_range(TOP_K):
        best = tl.max(left, axis=1)
        name = tl.min(tl.where(left == best[:, None], expert[None, :], SIZE), axis=1)
        left = tl.where(expert[None, :] == name[:, None], -2.0, left)
        taken += best
        tl.store(experts + at + turn, name, mask=row < count)
        if not SCALED:
            tl.store(gains + at + turn, best / whole, mask=row < count)
    if SCALED:
        again = tl.where((expert < size)[None, :], chance, -1.0)
        for turn in tl.static_range(TOP_K):
            best = tl.max(again, axis=1)
            name = tl.min(tl.where(again == best[:, None], expert[None, :], SIZE), axis=1)
            again = tl.where(expert[None, :] == name[:, None], -2.0, again)
            tl.store(gains + at + turn, best / taken, mask=row < count)


@jit
def experts_kernel(
    x,
    weight,
    slots,
    expert_of,
    gains,
    scales,
    offsets,
    out,
    count,
    outputs,
    inputs,
    x_t,
    fan,
    scales_e,
    groups,
    tall,
    group,
    KIND: tl.constexpr,
    OFFSETS: tl.constexpr,
    GAINS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of one expert: slot s takes row s // fan of x and writes row s of out [count, outputs].

    weight [E, outputs, inputs]; scales of an expert scales_e numbers behind the last one's, otherwise as in quant.py.
    """
    block = tl.program_id(0)
    expert = tl.load(expert_of + block).to(tl.int64)
    if expert >= 0:
        slot = tl.load(slots + block * BLOCK_M + tl.arange(0, BLOCK_M))
        n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        in_m, in_n = slot < count, n < outputs
        row = (slot // fan).to(tl.int64)
        lines = n.to(tl.int64) * inputs
        if KIND == "int4":
            weight += expert * outputs * (inputs // 2)
        else:
            weight += expert * outputs * inputs
        line = expert * scales_e + (n // tall) * groups
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, inputs, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            live = (k < inputs)[None, :] | WHOLE
            a = tl.load(x + row[:, None] * x_t + k[None, :], mask=in_m[:, None] & live, other=0.0)
            if KIND == "float":
                b = tl.load(weight + lines[:, None] + k[None, :], mask=in_n[:, None] & live, other=0.0)
                acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee")
            else:
                acc += group_product(
                    a, weight, scales, offsets, n, in_n, start, inputs, line, group,
                    KIND=KIND, OFFSETS=OFFSETS, WHOLE=WHOLE, BLOCK_M=BLOCK_M, BLOCK_K=BLOCK_K,
                )  # fmt: skip
        if GAINS:
            acc *= tl.load(gains + slot, mask=in_m, other=0.0)[:, None]
        at = out + slot[:, None].to(tl.int64) * outputs + n[None, :]
        tl.store(at, acc.to(out.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


def route(logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """As `kernels.route`."""
    count, size = logits.shape
    gains = torch.empty((count, top_k), dtype=torch.float32, device=logits.device)
    experts = torch.empty((count, top_k), dtype=torch.int32, device=logits.device)
    if count:
        row, width = launch("route", chip(logits.device)), power_of_2(size)
        rows = max(1, row.pop("TILE") // width)
        route_kernel[(blocks(count, rows),)](
            logits,
            gains,
            experts,
            count,
            logits.stride(0),
            size,
            TOP_K=top_k,
            SCALED=renormalize,
            ROWS=rows,
            SIZE=width,
            **row,
        )
    return gains, experts


def pack_experts(blocks: Iterable[tuple[Stored, Stored]], count: int, dtype: torch.dtype) -> tuple[Stored, Stored]:
    """As `kernels.pack_experts`: weights behind each other, [E, 2F, C] and [E, C, F], of dtype where they are floats.

    A Quantized or Float8 of them has parts with experts as their first dimension. Experts that are stored in different
    ways become floats.
    """
    halves: tuple[list[Stored], list[Stored]] = ([], [])
    for block in blocks:
        for half, weight in zip(halves, block, strict=True):
            half.append(weight)
    return _stacked(halves[0], dtype), _stacked(halves[1], dtype)


def _stacked(weights: list[Stored], dtype: torch.dtype) -> Stored:
    whole = [weight for weight in weights if isinstance(weight, Quantized)]
    if len(whole) == len(weights) and len({(part.bits, part.group, part.offsets is None) for part in whole}) == 1:
        offsets = [part.offsets for part in whole if part.offsets is not None]
        return Quantized(
            torch.stack([part.values for part in whole]),
            torch.stack([part.scales for part in whole]),
            torch.stack(offsets) if offsets else None,
            whole[0].bits,
            whole[0].group,
        )
    eights = [weight for weight in weights if isinstance(weight, Float8)]
    if len(eights) == len(weights) and len({part.block for part in eights}) == 1:
        values = torch.stack([part.values.view(torch.uint8) for part in eights]).view(torch.float8_e4m3fn)
        return Float8(values, torch.stack([part.scales for part in eights]), eights[0].block)
    out: Tensor | None = None
    for expert in range(len(weights)):
        floats = _floats(weights[expert], dtype)
        if out is None:
            out = floats.new_empty((len(weights), *floats.shape))
        out[expert] = floats
        weights[expert] = floats[:0]  # at no time is all of it there twice
    assert out is not None
    return out


def _floats(weight: Stored, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    return quant.dequantize(weight, dtype) if isinstance(weight, Quantized) else float8.dequantize(weight, dtype)


def expert_mlp(x: Tensor, gate_up: Stored, down: Stored, gains: Tensor, experts: Tensor) -> Tensor:
    """As `kernels.expert_mlp`; weights contiguous, floats of x's type. Raises ValueError where they are not."""
    for weight in (gate_up, down):
        values = weight if isinstance(weight, Tensor) else weight.values
        if not values.is_contiguous() or (isinstance(weight, Tensor) and weight.dtype != x.dtype):
            raise ValueError(f"contiguous expert weights of {x.dtype} or of bytes are needed, got {values.dtype}")
    size = (gate_up if isinstance(gate_up, Tensor) else gate_up.values).shape[0]
    count = experts.numel()
    if not count:
        return torch.zeros_like(x)
    key = "few" if count <= FEW * size else "many"
    order: dict[int, tuple[Tensor, Tensor]] = {}  # by the height of a tile

    def product(x: Tensor, weight: Stored, gains: Tensor | None, fan: int) -> Tensor:
        row = launch("experts", chip(x.device), key if isinstance(weight, Tensor) else f"bytes {key}")
        tall = row["BLOCK_M"]
        if tall not in order:
            order[tall] = sorted_slots(experts, size, tall)
        return _product(x, weight, order[tall], gains, count, fan, row)

    parts = product(silu_mul(product(x, gate_up, None, experts.shape[1])), down, gains, 1)
    return parts.view(*experts.shape, -1).sum(1).to(x.dtype)


def sorted_slots(experts: Tensor, size: int, block: int) -> tuple[Tensor, Tensor]:
    """Places of `experts` [T, k], below `size`, by expert and padded to whole blocks: no block holds two experts.

    (slots int32 [B * block], T * k where padded; expert of each block int32 [B], -1 for a block without any).
    """
    flat = experts.flatten().long()
    count, device = flat.numel(), flat.device
    name = torch.arange(size, device=device)
    counts = (flat[:, None] == name).sum(0)
    tiles = (counts + block - 1) // block
    ends = tiles.cumsum(0)
    order = flat.argsort(stable=True)
    sorted_ = flat[order]
    rank = torch.arange(count, device=device) - (counts.cumsum(0) - counts)[sorted_]
    most = blocks(count, block) + min(size, count)  # every expert's last block may be nearly empty
    slots = torch.full((most * block,), count, dtype=torch.int32, device=device)
    slots[(ends - tiles)[sorted_] * block + rank] = order.int()
    owner = torch.searchsorted(ends, torch.arange(most, device=device), right=True)
    return slots, torch.where(owner < size, owner, -1).int()


def _product(
    x: Tensor,
    weight: Stored,
    order: tuple[Tensor, Tensor],
    gains: Tensor | None,
    count: int,
    fan: int,
    row: dict[str, int],
) -> Tensor:
    """Row s of the result [count, N]: row s // fan of x times its expert's weight; with gains float32 and scaled."""
    inputs = x.shape[1]
    values, scales, offsets, kind, (tall, group) = _parts(weight, inputs)
    outputs = values.shape[1]
    size = row["BLOCK_K"] if kind == "float" else step(row["BLOCK_K"], inputs, group)
    out = torch.empty((count, outputs), dtype=x.dtype if gains is None else torch.float32, device=x.device)
    experts_kernel[(order[1].numel(), blocks(outputs, row["BLOCK_N"]))](
        x,
        values,
        *order,
        x if gains is None else gains,
        x if scales is None else scales,
        x if offsets is None else offsets,
        out,
        count,
        outputs,
        inputs,
        x.stride(0),
        fan,
        0 if scales is None else scales.stride(0),
        0 if scales is None else scales.shape[2],
        tall,
        group,
        KIND=kind,
        OFFSETS=offsets is not None,
        GAINS=gains is not None,
        WHOLE=inputs % size == 0,
        **{**row, "BLOCK_K": size},
    )
    return out


def _parts(weight: Stored, inputs: int) -> tuple[Tensor, Tensor | None, Tensor | None, str, tuple[int, int]]:
    """What the kernel reads: values, scales, offsets, what the values are, outputs and inputs that share a scale."""
    if isinstance(weight, Tensor):
        return weight, None, None, "float", (1, inputs)
    if isinstance(weight, Float8):
        return weight.values.view(torch.uint8), weight.scales, None, "e4m3", weight.block
    return weight.values, weight.scales, weight.offsets, f"int{weight.bits}", (1, weight.group)


_SIGNATURE = {"x": "*bf16", "slots": "*i32", "expert_of": "*i32", "gains": "*fp32", "count": "i32"}
_SIGNATURE |= dict.fromkeys(("outputs", "inputs", "x_t", "scales_e", "groups", "group"), "i32:16")
_SIGNATURE |= {"fan": "i32", "tall": "i32"}
_KINDS = (
    ("float", "*bf16", "*bf16", False),
    ("int8", "*i8", "*fp16", False),
    ("int4", "*u8", "*fp16", True),
    ("e4m3", "*u8", "*fp32", False),
)
SPECIMENS = [
    Specimen(
        f"experts {'' if kind == 'float' else f'{kind} '}{key}{' with gains' if gains else ''}",
        experts_kernel,
        _SIGNATURE | {"weight": weight, "scales": scales, "offsets": scales} | {"out": "*fp32" if gains else "*bf16"},
        {"KIND": kind, "OFFSETS": shifted, "GAINS": gains, "WHOLE": True},
        ("experts", key if kind == "float" else f"bytes {key}"),
    )
    for kind, weight, scales, shifted in _KINDS
    for key in ("few", "many")
    for gains in (False, True)
] + [
    Specimen(
        "route 8 of 128",
        route_kernel,
        {
            "logits": "*bf16",
            "gains": "*fp32",
            "experts": "*i32",
            "count": "i32",
            "row_stride": "i32:16",
            "size": "i32:16",
        },
        {"TOP_K": 8, "SCALED": True, "ROWS": lambda row: max(1, row["TILE"] // 128), "SIZE": 128},
        ("route", ""),
    )
]
