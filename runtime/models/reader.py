"""Tensors read by name onto a device: matrices as they are stored, everything else in one dtype.

Knows: checkpoints, what products take on which kind of device. Must not know: layers, families, files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from branchwork import kernels
from branchwork.kernels.reference.float8 import Float8, dequantize
from branchwork.kernels.reference.quant import Quantized
from branchwork.runtime.loading.checkpoint import Checkpoint
from branchwork.runtime.models.stored import joined

STEPS = 500  # of progress that are told apart
Progress = Callable[[float], None]
Part = TypeVar("Part", bound=Tensor | Quantized | Float8)


class Reader:
    """Reads tensors of one model.

    bytes: of what was handed out so far, by name. widened: whether e4m3 matrices became floats,
    which they do on CPUs: nothing there multiplies them, and integers would round them once more.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        expected: Mapping[str, tuple[int, ...]],
        progress: Progress | None,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.bytes: dict[str, int] = {}
        self.widened = False
        self._checkpoint = checkpoint
        self._expected = expected
        self._total = sum(map(math.prod, expected.values()))
        self._read = self._said = 0  # elements: handed out, and when progress was last told
        self._progress = progress

    def read(self, *names: str) -> Tensor:
        """One tensor of floats, or several stacked along their first dimension."""
        parts = [self._told(name, self._checkpoint.read(name, self.dtype, self.device)) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def matrix(self, *names: str) -> kernels.Stored:
        """One matrix or several below each other; floats if they are stored in different ways."""
        return joined([self._told(name, self._stored(name)) for name in names], self.dtype)

    def affine(self, at: str, bias: bool, *names: str) -> kernels.Affine:
        weight = self.matrix(*(f"{at}{name}.weight" for name in names))
        return kernels.Affine(weight, self.read(*(f"{at}{name}.bias" for name in names)) if bias else None)

    def _stored(self, name: str) -> kernels.Stored:
        part = self._checkpoint.matrix(name, self.dtype, self.device)
        if isinstance(part, Float8) and not kernels.serves_float8(self.device.type):
            self.widened = True
            return dequantize(part, self.dtype)
        return part

    def _told(self, name: str, part: Part) -> Part:
        """Count what was read and report how much of all weights that makes."""
        if name not in self.bytes:
            self._read += math.prod(self._expected[name])
        self.bytes[name] = part.nbytes
        far = self._read - self._said >= self._total // STEPS or self._read == self._total
        if self._progress is not None and far:  # a mixture has tens of thousands of tensors
            self._said = self._read
            self._progress(self._read / self._total)
        return part
