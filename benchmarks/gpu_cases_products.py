"""Cases of matrix products with weights of fewer bits, and of mixtures of experts.

Knows: shapes of real models, the weights' formats. Must not know: how time is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpu_case import CLOSE, ONCE, Case, normal
from torch import Tensor

from branchwork.kernels.reference import float8
from branchwork.kernels.reference import moe as plain
from branchwork.kernels.reference import quant as plain_quant
from branchwork.kernels.reference.float8 import Float8
from branchwork.kernels.reference.quant import Quantized
from branchwork.kernels.triton import linear, moe
from branchwork.kernels.triton.moe import FEW as FEW_SLOTS
from branchwork.kernels.triton.quant import FEW

ALL = (torch.bfloat16, torch.float16, torch.float32)
BYTES = {"": 0.0, "int8": 1.0, "int4": 0.5, "e4m3": 1.0}  # of a weight, scales left out; 0: as many as a row's number
KINDS = ("int8", "int4", "e4m3", "e4m3 blocks")


class Product(NamedTuple):
    x: Tensor
    weight: Quantized | Float8
    bias: Tensor | None


def random_weight(kind: str, device: torch.device, outputs: int, inputs: int, group: int) -> Quantized | Float8:
    """Random stored numbers with scales that give a deviation of about 1 / sqrt(K): made, not searched for."""
    generator = torch.Generator(device).manual_seed(7)
    size = inputs**-0.5
    if kind.startswith("e4m3"):
        values = normal(device, torch.float32, outputs, inputs, seed=7, scale=64.0).clamp(-448, 448)
        block = (128, 128) if kind.endswith("blocks") else (outputs, inputs)
        shape = (-(-outputs // block[0]), -(-inputs // block[1]))
        scales = torch.rand(shape, generator=generator, device=device).add(0.5).mul(size / 64)
        return Float8(values.to(torch.float8_e4m3fn), scales, block)
    bits = int(kind[3])
    shape = (outputs, inputs * bits // 8)
    low, high, of = (-127, 128, torch.int8) if bits == 8 else (0, 256, torch.uint8)
    values = torch.randint(low, high, shape, generator=generator, device=device, dtype=torch.int16).to(of)
    scales = torch.rand((outputs, inputs // group), generator=generator, device=device).add(0.5)
    scales = scales.mul(size / (73 if bits == 8 else 4.6)).half()
    offsets = scales * -7.5 if bits == 4 else None
    return Quantized(values, scales, offsets, bits, group)


def widened(weight: Tensor | Quantized | Float8, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    if isinstance(weight, Float8):
        return float8.dequantize(weight, dtype)
    return plain_quant.dequantize(weight, dtype)


def product(kind: str, rows: int, outputs: int, inputs: int, group: int = 128, bias: bool = False) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> Product:
        return Product(
            normal(device, dtype, rows, inputs),
            random_weight(kind, device, outputs, inputs, group),
            normal(device, dtype, outputs, seed=1) if bias else None,
        )

    def exact(x: Product) -> Tensor:
        out = x.x.double() @ widened(x.weight, torch.float32).double().T
        return out if x.bias is None else out + x.bias.double()

    def dequantized(x: Product) -> Callable[[], object]:
        return lambda: F.linear(x.x, widened(x.weight, x.x.dtype), x.bias)

    def floats(x: Product) -> Callable[[], object]:
        return partial(F.linear, x.x, widened(x.weight, x.x.dtype), x.bias)

    bits = 4 if kind == "int4" else 8
    scales = {"int4": 4 / group, "int8": 2 / group, "e4m3": 0.0, "e4m3 blocks": 4 / 128**2}[kind]
    key = "few" if rows <= FEW else "many"
    return Case(
        f"linear {kind} {rows} x {inputs} to {outputs}",
        make,
        lambda x: linear.linear(*x),
        exact,
        lambda item: outputs * inputs * (bits / 8 + scales) + rows * (inputs + outputs) * item,
        2.0 * rows * outputs * inputs,
        dtypes=ALL,
        tolerance={**ONCE, torch.float32: CLOSE[torch.float32]},
        rows=(f"{'int4' if kind == 'int4' else 'bytes'}.{key}", "sum_splits"),
        rivals={"dequantize + matmul": dequantized, "matmul of floats": floats},
    )


def one_of(weights: Tensor | Quantized | Float8, expert: int) -> Tensor | Quantized | Float8:
    """An expert's weight of those stacked."""
    if isinstance(weights, Tensor):
        return weights[expert]
    parts = {name: part[expert] for name, part in weights._asdict().items() if isinstance(part, Tensor)}
    return weights._replace(**parts)


