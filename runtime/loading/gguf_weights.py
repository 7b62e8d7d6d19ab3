"""Tensors of a GGUF file under Hugging Face's names, quantized as they are where groups of 32 hold them.

Knows: which block types are kept, which converted, how Llama's rows were permuted. Must not know: layers, kernels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from branchwork.kernels import Quantized, quantize
from branchwork.kernels.reference.quant import BLOCK, dequantize
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_blocks import FORMS, exact, rounded
from branchwork.runtime.loading.gguf_config import ROPE_FACTORS, config_of, our_name, their_name
from branchwork.runtime.loading.gguf_experts import of_experts
from branchwork.runtime.loading.gguf_file import GgufFile, GgufTensor
from branchwork.runtime.loading.weights import check_names

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_AT_ONCE = 1 << 24  # weights converted at a time, which bounds the float32 copies
_ROTATED = re.compile(r"self_attn\.([qk])_proj\.(?:weight|bias)$")


class GgufWeights:
    """As `Checkpoint`. Raises LoadError (unsupported) for a type of tensor that nobody here can read."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        kind = file.text("general.architecture")
        self._tensors: dict[str, GgufTensor] = {}
        for name, tensor in file.tensors.items():
            if name != ROPE_FACTORS:
                self._tensors |= of_experts(tensor, kind) or {our_name(name): tensor}
        matrices = [tensor for tensor in self._tensors.values() if len(tensor.shape) == 2]
        kinds = Counter(tensor.kind for tensor in matrices)
        self.quantization = "+".join(kind for kind, _ in kinds.most_common() if kind not in _FLOATS)
        kept = [FORMS[kind].bits for kind in kinds if kind in FORMS]
        self.bits = max(kept, default=0)
        self.notes = list(_notes(kinds))
        self._heads = _permuted_heads(file)

    def verify(self, expected: Mapping[str, tuple[int, ...]], ignorable: re.Pattern[str]) -> None:
        """As in `Checkpoint`; errors say the file's own names."""
        shapes = {tensor.name: tensor.shape for name, tensor in self._tensors.items() if not ignorable.search(name)}
        wanted = {
            self._tensors[name].name if name in self._tensors else their_name(name): shape
            for name, shape in expected.items()
        }
        check_names(f"the tensors of {self._file.path}", "metadata", shapes, wanted, ignorable)

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As in `Checkpoint`: a view of the mapped file where it is stored in this dtype, rows in their order."""
        tensor = self._tensors[name]
        data = torch.from_numpy(tensor.data)
        if tensor.kind in _FLOATS:
            out = data.view(_FLOATS[tensor.kind]).view(tensor.shape).to(device=device, dtype=dtype)
        else:
            out = torch.empty(tensor.shape, dtype=dtype, device=device)
            for begin, part in _parts(tensor, data):
                floats = _floats(tensor, part)
                out[begin : begin + len(floats)] = floats
        order = self._order(name, tensor.shape[0])
        return out if order is None else out[order.to(device)]

    def matrix(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor | Quantized:
        """As in `Checkpoint`: Q6_K as int8 in groups of 32, types without a form here as floats."""
        tensor = self._tensors[name]
        form = FORMS.get(tensor.kind)
        if form is None:
            return self.read(name, dtype, device)
        parts = []
        for _, data in _parts(tensor, torch.from_numpy(tensor.data)):
            weight = _exact(tensor, data)
            parts.append(rounded(weight) if form.group == BLOCK else quantize(dequantize(weight), 8))
        order = self._order(name, tensor.shape[0])

        def whole(field: list[Tensor]) -> Tensor:
            rows = field[0] if len(field) == 1 else torch.cat(field)
            return (rows if order is None else rows[order]).to(device).contiguous()

        offsets = [part.offsets for part in parts if part.offsets is not None]
        return Quantized(
            whole([part.values for part in parts]),
            whole([part.scales for part in parts]),
            whole(offsets) if offsets else None,
            parts[0].bits,
            parts[0].group,
        )

    def _order(self, name: str, rows: int) -> Tensor | None:
        """Where each row of a q or k projection stands in the file, None for in order.

        Llama's files pair a head's rows (i, i + D / 2) side by side, for a rotation of neighbours; ours turns halves.
        """
        rotated = _ROTATED.search(name)
        if rotated is None or self._heads is None:
            return None
        return torch.arange(rows).view(self._heads[rotated[1]], -1, 2).transpose(1, 2).reshape(-1)


def _permuted_heads(file: GgufFile) -> Mapping[str, int] | None:
    """Heads of q and of k where rows are permuted, which is so for the architecture llama alone."""
    if file.text("general.architecture") != "llama":
        return None
    config = config_of(file)
    return {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}


def _notes(kinds: Counter[str]) -> Iterator[str]:
    for kind, count in kinds.items():
        many = f"{count} {'matrix' if count == 1 else 'matrices'} of type {kind}"
        if kind == "Q6_K":
            yield f"{many} (groups of 16): converted to int8 in groups of 32"
        elif kind not in FORMS and kind not in _FLOATS:
            yield f"{many}: converted to floats, no kernel multiplies it as it is"


def _parts(tensor: GgufTensor, data: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, bytes) of stretches of rows."""
    rows = tensor.shape[0]
    size, step = data.numel() // rows, max(1, _AT_ONCE // tensor.shape[-1])
    for begin in range(0, rows, step):
        yield begin, data[begin * size : (begin + step) * size]


def _exact(tensor: GgufTensor, data: Tensor) -> Quantized:
    form = FORMS[tensor.kind]
    columns = tensor.shape[-1]
    return exact(tensor.kind, data, (data.numel() // form.size * form.weights // columns, columns))


def _floats(tensor: GgufTensor, data: Tensor) -> Tensor:
    """Rows as float32, by the form here or else by the gguf package."""
    if tensor.kind in FORMS:
        return dequantize(_exact(tensor, data))
    from gguf import GGMLQuantizationType, quants

    rows = len(data) * tensor.shape[0] // len(tensor.data)
    try:
        found = quants.dequantize(data.view(rows, -1).numpy(), GGMLQuantizationType[tensor.kind])
    except NotImplementedError:
        raise LoadError(
            "unsupported", f"tensor {tensor.name} has type {tensor.kind}, which the gguf package cannot read either"
        ) from None
    return torch.from_numpy(found).view(rows, -1)
