"""What a list says of a model, from the headers of its files alone: family, parameters, quantization, context, size.

Knows: where headers lie in safetensors and GGUF files. Must not know: torch, whether the model can be run here.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from branchwork.runtime.loading.companions import companion, stored_bytes
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_file import is_gguf, open_gguf
from branchwork.runtime.loading.store import About

QUANTIZATION = re.compile(r"(?i)(?:^|[-._])((?:IQ|TQ|Q)\d\w*|BF16|FP?16|FP?32|MXFP4\w*)(?=\.gguf$|-\d{5}-of-|$)")
_BITS = {"I32": 32, "U8": 8, "I8": 8}
_PACKED = re.compile(r"\.(?:qweight|int8|int4)$")
_BESIDE = re.compile(r"\.(?:qzeros|scales|offsets|g_idx)$")
_MOST = 100_000_000  # bytes of a header; more is a damaged length


def about(model: Path) -> About:
    """Of a model directory or GGUF file. Raises LoadError (weights_damaged, unsupported, tokenizer) if unreadable."""
    return _of_gguf(model) if is_gguf(model) else _of_directory(model)


def quantization_in(name: str) -> str:
    """The quantization that a file's name ends with, in capitals; "" for none."""
    found = QUANTIZATION.search(name)
    return found[1].upper() if found else ""


def _of_gguf(path: Path) -> About:
    file = open_gguf(path)
    family = file.text("general.architecture", "unknown")
    kinds = Counter[str]()
    for tensor in file.tensors.values():
        kinds[tensor.kind] += math.prod(tensor.shape)
    most = kinds.most_common(1)[0][0] if kinds else ""
    return About(
        family=family,
        parameters=kinds.total(),
        quantization=_file_type(file.metadata.get("general.file_type")) or quantization_in(path.name) or most,
        context=file.count(f"{family}.context_length", 0),
        size=stored_bytes(path),
    )


def _file_type(number: Any) -> str:
    """llama.cpp's name of the mixture of types that a file was written with."""
    from gguf.constants import LlamaFileType

    if number not in {each.value for each in LlamaFileType}:
        return ""
    return LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")


def _of_directory(model: Path) -> About:
    config = companion(model, "config.json")
    said = config.get("quantization_config")
    said = said if isinstance(said, dict) else {}
    bits = int(said.get("bits") or 0)
    parameters, kinds = 0, Counter[str]()
    for name, kind, shape in _tensors(model):
        if _BESIDE.search(name):
            continue
        count = math.prod(shape)
        if bits and _PACKED.search(name):
            count = count * (_BITS.get(kind) or bits) // bits
        parameters += count
        kinds[kind] += count
    method = f"{said['quant_method']} int{bits}" if bits and "quant_method" in said else said.get("quant_method")
    return About(
        family=str(config.get("model_type", "")),
        parameters=parameters,
        quantization=str(method or (kinds.most_common(1)[0][0] if kinds else "")),
        context=config.get("max_position_embeddings") or 0,
        size=stored_bytes(model),
    )


def _tensors(model: Path) -> Iterator[tuple[str, str, list[int]]]:
    """(name, type, shape) of every tensor in a directory's safetensors files."""
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MOST
            text = file.read(length) if length < _MOST else b""
        try:
            header = json.loads(text)
        except ValueError as error:
            raise LoadError("weights_damaged", f"{path} is damaged or incomplete ({error}); get it again") from error
        for name, tensor in header.items():
            if name != "__metadata__":
                yield name, tensor["dtype"], tensor["shape"]