def experts(tokens: int, size: int, top_k: int, channels: int, ffn: int, kind: str = "", group: int = 128) -> Case:
    """kind: of the weights, "" for floats as the rows are."""

    def make(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        gains, chosen = plain.route(normal(device, torch.float32, tokens, size, seed=3), top_k, True)
        if kind:
            up, down_ = ((2 * ffn, channels), (channels, ffn))
            pairs = ((random_weight(kind, device, *up, group), random_weight(kind, device, *down_, group)),) * size
            return normal(device, dtype, tokens, channels), *moe.pack_experts(pairs, size, dtype), gains, chosen
        gate_up = torch.empty(size, 2 * ffn, channels, dtype=dtype, device=device)
        down = torch.empty(size, channels, ffn, dtype=dtype, device=device)
        for e in range(size):
            gate_up[e] = normal(device, dtype, 2 * ffn, channels, seed=10 + e, scale=channels**-0.5)
            down[e] = normal(device, dtype, channels, ffn, seed=99 + e, scale=ffn**-0.5)
        return normal(device, dtype, tokens, channels), gate_up, down, gains, chosen

    def exact(x: tuple[Any, ...]) -> Tensor:
        """An expert at a time: float64 copies of all of them would not fit."""
        out = torch.zeros(x[0].shape, dtype=torch.float64, device=x[0].device)
        for e in range(size):
            gains = x[3].double().where(x[4] == e, 0.0).sum(1, keepdim=True)
            token = gains[:, 0].nonzero()[:, 0]
            gate_up, down = (widened(one_of(weights, e), torch.float64) for weights in x[1:3])
            gate, up = (x[0][token].double() @ gate_up.T).chunk(2, -1)
            out[token] += (F.silu(gate) * up) @ down.T * gains[token]
        return out

    def by_expert(x: tuple[Any, ...]) -> Callable[[], object]:
        return lambda: plain.expert_mlp(*x)

    used = min(size, tokens * top_k)
    slots = tokens * top_k
    return Case(
        f"experts {tokens} tokens, {top_k} of {size} x {channels} x {ffn}{f' {kind}' if kind else ''}",
        make,
        lambda x: moe.expert_mlp(*x),
        exact,
        lambda item: used * 3 * channels * ffn * (BYTES[kind] or item) + slots * (2 * channels + 4 * ffn) * item,
        6.0 * slots * channels * ffn,
        dtypes=ALL,
        rows=(f"experts.{'bytes ' if kind else ''}{'few' if slots <= FEW_SLOTS * size else 'many'}", "gate"),
        rivals={} if kind else {"expert by expert": by_expert},
    )


def routed(tokens: int, size: int, top_k: int) -> Case:
    def gained(x: Tensor) -> tuple[Tensor, ...]:
        gains, chosen = moe.route(x, top_k, True)
        return gains, chosen

    return Case(
        f"route {tokens} tokens, {top_k} of {size}",
        # ranks: two numbers that a softmax's rounding makes equal would be a tie for one way and none for another
        lambda device, dtype: normal(device, dtype, tokens, size).argsort(-1).to(dtype) * 0.05,
        gained,
        lambda x: plain.route(x, top_k, True),
        lambda item: tokens * (size * item + top_k * 8),
        dtypes=(torch.float32,),
        tolerance=1e-5,
        rows=("route",),
        rivals={"softmax + topk": lambda x: lambda: x.float().softmax(-1).topk(top_k)},
    )


def timed() -> list[Case]:
    wide, narrow = (28672, 4096), (4096, 14336)  # gate and up of an 8B Llama, and its down
    return [
        *(product(kind, rows, *wide) for kind in KINDS[:3] for rows in (1, 64)),
        product("int4", 16, *narrow),
        product("int8", 256, *wide),
        product("int4", 256, *wide),
        product("e4m3 blocks", 256, *wide),
        product("int4", 4096, *narrow),
        experts(64, 8, 2, 4096, 14336),
        experts(2048, 8, 2, 4096, 14336),
        experts(64, 8, 2, 4096, 14336, "int4"),
        experts(2048, 8, 2, 4096, 14336, "e4m3"),
        routed(8192, 128, 8),
    ]


def edges() -> list[Case]:
    return [
        *(product(kind, rows, 70, 256, 64, bias=True) for kind in KINDS for rows in (1, 5, 40)),
        product("int8", 33, 300, 96, 32),
        product("int4", 3, 130, 4096, 32),
        experts(1, 4, 2, 64, 32),
        experts(11, 3, 2, 40, 24),
        experts(300, 5, 1, 128, 96),
        *(experts(tokens, 3, 2, 64, 32, kind, 32) for kind in ("int8", "int4", "e4m3") for tokens in (5, 90)),
        routed(37, 60, 4),
        routed(3, 1, 1),
    ]


def tiny() -> list[Case]:
    cases = [
        product("int8", 2, 33, 64, 32, bias=True),
        product("int4", 2, 33, 64, 64),
        product("e4m3", 2, 33, 40, bias=True),
        experts(3, 2, 1, 24, 16),
        routed(3, 5, 2),
    ]
    return [case._replace(dtypes=(torch.float32,)) for case in cases]
