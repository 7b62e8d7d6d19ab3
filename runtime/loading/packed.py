"""Safetensors checkpoints whose matrices are packed integers: GPTQ, AWQ, and those that `branchwork quantize` writes.

Knows: each scheme's tensors and order of bits. Must not know: layers, kernels, config.json's other fields.
Sources: AutoGPTQ's and AutoAWQ's layouts. Both store w = scale * (q - zero), transposed: inputs are rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from branchwork.kernels import Quantized, quantize
from branchwork.kernels.reference.quant import BLOCK, dequantize
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.weights import Weights, check_names


class Scheme(Protocol):
    """How one quantization method lays a matrix out. parts: names after the module's, all but `optional` required."""

    label: str
    bits: int
    parts: tuple[str, ...]
    optional: tuple[str, ...]

    def shape(self, found: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """[N, K] from the parts' shapes."""

    def weight(self, found: Mapping[str, Tensor], where: str) -> Quantized:
        """The matrix. Raises LoadError for parts that do not fit each other."""


class PackedWeights:
    """As `Checkpoint`: under a matrix's usual name what its packed parts mean; other tensors are plain floats."""

    def __init__(self, weights: Weights, scheme: Scheme) -> None:
        self._weights = weights
        self._scheme = scheme
        self.quantization = scheme.label
        self.bits = scheme.bits
        self.notes: list[str] = []
        self._packed: dict[str, dict[str, str]] = {}  # matrix -> part -> tensor name
        first = f".{scheme.parts[0]}"
        known = (*scheme.parts, *scheme.optional)
        for name in weights.shapes:
            if name.endswith(first):
                module = name[: -len(first)]
                parts = {part: f"{module}.{part}" for part in known if f"{module}.{part}" in weights.shapes}
                self._packed[_matrix(module)] = parts

    def verify(self, expected: Mapping[str, tuple[int, ...]], ignorable: re.Pattern[str]) -> None:
        """As in `Checkpoint`."""
        used = {tensor for parts in self._packed.values() for tensor in parts.values()}
        shapes = {name: shape for name, shape in self._weights.shapes.items() if name not in used}
        for name, parts in self._packed.items():
            lacking = [part for part in self._scheme.parts if part not in parts]
            if lacking:
                raise LoadError(
                    "weights_mismatch",
                    f"the weights in {self._weights.directory} have {' and '.join(parts.values())} but lack "
                    f"{', '.join(lacking)} beside them, which {self._scheme.label} needs",
                )
            shapes[name] = self._scheme.shape({part: self._weights.shapes[at] for part, at in parts.items()})
        what = f"the weights in {self._weights.directory} ({self._scheme.label})"
        check_names(what, "config.json", shapes, expected, ignorable)

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As in `Checkpoint`."""
        if name in self._packed:
            return dequantize(self._weight(name), dtype).to(device)
        return self._weights.read(name, dtype, device)

    def matrix(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor | Quantized:
        """As in `Checkpoint`: floats where a group is no multiple of 32 weights."""
        if name not in self._packed:
            return self._weights.read(name, dtype, device)
        weight = self._weight(name)
        if weight.group % BLOCK or weight.shape[1] % weight.group:
            return dequantize(weight, dtype).to(device)
        values, scales, offsets = (None if part is None else part.to(device).contiguous() for part in weight[:3])
        assert values is not None and scales is not None
        return Quantized(values, scales, offsets, weight.bits, weight.group)

    def _weight(self, name: str) -> Quantized:
        parts = {part: self._weights.stored(at) for part, at in self._packed[name].items()}
        return self._scheme.weight(parts, f"{name} in {self._weights.directory}")


def _matrix(module: str) -> str:
    return module if module.endswith(".weight") else f"{module}.weight"


class Gptq:
    """qweight int32 [K * bits / 32, N], low bits first along K; qzeros int32 [G, N * bits / 32] along N;
    scales float16 [G, N]; g_idx int32 [K], each input's group. Version 1 stores the zero less one."""

    parts: tuple[str, ...] = ("qweight", "qzeros", "scales")
    optional: tuple[str, ...] = ("g_idx",)

    def __init__(self, said: Mapping[str, Any], where: str) -> None:
        self.bits = _one_of(said, "bits", where, 4, 8)
        self._group = int(said.get("group_size", 128))
        layout = said.get("checkpoint_format", "gptq")
        if layout not in ("gptq", "gptq_v2"):
            raise LoadError(
                "unsupported", f"{where}: checkpoint_format {layout!r} is not supported (gptq, gptq_v2 are)"
            )
        self._less = 1 if layout == "gptq" else 0
        self.label = _label("gptq", self.bits, self._group)

    def shape(self, found: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        packed, outputs = found["qweight"]
        return outputs, packed * (32 // self.bits)

    def weight(self, found: Mapping[str, Tensor], where: str) -> Quantized:
        codes = _unpacked(found["qweight"], self.bits, along=0).T  # [N, K]
        zeros = _unpacked(found["qzeros"], self.bits, along=1).T + self._less  # [N, G]
        scales = found["scales"].T
        inputs = codes.shape[1]
        group = inputs if self._group == -1 else self._group
        _fit(where, scales.shape == zeros.shape == (len(codes), -(-inputs // group)))
        plain = torch.arange(inputs) // group
        of = found["g_idx"].long() if "g_idx" in found else plain
        if torch.equal(of, plain) and inputs % group == 0:
            return _weight(codes, zeros, scales, self.bits, group)
        # act-order: neighbouring inputs belong to different groups, so no scale of the file serves 32 of them
        floats = (codes - zeros[:, of]).float() * scales.float()[:, of]
        return quantize(floats.contiguous(), 8)


class Awq:
    """qweight int32 [K, N / 8] and qzeros int32 [G, N / 8], eight outputs a word in the order below;
    scales float16 [G, N]. Version gemm."""

    parts: tuple[str, ...] = ("qweight", "qzeros", "scales")
    optional: tuple[str, ...] = ()
    bits = 4
    _PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # output i of eight stands in four-bit place _PLACES[i]

    def __init__(self, said: Mapping[str, Any], where: str) -> None:
        _one_of({"bits": said.get("bits", said.get("w_bit", 4))}, "bits", where, 4)
        version = str(said.get("version", "gemm")).lower()
        if version != "gemm" or said.get("zero_point") is False:
            raise LoadError(
                "unsupported", f"{where}: AWQ is supported in version gemm with zero points, this is {version!r}"
            )
        self._group = int(said.get("group_size", said.get("q_group_size", 128)))
        self.label = _label("awq", self.bits, self._group)

    def shape(self, found: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        inputs, packed = found["qweight"]
        return packed * 8, inputs

    def weight(self, found: Mapping[str, Tensor], where: str) -> Quantized:
        codes = self._ordered(found["qweight"]).T  # [N, K]
        zeros, scales = self._ordered(found["qzeros"]).T, found["scales"].T  # [N, G]
        inputs = codes.shape[1]
        group = inputs if self._group == -1 else self._group
        _fit(where, scales.shape == zeros.shape == (len(codes), inputs // group) and inputs % group == 0)
        return _weight(codes, zeros, scales, 4, group)

    def _ordered(self, words: Tensor) -> Tensor:
        return _unpacked(words, 4, along=1).view(len(words), -1, 8)[..., list(self._PLACES)].flatten(1)


class Own:
    """int8 [N, K] or int4 [N, K / 2], scales and, where there are, offsets: the fields of Quantized as they are."""

    parts: tuple[str, ...] = ("scales",)
    optional: tuple[str, ...] = ("int8", "int4", "offsets")

    def __init__(self, said: Mapping[str, Any], where: str) -> None:
        self.bits = _one_of(said, "bits", where, 4, 8)
        self.label = f"int{self.bits}"

    def shape(self, found: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        outputs, columns = found["int4"] if "int4" in found else found["int8"]
        return outputs, columns * (2 if "int4" in found else 1)

    def weight(self, found: Mapping[str, Tensor], where: str) -> Quantized:
        bits = 4 if "int4" in found else 8
        values, scales = found[f"int{bits}"], found["scales"]
        inputs = values.shape[1] * (8 // bits)
        _fit(where, inputs % scales.shape[1] == 0 and len(values) == len(scales))
        return Quantized(values, scales, found.get("offsets"), bits, inputs // scales.shape[1])


def own_parts(name: str, weight: Quantized) -> dict[str, Tensor]:
    """A matrix as the tensors that `Own` reads, by name."""
    parts = {f"{name}.int{weight.bits}": weight.values, f"{name}.scales": weight.scales}
    return parts if weight.offsets is None else {**parts, f"{name}.offsets": weight.offsets}


SCHEMES: dict[str, Callable[[Mapping[str, Any], str], Scheme]] = {"gptq": Gptq, "awq": Awq, "branchwork": Own}


def _weight(codes: Tensor, zeros: Tensor, scales: Tensor, bits: int, group: int) -> Quantized:
    """codes int8 or int16 [N, K], zeros [N, G], scales [N, G]: exact where every zero is the middle, else scale * zero
    is rounded to float16."""
    middle = 1 << (bits - 1)
    scales = scales.half().contiguous()
    even = bool((zeros == middle).all())
    if bits == 8:
        values = (codes - middle).to(torch.int8)
        zeros = zeros - middle
    else:
        codes = codes.to(torch.uint8)
        values = codes[:, ::2] | codes[:, 1::2] << 4
    offsets = None if even else -(scales.float() * zeros.float()).half()
    return Quantized(values.contiguous(), scales, offsets, bits, group)


def _unpacked(words: Tensor, bits: int, along: int) -> Tensor:
    """int32 words into their unsigned numbers, int16, low bits first, in place of dimension `along`."""
    each = 32 // bits
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    shifts = shifts[None, :, None] if along == 0 else shifts
    numbers = (words.unsqueeze(along + 1) >> shifts & ((1 << bits) - 1)).to(torch.int16)
    rows, columns = words.shape
    return numbers.reshape(rows * each, columns) if along == 0 else numbers.reshape(rows, columns * each)


def _fit(where: str, fits: bool) -> None:
    if not fits:
        raise LoadError("weights_mismatch", f"{where}: the packed tensors' shapes do not fit each other or config.json")


def _label(method: str, bits: int, group: int) -> str:
    return f"{method} int{bits}, groups of {group}" if group > 0 else f"{method} int{bits}, one group a row"


def _one_of(said: Mapping[str, Any], name: str, where: str, *allowed: int) -> int:
    value = said.get(name)
    if value not in allowed:
        known = " and ".join(map(str, allowed))
        raise LoadError("unsupported", f"{where}: quantization_config {name}={value!r} is not supported ({known} are)")
    return int(value)
