"""What one model would take on this machine, from its files' headers alone: format, memory, context, whether it fits.

Knows: specs, file sizes, how a runtime divides memory. Must not know: weights' values, the terminal.
"""

from __future__ import annotations

from pathlib import Path

import torch

from branchwork.runtime.config import Config, ConfigError, Hardware, ModelSize, cores, resolve
from branchwork.runtime.execution.memory import bytes_per_page, free_memory
from branchwork.runtime.loading.formats import FLOAT8
from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.loading.weights import choose_dtype
from branchwork.runtime.models.bert import parameters as encoder_parameters
from branchwork.runtime.models.registry import is_encoder, load_encoder_spec, load_spec
from branchwork.runtime.models.size import parameters
from branchwork.runtime.models.spec import Fields, ModelSpec
from branchwork.status import number, size

Rows = list[tuple[str, ...]]
_CPU = torch.device("cpu")


def examine(model: str) -> Rows:
    """(what, finding, hint) rows. Raises LoadError for a model that cannot be found or served."""
    path = find_model(model)
    if is_encoder(path):
        return _encoder(path)
    spec = load_spec(path)
    dtype = choose_dtype("auto", spec.stored, _CPU)
    stored, loaded = _stored_bytes(path), weight_bytes(path, spec)
    a = spec.attention
    token = bytes_per_page(spec, 1, dtype)
    whole = spec.context * token
    heads = f"{a.heads} heads of {a.head_dim}, {a.kv_heads} for keys and values"
    rows: Rows = [
        ("files", f"{_format(path)}, {size(stored)}", str(path)),
        ("architecture", f"{spec.family}, {number(parameters(spec))} parameters", f"{spec.layers} layers, {heads}"),
        ("computes in", str(dtype).removeprefix("torch."), f"stored as {spec.stored}"),
        ("weights", f"{size(loaded)} in memory", "" if quantization(path) else _smaller(spec)),
        ("context", f"{spec.context:,} tokens", "" if not any(a.windows) else "with sliding windows"),
        ("KV cache", f"{size(token)} a token, {size(whole)} for one full context", "page_size=1"),
    ]
    return [*rows, _fit(spec, loaded, token)]


def _encoder(path: Path) -> Rows:
    """Of a model that makes vectors alone."""
    spec = load_encoder_spec(path)
    count, dtype = encoder_parameters(spec), choose_dtype("auto", spec.stored, _CPU)
    return [
        ("files", f"{_format(path)}, {size(_stored_bytes(path))}", str(path)),
        ("architecture", f"{spec.family}, {number(count)} parameters", f"{spec.layers} layers, {spec.heads} heads"),
        ("computes in", str(dtype).removeprefix("torch."), f"stored as {spec.stored}"),
        ("weights", f"{size(count * dtype.itemsize)} in memory", "for embeddings: it has no KV and writes no text"),
        ("context", f"{spec.context:,} tokens", ""),
    ]


def summary(path: Path) -> str:
    """Weights, context and KV of a model in a line. Raises LoadError."""
    spec = load_spec(path)
    token = bytes_per_page(spec, 1, choose_dtype("auto", spec.stored, _CPU))
    weights = f"{number(parameters(spec))} parameters, weights {size(weight_bytes(path, spec))}"
    return f"{weights}, context {spec.context:,}, KV of a full context {size(spec.context * token)}"


def weight_bytes(path: Path, spec: ModelSpec) -> int:
    """Bytes of the weights once loaded: integers stay as they are, floats and e4m3 take the computing type."""
    if quantization(path) not in ("", *FLOAT8):
        return _stored_bytes(path)
    return parameters(spec) * choose_dtype("auto", spec.stored, _CPU).itemsize


def quantization(path: Path) -> str:
    """How the files' weights are quantized: a scheme's name, "" for floats."""
    if path.is_file():
        return "gguf"
    given = Fields.read(path).values.get("quantization_config")
    return str(given.get("quant_method", "unknown")) if isinstance(given, dict) else ""


def _format(path: Path) -> str:
    if path.is_file():
        return path.suffix.removeprefix(".").upper()
    scheme = quantization(path)
    return f"safetensors, {scheme}" if scheme else "safetensors"


def _stored_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _smaller(spec: ModelSpec) -> str:
    """What quantizing would leave, by bits a weight with the scales of groups of 32."""
    count = parameters(spec)
    return f"quantize=int8 about {size(count * 8.5 / 8)}, int4 about {size(count * 4.5 / 8)}"


def _fit(spec: ModelSpec, weights: int, token: int) -> tuple[str, str, str]:
    """Whether weights and a cache fit into what is free now."""
    free = free_memory(_CPU)
    if weights >= free:
        return (
            "fits",
            f"no: the weights alone take {size(weights)}, {size(free)} are free",
            "a smaller or quantized one",
        )
    machine = Hardware(device="cpu", cores=cores(), memory=free - weights)
    try:
        config, _ = resolve(Config(), machine, ModelSize(spec.context, token, weights))
    except ConfigError as error:
        return "fits", "no", str(error)
    pool = f"{size(config.pages * token)} of KV cache for {config.pages:,} tokens"
    short = config.pages < spec.context
    return (
        "fits",
        f"yes: {size(weights)} of weights and {pool}, {size(free)} are free",
        f"less than one full context: memory= in GiB, or context={config.pages}" if short else "",
    )
