"""Every op that a model's forward consists of, as one function each: the only door to the kernels.

Knows: signatures and shapes. Must not know: models, the runtime, what hardware this is (table.py asks that).
T tokens, C channels, H query heads, KVH key/value heads, D head dimension, P pages of S slots, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from branchwork.kernels.cpu.product import Packed
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.kv import kv_row
from branchwork.kernels.reference.planning import AttentionPlanner, HostPlan, PagedRows
from branchwork.kernels.reference.quant import BLOCK, Quantized
from branchwork.kernels.reference.sample import Draws
from branchwork.kernels.reference.stack import Affine, Experts, Gated, LayerParts, Stack, StackParts
from branchwork.kernels.table import Choice, implementation, report, serves_float8

Weight = Tensor | Quantized | Packed | Float8  # what a product takes
Stored = Tensor | Quantized | Float8  # what files hold
ExpertWeights = Tensor | Quantized | Float8 | Sequence[Weight]  # one weight for each expert

__all__ = [
    "Affine",
    "AttentionPlanner",
    "Choice",
    "ExpertWeights",
    "Experts",
    "Float8",
    "Gated",
    "HostPlan",
    "LayerParts",
    "Packed",
    "PagedRows",
    "Quantized",
    "Stack",
    "StackParts",
    "Stored",
    "Weight",
    "add_rms_norm",
    "apply_mask",
    "attention_planner",
    "embedding",
    "expert_mlp",
    "gelu",
    "gelu_mul",
    "kv_row",
    "layer_norm",
    "linear",
    "pack_experts",
    "pack_linear",
    "paged_attention",
    "penalise",
    "quantize",
    "ragged_attention",
    "report",
    "rms_norm",
    "rope",
    "rope_store_kv",
    "route",
    "sample",
    "serves_float8",
    "silu_mul",
    "stack",
    "store_kv",
    "tree_attention",
]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32. x [T, C] or [T, H, D]; weight [C] or [D]."""
    out: Tensor = implementation("rms_norm", x.device.type)(x, weight, eps)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(residual + x), residual + x), each [T, C]."""
    out: tuple[Tensor, Tensor] = implementation("add_rms_norm", x.device.type)(x, residual, weight, eps)
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension. x [T, C], weight and bias [C]."""
    out: Tensor = implementation("layer_norm", x.device.type)(x, weight, bias, eps)
    return out


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [T, H, D] and k [T, KVH, D] rotated by cos, sin [T, D/2] (float32), rotate-half layout. Returns new tensors.

    q and k may be views of one fused projection: only their last two dimensions are contiguous.
    """
    out: tuple[Tensor, Tensor] = implementation("rope", q.device.type)(q, k, cos, sin)
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [T, 2F], gate in the first half. Returns [T, F]."""
    out: Tensor = implementation("silu_mul", gate_up.device.type)(gate_up)
    return out


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution's share below x, in its exact form. x [T, F] contiguous."""
    out: Tensor = implementation("gelu", x.device.type)(x)
    return out


def gelu_mul(gate_up: Tensor) -> Tensor:
    """As silu_mul, with gelu in its tanh form for the gate."""
    out: Tensor = implementation("gelu_mul", gate_up.device.type)(gate_up)
    return out


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]. Returns [T, N] of x's dtype.

    The weight is a tensor or what pack_linear made; a Float8 is for GPUs. A product with integer weights rounds its
    inputs to integers, too, where whole numbers are what is fast: on CPUs, not on GPUs.
    """
    out: Tensor = implementation("linear", x.device.type)(x, weight, bias)
    return out


def pack_linear(weight: Stored, dtype: torch.dtype | None = None) -> Weight:
    """weight [N, K] in the layout that `linear` is fastest with on its device; of use to `linear` alone.

    May be a copy: drop the original where nothing else needs it. dtype: what a Quantized weight becomes where nothing
    here multiplies integers, and a Float8 on CPUs (bfloat16 if not given). Raises ValueError for parts that do not fit.
    """
    device = (weight if isinstance(weight, Tensor) else weight.values).device.type
    out: Weight = implementation("pack_linear", device)(weight, dtype)
    return out


def quantize(weight: Tensor, bits: int, group: int = BLOCK, offsets: bool | None = None) -> Quantized:
    """weight [N, K] as integers of 4 or 8 bits in groups of K, as kernels.reference.quant says.

    Raises ValueError where bits or group do not fit.
    """
    out: Quantized = implementation("quantize", weight.device.type)(weight, bits, group, offsets)
    return out


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of table [V, C] at ids int64 [T]. Returns [T, C]."""
    out: Tensor = implementation("embedding", ids.device.type)(ids, table)
    return out


