"""Paged attention on GPUs by Triton kernels: decode, extend, shared prefixes and draft trees as tiles of one plan.

Knows: tensor layouts, launches, the plan of a step. Must not know: requests, models, which op the table picks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from branchwork.kernels.reference.kv import ROW_TAIL
from branchwork.kernels.table import chip
from branchwork.kernels.triton import attention_kernels, attention_plan
from branchwork.kernels.triton.attention_plan import Plan, Policy, Shape
from branchwork.kernels.triton.language import available, power_of_2, why
from branchwork.kernels.triton.tuning import heights, launch

__all__ = [
    "Placed",
    "attend",
    "available",
    "paged_attention",
    "place",
    "placed",
    "read_back",
    "shape_for",
    "shape_of",
    "tree_attention",
    "why",
]

LOG2_E = 1.4426950408889634
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_BYTES = (torch.uint8, torch.float8_e4m3fn)


def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    page_table: Tensor,
    cu_rows: Tensor,
    kv_len: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    policy: Policy = Policy(),  # noqa: B008 (frozen)
    plan: Placed | None = None,
) -> Tensor:
    """As `kernels.paged_attention`; softcap > 0 makes the scores softcap * tanh(scores / softcap).

    Rows whose page tables begin alike read their common pages once. Pools hold q's type, int8 as `store_kv` writes it,
    or e4m3 bytes (float8_e4m3fn or uint8), any strides but 1 in the last dimension. With a plan, which must be of these
    rows and this window, the tables are not looked at; without one they are read on the host, which waits for the
    device.

    Raises ValueError for types, shapes or strides that do not fit.
    """
    _check_pools(q, k_pool, v_pool)
    if plan is None:
        plan = read_back(q, k_pool, page_table, cu_rows, kv_len, None, window, policy)
    return attend(q, k_pool, v_pool, plan, scale, window, softcap)


def tree_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    page_table: Tensor,
    cu_rows: Tensor,
    kv_len: Tensor,
    ancestors: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    policy: Policy = Policy(),  # noqa: B008 (frozen)
    plan: Placed | None = None,
) -> Tensor:
    """`paged_attention` of rows whose last min(n, 64) tokens are a tree: siblings do not see each other.

    ancestors int32 [T, 2]: bit j of a token's 64 says that it sees the j-th of these tokens of its row. Its own bit is
    set, those of later tokens are not; a token before the tree has none. The window applies to what is before the tree,
    counted from a token's depth in it. A plan must have been made with the same ancestors.
    """
    if ancestors.dtype != torch.int32 or ancestors.shape != (len(q), 2) or not ancestors.is_contiguous():
        raise ValueError(f"ancestors must be contiguous int32 [{len(q)}, 2], got {tuple(ancestors.shape)}")
    _check_pools(q, k_pool, v_pool)
    if plan is None:
        plan = read_back(q, k_pool, page_table, cu_rows, kv_len, ancestors, window, policy)
    return attend(q, k_pool, v_pool, plan, scale, window, softcap, ancestors)


@dataclass(frozen=True, slots=True)
class Placed:
    """A Plan on its device; what `attend` launches."""

    launches: tuple[tuple[int, Tensor], ...]  # (height, tiles)
    order: Tensor
    at: Tensor
    slots: int
    merged: Tensor
    cuts: Tensor
    parts: Tensor
    pages: Tensor


def placed(plan: Plan, tensors: Sequence[Tensor]) -> Placed:
    """A plan whose `arrays` are these tensors, each beginning at 16 bytes, for which kernels are compiled."""
    count = len(plan.launches)
    launches = tuple((part.height, tiles.view(-1, 8)) for part, tiles in zip(plan.launches, tensors))
    order, at, merged, cuts, parts, pages = tensors[count:]
    return Placed(launches, order, at, plan.slots, merged, cuts, parts, pages)


def place(plan: Plan, device: torch.device) -> Placed:
    """The plan's arrays on the device, in one copy."""
    joined = [part if isinstance(part, np.ndarray) else np.concatenate(part) for part in plan.arrays]
    sizes = [-(-len(array) // 4) * 4 for array in joined]
    flat = np.concatenate([np.pad(array, (0, size - len(array))) for array, size in zip(joined, sizes)])
    pieces = torch.from_numpy(flat).to(device).split(sizes)
    return placed(plan, [piece[: len(array)] for piece, array in zip(pieces, joined)])


def attend(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    placed: Placed,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    ancestors: Tensor | None = None,
) -> Tensor:
    """The planned tiles, then the merge of their parts. Nothing here waits for the device or reads from it.

    The plan must be of these shapes and this window, and made with the same ancestors.
    """
    kind, k_pool, v_pool, key_scales, value_scales = _pools(q, k_pool, v_pool)
    heads, dim = q.shape[1:]
    kv_heads, size = k_pool.shape[1:3]
    padded = _padded(dim)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    mixes = torch.empty((placed.slots, heads, dim), dtype=torch.float32, device=q.device)
    tops = torch.empty((placed.slots, heads), dtype=torch.float32, device=q.device)
    first, second = _factors(scale, softcap, kind)
    scales = (mixes, mixes) if key_scales is None or value_scales is None else (key_scales, value_scales)
    scale_steps = (0, 0, 0) if key_scales is None else key_scales.stride()[:3]
    here = chip(q.device)
    for height, tiles in placed.launches:
        attention_kernels.attend[(len(tiles) * kv_heads,)](
            q, k_pool, v_pool, *scales, out, mixes, tops,
            placed.pages, tiles, placed.order, placed.at, placed.at if ancestors is None else ancestors,
            first, second, q.stride(0), q.stride(1), out.stride(0), *k_pool.stride()[:3], *scale_steps, window,
            KVH=kv_heads, G=heads // kv_heads, D=dim, DP=padded, PAGE=size, KV=kind, HEIGHT=height,
            WINDOWED=window > 0, CAPPED=softcap > 0, TREE=ancestors is not None,
            **launch("attend", here, f"{height}x{_width(dim, q.dtype)}"),
        )  # fmt: skip
    if len(placed.merged):
        row = launch("merge", here)
        attention_kernels.merge[(len(placed.merged), -(-heads // row["HEADS"]))](
            mixes, tops, out, placed.merged, placed.cuts, placed.parts, out.stride(0), H=heads, D=dim, DP=padded, **row
        )
    return out


def shape_of(q: Tensor, k_pool: Tensor, window: int) -> Shape:
    """What `attention_plan.plan` must know of a call."""
    kv_heads, size = k_pool.shape[1:3]
    return shape_for(q.shape[1], kv_heads, q.shape[2], size, q.dtype, window, q.device)


def shape_for(
    heads: int, kv_heads: int, dim: int, size: int, dtype: torch.dtype, window: int, device: torch.device
) -> Shape:
    """The same of a call with so many heads of this width, pages of `size` slots and q of this type."""
    units = 8 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count
    return Shape(size, heads // kv_heads, kv_heads, heights(_width(dim, dtype)), units, window)


def read_back(
    q: Tensor,
    k_pool: Tensor,
    page_table: Tensor,
    cu_rows: Tensor,
    kv_len: Tensor,
    ancestors: Tensor | None,
    window: int,
    policy: Policy,
) -> Placed:
    """A plan from tables on the device, for who has them nowhere else. Waits for the device.

    Raises ValueError for tables of another type or shape.
    """
    _check_tables(page_table, cu_rows, kv_len)
    table, cuts, length = (tensor.cpu().numpy() for tensor in (page_table, cu_rows, kv_len))
    shape = shape_of(q, k_pool, window)
    words = None if ancestors is None else ancestors.cpu().numpy()
    return place(attention_plan.plan(list(table), cuts, length, shape, policy, words), q.device)


def _check_pools(q: Tensor, k_pool: Tensor, v_pool: Tensor) -> None:
    held = k_pool.dtype
    if q.dtype not in _FLOATS or v_pool.dtype != held or held not in (q.dtype, torch.int8, *_BYTES):
        raise ValueError(
            "q and the pools must share bfloat16, float16 or float32, or the pools be int8 or e4m3 bytes; "
            f"got {q.dtype}, {held}, {v_pool.dtype}"
        )
    heads, dim = q.shape[1:]
    row = dim + ROW_TAIL * (held == torch.int8)
    if k_pool.shape[3] != row or heads % k_pool.shape[1] or v_pool.shape != k_pool.shape or dim > 256:
        raise ValueError(f"q {tuple(q.shape)} does not fit pools {tuple(k_pool.shape)} and {tuple(v_pool.shape)}")
    if held == torch.int8 and any(step % 8 for step in (dim, *k_pool.stride()[:3])):
        raise ValueError(
            f"8 must divide the head dimension and the strides of int8 pools, got {dim}, {k_pool.stride()}"
        )
    if q.stride(2) != 1 or k_pool.stride(3) != 1 or k_pool.stride() != v_pool.stride():
        raise ValueError(
            "the last dimension of q and of the pools must be contiguous, and the pools have the same strides"
        )


def _check_tables(page_table: Tensor, cu_rows: Tensor, kv_len: Tensor) -> None:
    rows = len(kv_len)
    for name, table, shape in (("cu_rows", cu_rows, (rows + 1,)), ("kv_len", kv_len, (rows,))):
        if table.dtype != torch.int32 or table.shape != shape:
            raise ValueError(f"{name} must be int32 {shape}, got {table.dtype} {tuple(table.shape)}")
    if page_table.dtype != torch.int32 or page_table.shape[0] != rows or page_table.stride(1) != 1:
        raise ValueError(
            f"page_table must be int32 [{rows}, maxpages], got {page_table.dtype} {tuple(page_table.shape)}"
        )


def _pools(q: Tensor, k_pool: Tensor, v_pool: Tensor) -> tuple[int, Tensor, Tensor, Tensor | None, Tensor | None]:
    """What the pools hold, the pools as the kernel reads them, and views [P, KVH, S, 1] of an int8 pool's scales."""
    if k_pool.dtype == torch.int8:
        at = q.shape[2] // 4
        key_scales, value_scales = (pool.view(torch.float32)[..., at : at + 1] for pool in (k_pool, v_pool))
        return attention_kernels.INT8, k_pool, v_pool, key_scales, value_scales
    if k_pool.dtype in _BYTES:
        return attention_kernels.FP8, k_pool.view(torch.uint8), v_pool.view(torch.uint8), None, None
    return attention_kernels.PLAIN, k_pool, v_pool, None, None


def _factors(scale: float, softcap: float, kind: int) -> tuple[float, float]:
    """The kernel's `scale` and `cap`: scores come out in base 2, keys from bytes a factor 256 too small."""
    if kind == attention_kernels.FP8:
        scale *= 256.0
    if softcap > 0:
        return scale * 2.0 * LOG2_E / softcap, softcap * LOG2_E
    return scale * LOG2_E, 0.0


def _padded(dim: int) -> int:
    """The width that a head vector is padded to: what a matrix unit multiplies."""
    return max(16, power_of_2(dim))


def _width(dim: int, dtype: torch.dtype) -> str:
    """The tuning table's name for head vectors."""
    return f"{max(128, _padded(dim))}{'f' if dtype == torch.float32 else ''}"
