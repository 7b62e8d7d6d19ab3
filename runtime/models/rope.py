"""Rotary frequencies of each scaling kind.

Knows: the formulas. Must not know: layers, weights, where positions come from.
Sources: kaiokendev (linear), Meta's Llama 3.1 code (llama3), Peng et al. 2023 (yarn).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from branchwork.runtime.models.spec import RopeSpec


def frequencies(spec: RopeSpec, dim: int) -> tuple[Tensor, float]:
    """(radians per position float32 [dim / 2], factor on cos and sin)."""
    plain = 1.0 / (spec.theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
    return KINDS[spec.kind](spec, plain)


def _default(spec: RopeSpec, plain: Tensor) -> tuple[Tensor, float]:
    return plain, 1.0


def _linear(spec: RopeSpec, plain: Tensor) -> tuple[Tensor, float]:
    return plain / spec.parameters["factor"], 1.0


def _llama3(spec: RopeSpec, plain: Tensor) -> tuple[Tensor, float]:
    """Long waves are stretched by `factor`, short ones kept, those between blended."""
    factor, low, high, original = (
        spec.parameters[name]
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    wavelength = 2 * math.pi / plain
    blend = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * plain / factor + blend * plain, 1.0


def _yarn(spec: RopeSpec, plain: Tensor) -> tuple[Tensor, float]:
    """Interpolate the dimensions that turn less than beta_slow times over the trained context, keep the fast ones."""
    given = spec.parameters
    factor, original = given["factor"], given["original_max_position_embeddings"]
    dim = 2 * plain.numel()

    def turning(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(spec.theta))

    low, high = turning(given.get("beta_fast", 32.0)), turning(given.get("beta_slow", 1.0))
    if given.get("truncate", 1.0):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2).float() - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    mixed = plain / factor * ramp + plain * (1 - ramp)
    if "attention_factor" in given:
        return mixed, given["attention_factor"]
    if given.get("mscale") and given.get("mscale_all_dim"):
        return mixed, _mscale(factor, given["mscale"]) / _mscale(factor, given["mscale_all_dim"])
    return mixed, _mscale(factor, 1.0)


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factors(spec: RopeSpec, plain: Tensor) -> tuple[Tensor, float]:
    """Each frequency divided by a number of its own, as GGUF files spell llama3."""
    return plain / torch.tensor(spec.factors), 1.0


# dynamic rescales only past the trained context, which is where the runtime ends a transcript: up to there it is plain
KINDS: dict[str, Callable[[RopeSpec, Tensor], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
    "factors": _factors,
}