def route(logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """(gains float32 [T, top_k], experts int32 [T, top_k]) of a router's logits [T, E]: the likeliest, best first.

    gains: the experts' probabilities, with `renormalize` divided by their sum. Equal logits go by expert.
    """
    out: tuple[Tensor, Tensor] = implementation("route", logits.device.type)(logits, top_k, renormalize)
    return out


def pack_experts(
    blocks: Iterable[tuple[Stored, Stored]], count: int, dtype: torch.dtype, device: torch.device
) -> tuple[ExpertWeights, ExpertWeights]:
    """(gate_up, down) of `count` experts' blocks, each (gate over up [2F, C], down [C, F]), for `expert_mlp` on device.

    The blocks are read one after another. dtype: that of rows, and of weights that nothing here multiplies as they are.
    """
    out: tuple[ExpertWeights, ExpertWeights] = implementation("pack_experts", device.type)(blocks, count, dtype)
    return out


def expert_mlp(x: Tensor, gate_up: ExpertWeights, down: ExpertWeights, gains: Tensor, experts: Tensor) -> Tensor:
    """The chosen experts' feed-forward blocks (silu_mul between two products), weighed by gains and added. [T, C].

    x [T, C]; gate_up and down as `pack_experts` made them, or tensors [E, 2F, C] and [E, C, F] of x's type; gains,
    experts [T, k] as `route` gives them.
    """
    out: Tensor = implementation("expert_mlp", x.device.type)(x, gate_up, down, gains, experts)
    return out


def store_kv(k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor) -> None:
    """Write k, v [T, KVH, D] to the pools [P, KVH, S, D] in place; slots int64 [T], slot = page * S + offset.

    Pools of int8 are [P, KVH, S, D + 8]: D integers, their float32 scale (absmax / 127), four unused bytes. Pools of
    float8_e4m3fn have no scale: what is beyond 448 becomes 448.
    """
    implementation("store_kv", k.device.type)(k, v, k_pool, v_pool, slots)


def rope_store_kv(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor
) -> Tensor:
    """`rope` of q and k, then `store_kv` of the rotated k and of v, in one pass. Returns the rotated q [T, H, D]."""
    out: Tensor = implementation("rope_store_kv", q.device.type)(q, k, v, cos, sin, k_pool, v_pool, slots)
    return out


def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    page_table: Tensor,
    cu_rows: Tensor,
    kv_len: Tensor,
    scale: float,
    window: int,
    plan: Any = None,
) -> Tensor:
    """Causal attention of ragged rows: q [T, H, D] over the pools [P, KVH, S, D], of q's type, or int8 or
    float8_e4m3fn (on GPUs) as `store_kv` writes it. Returns [T, H, D].

    page_table int32 [R, maxpages], cu_rows int32 [R + 1], kv_len int32 [R]: row r owns q[cu_rows[r] : cu_rows[r + 1]];
    the i-th of its n tokens stands at position kv_len[r] - n + i and attends to all positions up to its own, or to the
    last `window` of them (its own included) when window > 0. Query head h reads key head h // (H // KVH).

    plan: what attention_planner made of these rows for this window. With it the three tables are not looked at; without
    it a device that plans on the host must be waited for.
    """
    out: Tensor = implementation("paged_attention", q.device.type, q.shape[-1])(
        q, k_pool, v_pool, page_table, cu_rows, kv_len, scale, window, plan=plan
    )
    return out


def ragged_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Attention of texts that lie one behind the other, every token to all tokens of its own text. Returns [T, H, D].

    q, k, v [T, H, D], which may be views of one fused product; lengths: tokens of each text, T together. Texts of one
    length are best neighbours.
    """
    out: Tensor = implementation("ragged_attention", q.device.type)(q, k, v, lengths, scale)
    return out


def attention_planner(
    heads: int,
    kv_heads: int,
    dim: int,
    page_size: int,
    dtype: torch.dtype,
    windows: Sequence[int],
    device: torch.device,
) -> AttentionPlanner | None:
    """Plans a model's attention on the host before each step; None where nothing is to be planned.

    heads, kv_heads, dim: of every layer; dtype: of q; windows: those that layers have, 0 for none.
    """
    make = implementation("attention_planner", device.type)
    out: AttentionPlanner | None = make(heads, kv_heads, dim, page_size, dtype, windows, device)
    return out


def apply_mask(logits: Tensor, masks: Tensor, mask_of: Tensor) -> None:
    """Forbid, in place, what row r's bitmask masks[mask_of[r]] does not allow: logits [M, V] become -inf there.

    masks int32 [n, >= ceil(V / 32)], bit = allowed; mask_of int64 [M], -1 for a row without a mask.
    """
    implementation("apply_mask", logits.device.type)(logits, masks, mask_of)


def penalise(
    logits: Tensor, answer: Sequence[int], prompt: Sequence[int], frequency: float, presence: float, repetition: float
) -> None:
    """Lower, in place, the logits [V] of tokens that occurred, as kernels.reference.sample defines it."""
    implementation("penalise", logits.device.type)(logits, answer, prompt, frequency, presence, repetition)


def tree_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    page_table: Tensor,
    cu_rows: Tensor,
    kv_len: Tensor,
    ancestors: Tensor,
    scale: float,
    window: int,
    plan: Any = None,
) -> Tensor:
    """`paged_attention` of rows whose last min(n, 64) tokens are a tree of drafts: siblings do not see each other.

    ancestors int32 [T, 2]: bit j of a token's 64 says that it sees the j-th of these tokens of its row. Its own bit is
    set, those of later tokens are not; a token before the tree has none. The window applies to what is before the tree,
    counted from a token's depth in it. plan: as paged_attention's, made with the same ancestors.
    """
    out: Tensor = implementation("tree_attention", q.device.type, q.shape[-1])(
        q, k_pool, v_pool, page_table, cu_rows, kv_len, ancestors, scale, window, plan=plan
    )
    return out


def sample(
    logits: Tensor,
    draws: Draws,
    rows: NDArray[np.int64],
    masks: Tensor | None = None,
    mask_of: NDArray[np.int64] | None = None,
) -> Tensor:
    """One token for each of `rows`, indices [N] into logits [M, V] float32, as kernels.reference.sample defines it.

    int64 [N] on the logits' device, which nothing here waits for.

    masks: int32 bitmasks [n, ceil(V / 32)], bit = allowed; mask_of [N]: the mask's index for each draw, -1 for none.
    Instead of a token: NOT_FINITE or ALL_MASKED of that module.
    """
    out: Tensor = implementation("sample", logits.device.type)(logits, draws, rows, masks, mask_of)
    return out


def stack(parts: StackParts) -> Stack | None:
    """All layers of a decoder as one call; None where only the ops above serve it.

    Reads the layers only in the first case.
    """
    out: Stack | None = implementation("stack", parts.norm.device.type)(parts)
    return out
