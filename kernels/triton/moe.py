"""Mixtures of experts on GPUs: routing, and products of tokens sorted by expert in tiles of one expert each.

Knows: Triton. Must not know: models, which chip this is. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchwork.kernels.table import chip
from branchwork.kernels.triton.activation import silu_mul
from branchwork.kernels.triton.language import available, blocks, jit, power_of_2, tl, why
from branchwork.kernels.triton.tuning import Specimen, launch

__all__ = ["SPECIMENS", "available", "expert_mlp", "route", "sorted_slots", "why"]

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
    out,
    count,
    outputs,
    inputs,
    x_t,
    fan,
    GAINS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of one expert: slot s takes row s // fan of x and writes row s of out [count, outputs]."""
    block = tl.program_id(0)
    expert = tl.load(expert_of + block).to(tl.int64)
    if expert >= 0:
        slot = tl.load(slots + block * BLOCK_M + tl.arange(0, BLOCK_M))
        n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        in_m, in_n = slot < count, n < outputs
        row = (slot // fan).to(tl.int64)
        lines = expert * outputs * inputs + n.to(tl.int64) * inputs
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, inputs, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            live = (k < inputs)[None, :] | WHOLE
            a = tl.load(x + row[:, None] * x_t + k[None, :], mask=in_m[:, None] & live, other=0.0)
            b = tl.load(weight + lines[:, None] + k[None, :], mask=in_n[:, None] & live, other=0.0)
            acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee")
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


def expert_mlp(x: Tensor, gate_up: Tensor, down: Tensor, gains: Tensor, experts: Tensor) -> Tensor:
    """As `kernels.expert_mlp`; weights contiguous and of x's type. Raises ValueError where they are not."""
    if not (gate_up.is_contiguous() and down.is_contiguous() and x.dtype == gate_up.dtype == down.dtype):
        raise ValueError(f"contiguous expert weights of {x.dtype} are needed, got {gate_up.dtype} and {down.dtype}")
    count, size = experts.numel(), gate_up.shape[0]
    if not count:
        return torch.zeros_like(x)
    row = launch("experts", chip(x.device), "few" if count <= FEW * size else "many")
    order = sorted_slots(experts, size, row["BLOCK_M"])
    hidden = silu_mul(_product(x, gate_up, order, None, count, experts.shape[1], row))
    parts = _product(hidden, down, order, gains, count, 1, row)
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
    weight: Tensor,
    order: tuple[Tensor, Tensor],
    gains: Tensor | None,
    count: int,
    fan: int,
    row: dict[str, int],
) -> Tensor:
    """Row s of the result [count, N]: row s // fan of x times its expert's weight; with gains float32 and scaled."""
    outputs, inputs = weight.shape[1:]
    kind = x.dtype if gains is None else torch.float32
    out = torch.empty((count, outputs), dtype=kind, device=x.device)
    experts_kernel[(order[1].numel(), blocks(outputs, row["BLOCK_N"]))](
        x,
        weight,
        *order,
        x if gains is None else gains,
        out,
        count,
        outputs,
        inputs,
        x.stride(0),
        fan,
        GAINS=gains is not None,
        WHOLE=inputs % row["BLOCK_K"] == 0,
        **row,
    )
    return out


_SIGNATURE = {"x": "*bf16", "weight": "*bf16", "slots": "*i32", "expert_of": "*i32", "gains": "*fp32", "count": "i32"}
_SIGNATURE |= {"outputs": "i32:16", "inputs": "i32:16", "x_t": "i32:16", "fan": "i32"}
SPECIMENS = [
    Specimen(
        f"experts {key}{' with gains' if gains else ''}",
        experts_kernel,
        _SIGNATURE | {"out": "*fp32" if gains else "*bf16"},
        {"GAINS": gains, "WHOLE": True},
        ("experts", key),
    )
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
