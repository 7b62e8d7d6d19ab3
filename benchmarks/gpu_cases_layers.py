"""Cases of what stands between attention and products: norms, rotations with KV writes, activations, embeddings.

Knows: shapes of real models, torch's own functions. Must not know: how time is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu_case import ONCE, Case, different, normal
from torch import Tensor

from branchwork.kernels.reference import activation as plain_activation
from branchwork.kernels.reference import kv as plain_kv
from branchwork.kernels.triton import activation, embedding, kv, norm, rope

ALL = (torch.bfloat16, torch.float16, torch.float32)
EPS = 1e-5
Inputs = tuple[Tensor, ...]


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return wide * (wide.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


def add_norm(tokens: int, channels: int) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> Inputs:
        shapes = ((tokens, channels), (tokens, channels), (channels,))
        return tuple(normal(device, dtype, *shape, seed=i) for i, shape in enumerate(shapes))

    def exact(x: Inputs) -> Inputs:
        total = x[0] + x[1]
        return _normed(total, x[2]), total

    def torchs(x: Inputs) -> Callable[[], object]:
        return lambda: F.rms_norm(x[0] + x[1], (channels,), x[2], EPS)

    return Case(
        f"add_rms_norm {tokens} x {channels}",
        make,
        lambda x: norm.add_rms_norm(*x, EPS),
        exact,
        lambda item: 4 * tokens * channels * item,
        dtypes=ALL,
        tolerance=ONCE,
        rows=("norm.wide" if channels > 1024 else "norm.narrow",),
        rivals={"F.rms_norm": torchs},
    )


def head_norm(tokens: int, heads: int, dim: int) -> Case:
    """Heads normed where a fused product left them."""

    def make(device: torch.device, dtype: torch.dtype) -> Inputs:
        return normal(device, dtype, tokens, heads + 4, dim)[:, 1 : heads + 1], normal(device, dtype, dim, seed=1)

    return Case(
        f"rms_norm {tokens} x {heads} heads of {dim}",
        make,
        lambda x: norm.rms_norm(*x, EPS),
        lambda x: _normed(*x),
        lambda item: 2 * tokens * heads * dim * item,
        dtypes=ALL,
        tolerance=ONCE,
        rows=("norm.narrow",),
        rivals={"F.rms_norm": lambda x: lambda: F.rms_norm(x[0], (dim,), x[1], EPS)},
    )


def gate(tokens: int, size: int, gelu: bool = False) -> Case:
    def torchs(x: Tensor) -> Callable[[], object]:
        return lambda: F.silu(x[:, :size]) * x[:, size:]

    return Case(
        f"{'gelu' if gelu else 'silu'}_mul {tokens} x {size}",
        lambda device, dtype: normal(device, dtype, tokens, 2 * size),
        activation.gelu_mul if gelu else activation.silu_mul,
        lambda x: (plain_activation.gelu_mul if gelu else plain_activation.silu_mul)(x.double()),
        lambda item: 3 * tokens * size * item,
        dtypes=ALL,
        tolerance=ONCE,
        rows=("gate",),
        rivals={} if gelu else {"torch": torchs},
    )


def embed(tokens: int, vocab: int, size: int) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> Inputs:
        ids = torch.randint(vocab, (tokens,), generator=torch.Generator().manual_seed(0))
        return ids.to(device), normal(device, dtype, vocab, size)

    return Case(
        f"embedding {tokens} of {vocab} x {size}",
        make,
        lambda x: embedding.embedding(*x),
        lambda x: x[1].index_select(0, x[0]),
        lambda item: 2 * tokens * size * item,
        dtypes=ALL,
        tolerance=0.0,
        error=different,
        rows=("embedding",),
        rivals={"F.embedding": lambda x: lambda: F.embedding(*x)},
    )


def _fused(device: torch.device, dtype: torch.dtype, tokens: int, heads: int, kv_heads: int, dim: int) -> Inputs:
    """q, k, v as views of one product; cos, sin of large positions."""
    parts = normal(device, dtype, tokens, heads + 2 * kv_heads, dim).split([heads, kv_heads, kv_heads], 1)
    angles = torch.arange(tokens, device=device)[:, None] * torch.logspace(0, -4, dim // 2, device=device)
    return *parts, angles.cos(), angles.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.double().chunk(2, -1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    return torch.cat((a * c - b * s, b * c + a * s), -1)


def turn(tokens: int, heads: int = 32, kv_heads: int = 8, dim: int = 128) -> Case:
    return Case(
        f"rope {tokens} x {heads}/{kv_heads} heads of {dim}",
        lambda device, dtype: _fused(device, dtype, tokens, heads, kv_heads, dim),
        lambda x: rope.rope(x[0], x[1], x[3], x[4]),
        lambda x: (_turned(x[0], x[3], x[4]), _turned(x[1], x[3], x[4])),
        lambda item: tokens * (2 * (heads + kv_heads) * item + 4) * dim,
        dtypes=ALL,
        tolerance=ONCE,
        rows=("rope",),
    )


def store(tokens: int, pool: str = "", heads: int = 32, kv_heads: int = 8, dim: int = 128, size: int = 16) -> Case:
    """The rotation of q and k with the write of k and v to scattered slots; compared are q and what the pools hold."""
    held = {"": None, "int8": torch.int8, "e4m3": torch.float8_e4m3fn}[pool]

    def make(device: torch.device, dtype: torch.dtype) -> Inputs:
        q, k, v, cos, sin = _fused(device, dtype, tokens, heads, kv_heads, dim)
        kind, pages = held or dtype, -(-tokens // size) + 3
        shape = (pages, kv_heads, size, plain_kv.kv_row(dim, kind))
        pools = [torch.zeros(shape, dtype=kind, device=device) for _ in "kv"]
        slots = torch.randperm(pages * size, generator=torch.Generator().manual_seed(1))[:tokens]
        return q, k, v, cos, sin, *pools, slots.to(device)

    def read(pools: tuple[Tensor, ...], slots: Tensor) -> Inputs:
        found = [pool.view(torch.uint8) if pool.dtype == torch.float8_e4m3fn else pool for pool in pools]
        rows = [pool[slots // size, :, slots % size] for pool in found]
        if pool == "e4m3":
            return tuple(row.view(torch.float8_e4m3fn).float() for row in rows)
        return tuple(plain_kv.vectors(row, torch.float32) if pool else row for row in rows)

    def call(x: Inputs) -> Inputs:
        return kv.rope_store_kv(*x), *read(x[5:7], x[7])

    def exact(x: Inputs) -> Inputs:
        return _turned(x[0], x[3], x[4]), _turned(x[1], x[3], x[4]), x[2].double()

    row = {"": 0, "int8": dim + 8, "e4m3": dim}[pool]
    coarse = {"": 0.0, "int8": 0.03, "e4m3": 0.07}[pool]  # half a step: of a row's largest / 127, of a sixteenth
    return Case(
        f"rope_store_kv {tokens}{', ' + pool if pool else ''}",
        make,
        call,
        exact,
        lambda item: tokens * ((2 * heads + 2 * kv_heads) * dim * item + 2 * kv_heads * (row or dim * item)),
        dtypes=ALL if not pool else ALL[:2],
        tolerance={kind: max(limit, coarse) for kind, limit in ONCE.items()},
        rows=("store",),
        alone=lambda x: kv.rope_store_kv(*x),
    )


def timed() -> list[Case]:
    return [
        add_norm(64, 4096),
        add_norm(8192, 4096),
        head_norm(256, 32, 128),
        gate(64, 14336),
        gate(8192, 14336),
        embed(8192, 128256, 4096),
        store(64),
        store(8192),
        store(8192, "int8"),
        store(8192, "e4m3"),
    ]


def edges() -> list[Case]:
    return [
        add_norm(1, 2048),
        add_norm(3, 1500),
        head_norm(7, 3, 80),
        gate(3, 33),
        gate(2, 1100, gelu=True),
        embed(5, 70, 65),
        turn(9, 9, 2, 80),
        turn(513),
        store(7, "", 3, 2, 16, 1),
        store(100, "int8", 6, 2, 80, 64),
        store(100, "e4m3", 6, 2, 64, 64),
    ]


def tiny() -> list[Case]:
    cases = [
        add_norm(3, 48),
        head_norm(2, 3, 16),
        gate(2, 33),
        gate(2, 33, gelu=True),
        embed(3, 10, 24),
        turn(2, 3, 1, 16),
        store(3, "", 3, 2, 16, 4),
        store(3, "int8", 3, 2, 16, 4),
    ]
    return [case._replace(dtypes=(torch.float32,)) for case in cases]


__all__ = ["add_norm", "edges", "embed", "gate", "head_norm", "store", "timed", "tiny", "turn"]
