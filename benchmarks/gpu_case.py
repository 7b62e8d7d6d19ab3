"""What a kernel of the GPU is tried on: inputs of one shape, the definition in float64, and what the call must cost.

Knows: torch, how errors are measured, rooflines. Must not know: any kernel, how time is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]
CLOSE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}  # of `distance`, for sums of rounded products
ONCE = {torch.float32: 4e-6, torch.float16: 1.1e-3, torch.bfloat16: 8.5e-3}  # for results rounded once


class Aim(NamedTuple):
    """what: "roofline" (share of it, at least), "microseconds" (at most), or a rival (how many times its time)."""

    what: str
    value: float


class Case(NamedTuple):
    """One call. make(device, dtype): its inputs, the same for the same device; call: our kernels on them; exact: the
    definition on them, in float64 where its sums matter.

    dtypes: what it is tried with, the first of them timed. tolerance: of `error` by dtype, or one for all. moved(item):
    bytes that must be read and written with elements of `item` bytes; operations: multiplications and additions of
    matrix units. rows: the launch parameters it uses. rivals: other ways to the same result; each takes the inputs and
    gives what is timed. alone: the call without what only a comparison needs, where that is another thing.
    """

    name: str
    make: Callable[[torch.device, torch.dtype], Any]
    call: Callable[[Any], Outputs]
    exact: Callable[[Any], Outputs]
    moved: Callable[[int], float]
    operations: float = 0.0
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)
    tolerance: Mapping[torch.dtype, float] | float = CLOSE
    error: Callable[[Outputs, Outputs], float] = lambda found, exact: distance(found, exact)
    rows: tuple[str, ...] = ()
    rivals: Mapping[str, Callable[[Any], Callable[[], object]]] = {}
    aims: tuple[Aim, ...] = ()
    alone: Callable[[Any], object] | None = None

    def once(self, inputs: Any) -> object:
        """What is timed."""
        return (self.alone or self.call)(inputs)

    def allowed(self, dtype: torch.dtype) -> float:
        return self.tolerance if isinstance(self.tolerance, float) else self.tolerance[dtype]

    def fault(self, device: torch.device, dtype: torch.dtype) -> float:
        """The error of our call, as `error` measures it; NaN where the result holds any that the definition has not."""
        inputs = self.make(device, dtype)
        exact = self.exact(inputs)  # first: some calls write into their inputs
        return self.error(self.call(inputs), exact)


def distance(found: Outputs, exact: Outputs) -> float:
    """The largest |found - exact| / (|exact| + its root mean square); where both are infinite or NaN they agree."""
    pairs = zip(found, exact, strict=True) if isinstance(found, tuple) else [(found, exact)]
    worst = 0.0
    for one, other in pairs:
        for start in range(0, max(len(one), 1), 4096):  # float64 copies of large results in pieces
            a, b = one[start : start + 4096].double(), other[start : start + 4096].double()
            if not a.numel():
                continue
            same = (a == b) | (a.isnan() & b.isnan())
            size = b.abs() + b.where(b.isfinite(), 0.0).square().mean().sqrt() + 1e-30
            gap = torch.where(same, 0.0, (a - b).abs() / size)
            worst = max(worst, float("inf") if gap.isnan().any() else float(gap.max()))
    return worst


def different(found: Outputs, exact: Outputs) -> float:
    """1 where anything differs, else 0: for results that are copies."""
    pairs = zip(found, exact, strict=True) if isinstance(found, tuple) else [(found, exact)]
    return float(not all(torch.equal(a, b.to(a.dtype)) for a, b in pairs))


def normal(device: torch.device, dtype: torch.dtype, *shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Random numbers of deviation `scale`, made on the device; the same for the same seed."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).mul_(scale).to(dtype)
