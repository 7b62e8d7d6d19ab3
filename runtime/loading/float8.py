"""Safetensors checkpoints whose matrices are e4m3 bytes with scales: of Hugging Face's fp8, and compressed-tensors.

Knows: how their configs and tensors are named. Must not know: layers, kernels, which device multiplies e4m3.
Both mean w = value * scale; the names `weight_scale_inv` and `weight_scale` mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from branchwork.kernels import Float8
from branchwork.kernels.reference.float8 import dequantize
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.weights import Weights, check_names

_SCALE = re.compile(r"\.weight_scale(?:_inv)?$")
# scales of rows and of keys and values: here rows stay floats, and e4m3 keys and values have no scale
_UNUSED = re.compile(r"\.(?:input|activation|output|[qkv])_(?:global_)?scale$|\.weight_zero_point$|\.weight_shape$")
_STEP = 16  # inputs: the kernels read no narrower blocks


class Float8Weights:
    """As `Checkpoint`. A matrix without a scale is plain floats. Raises LoadError (unsupported) for other formats."""

    bits = 0

    def __init__(self, weights: Weights, said: Mapping[str, Any], where: str) -> None:
        self._weights = weights
        self._block = _hugging(said, where) if said["quant_method"] == "fp8" else _compressed(said, where)
        self._scales = {f"{_SCALE.sub('', name)}.weight": name for name in weights.shapes if _SCALE.search(name)}
        self._unused = {name for name in weights.shapes if _UNUSED.search(name)}
        self.quantization = "fp8"
        self.notes: list[str] = []
        if self._unused:
            example = min(self._unused)
            self.notes.append(
                f"{len(self._unused)} tensors such as {example} are not used: rows, keys and values are not scaled"
            )

    def verify(self, expected: Mapping[str, tuple[int, ...]], ignorable: re.Pattern[str]) -> None:
        """As in `Checkpoint`."""
        what = f"the weights in {self._weights.directory} (fp8)"
        used = {*self._scales.values(), *self._unused}
        shapes = {name: shape for name, shape in self._weights.shapes.items() if name not in used}
        check_names(what, "config.json", shapes, expected, ignorable)
        for name, kind in self._weights.kinds.items():
            if kind.startswith("F8_E5M2"):
                raise LoadError("unsupported", f"{what}: tensor {name} is of e5m2; e4m3 is what is supported")
            if kind.startswith("F8_E4M3") and name in expected and name not in self._scales:
                raise LoadError("weights_mismatch", f"{what}: tensor {name} is of e4m3 and has no scale beside it")

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As in `Checkpoint`."""
        if name in self._scales:
            return dequantize(self._weight(name, device), dtype)
        return self._weights.read(name, dtype, device)

    def matrix(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor | Float8:
        """As in `Checkpoint`: floats where blocks of inputs are too narrow for the kernels."""
        if name not in self._scales:
            return self._weights.read(name, dtype, device)
        weight = self._weight(name, device)
        narrow = weight.block[1] % _STEP and weight.block[1] < weight.shape[1]
        return dequantize(weight, dtype) if narrow else weight

    def _weight(self, name: str, device: torch.device) -> Float8:
        values, scales = self._weights.stored(name), self._weights.stored(self._scales[name]).float()
        if values.dtype == torch.float8_e4m3fnuz:  # half the range: all but its least steps are numbers of e4m3fn
            values = values.float().to(torch.float8_e4m3fn)
        outputs, inputs = values.shape
        if scales.numel() == 1:
            block, shape = (outputs, inputs), (1, 1)
        elif scales.numel() == outputs and scales.shape[0] == outputs:
            block, shape = (1, inputs), (outputs, 1)
        else:
            block = self._block or (0, 0)
            shape = (-(-outputs // block[0]), -(-inputs // block[1])) if all(block) else (0, 0)
        if values.dtype != torch.float8_e4m3fn or scales.numel() != shape[0] * shape[1]:
            raise LoadError(
                "weights_mismatch",
                f"{name} in {self._weights.directory} is {values.dtype} {list(values.shape)} with scales "
                f"{list(scales.shape)}, which do not fit blocks of {self._block}",
            )
        return Float8(values.to(device).contiguous(), scales.view(shape).to(device).contiguous(), block)


def fp8_parts(name: str, weight: Float8) -> dict[str, Tensor]:
    """A matrix with one scale a row as the tensors that Float8Weights reads, by name."""
    return {name: weight.values, f"{name}_scale": weight.scales}


def fp8_config() -> dict[str, Any]:
    """What config.json says of such matrices: compressed-tensors' own words."""
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*gate$"],
    }


def _hugging(said: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """The blocks of weight_block_size, None where scales are of rows or of whole matrices."""
    if said.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise LoadError("unsupported", f"{where}: quantization_config fmt={said['fmt']!r} is not supported (e4m3 is)")
    return _block(said.get("weight_block_size"), f"{where}: quantization_config weight_block_size")


def _compressed(said: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """As _hugging, from the groups' weights, which must all be of eight-bit floats."""
    block = None
    for name, group in (said.get("config_groups") or {"none": {}}).items():
        weights = group.get("weights") or {}
        kind = (weights.get("type"), weights.get("num_bits"), weights.get("strategy"))
        if kind[:2] != ("float", 8) or kind[2] not in ("tensor", "channel", "block"):
            raise LoadError(
                "unsupported",
                f"{where}: compressed-tensors group {name} holds weights of type, bits and strategy {kind}; supported: "
                "('float', 8) with 'tensor', 'channel' or 'block'",
            )
        if kind[2] == "block":
            block = _block(weights.get("block_structure"), f"{where}: block_structure of group {name}")
    return block


def _block(said: object, where: str) -> tuple[int, int] | None:
    if said is None:
        return None
    if not isinstance(said, list) or len(said) != 2 or not all(isinstance(n, int) and n > 0 for n in said):
        raise LoadError("config", f"{where} must be two positive integers, got {said!r}")
    return said[0], said[1]
