"""What every format of weights offers to a model, and the door that opens each of them.

Knows: which file format serves which model path. Must not know: architectures, block formats, packings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from branchwork.kernels.reference.quant import Quantized
from branchwork.runtime.loading.companions import companion
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_file import is_gguf, open_gguf
from branchwork.runtime.loading.gguf_weights import GgufWeights
from branchwork.runtime.loading.packed import SCHEMES, PackedWeights
from branchwork.runtime.loading.quantize import Quantizing
from branchwork.runtime.loading.weights import Weights


class Checkpoint(Protocol):
    """An opened checkpoint; nothing of the data has been read yet. Names are Hugging Face's.

    quantization: what its matrices are stored as, "" for plain floats. bits: of the widest quantized matrix, 0 without
    one. notes: what is converted on the way, a line each.
    """

    quantization: str
    bits: int
    notes: list[str]

    def verify(self, expected: Mapping[str, tuple[int, ...]], ignorable: re.Pattern[str]) -> None:
        """Both ways: every expected tensor is here in its shape, and nothing else but names matching `ignorable`.

        Raises LoadError (weights_mismatch) listing names, or the tensor with both shapes.
        """

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """One tensor as floats; a view of the file's map where that is possible. Raises LoadError (weights_damaged)."""

    def matrix(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor | Quantized:
        """A matrix [N, K] as it is stored: quantized, or else floats as from `read`."""


def open_checkpoint(model: Path, quantize: str = "") -> Checkpoint:
    """The weights of a model directory or GGUF file. quantize: "" | int8 | int4, for its matrices while they are read.

    Raises LoadError (not_found, unsupported, weights_missing, weights_damaged).
    """
    found = _open(model)
    return Quantizing.of(found, quantize, model) if quantize else found


def _open(model: Path) -> Checkpoint:
    if is_gguf(model):
        return GgufWeights(open_gguf(model))
    said = companion(model, "config.json").get("quantization_config")
    if not said:
        return Weights(model)
    method = said.get("quant_method") if isinstance(said, dict) else said
    if method not in SCHEMES:
        raise LoadError(
            "unsupported",
            f"{model / 'config.json'}: quantization method {method!r} is not supported; supported: "
            f"{', '.join(SCHEMES)}, GGUF files, and quantize=int8 or int4 for the unquantized checkpoint",
        )
    return PackedWeights(Weights(model), SCHEMES[method](said, str(model / "config.json")))
