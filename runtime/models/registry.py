"""Which file serves which architecture name, and the doors: a model's spec and the loaded model; an encoder's likewise.

Knows: the families. Must not know: engines, plans, clients.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from branchwork import kernels
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.formats import open_checkpoint
from branchwork.runtime.loading.quantize import FP8
from branchwork.runtime.loading.weights import choose_dtype
from branchwork.runtime.models import llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe
from branchwork.runtime.models.bert import ENCODERS, Encoder, EncoderSpec
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.models.reader import Progress
from branchwork.runtime.models.spec import Fields, ModelSpec

FAMILIES: dict[str, Callable[[Fields], ModelSpec]] = {
    "LlamaForCausalLM": llama.spec,
    "MistralForCausalLM": mistral.spec,
    "Qwen2ForCausalLM": qwen2.spec,
    "Qwen3ForCausalLM": qwen3.spec,
    "MixtralForCausalLM": mixtral.spec,
    "Qwen2MoeForCausalLM": qwen2_moe.spec,
    "Qwen3MoeForCausalLM": qwen3_moe.spec,
}


def load_spec(model: Path) -> ModelSpec:
    """Of a model directory or GGUF file. Raises LoadError (not_found, config, unsupported) if it cannot be served."""
    fields, name = _architecture(model)
    family = FAMILIES.get(name)
    if family is None:
        known = f"{', '.join(FAMILIES)}, and for embeddings {', '.join(ENCODERS)}"
        raise LoadError("unsupported", f"{fields.where}: architecture {name!r} is not supported; supported: {known}")
    return family(fields)


def is_encoder(model: Path) -> bool:
    """Whether a model turns texts into vectors and writes none. Raises LoadError (not_found, config)."""
    return _architecture(model)[1] in ENCODERS


def load_encoder_spec(model: Path) -> EncoderSpec:
    """Of a directory for which `is_encoder` holds. Raises LoadError."""
    fields, name = _architecture(model)
    return ENCODERS[name](fields)


def load_encoder(
    model: Path, *, dtype: str = "auto", device: str = "cpu", quantize: str = "", progress: Progress | None = None
) -> Encoder:
    """As load_model, for an encoder. Raises LoadError, also where it is to be quantized."""
    spec = load_encoder_spec(model)
    if quantize:
        raise LoadError("unsupported", f"quantize={quantize} is for models that generate; {model} makes embeddings")
    where = torch.device(device)
    chosen = choose_dtype(dtype, spec.stored, where)
    return Encoder.load(spec, open_checkpoint(model), chosen, where, progress)


def _architecture(model: Path) -> tuple[Fields, str]:
    fields = Fields.read(model)
    names = fields.values.get("architectures")
    if not isinstance(names, list) or not names:
        raise LoadError("config", f"{fields.where}: architectures must name the model's class, got {names!r}")
    return fields, str(names[0])


def load_model(
    model: Path, *, dtype: str = "auto", device: str = "cpu", quantize: str = "", progress: Progress | None = None
) -> Decoder:
    """A model ready to run, from a directory or GGUF file. dtype: auto | float32 | bfloat16.

    quantize: "" | int8 | int4 | fp8 (on GPUs). progress hears the loaded fraction of all weights.

    Raises LoadError; everything that can be known from headers is checked before data is read.
    """
    spec = load_spec(model)
    where = torch.device(device)
    chosen = choose_dtype(dtype, spec.stored, where)
    if quantize == FP8 and not kernels.serves_float8(where.type):
        raise LoadError(
            "unsupported",
            "quantize=fp8 is for GPUs, CPUs have no products with e4m3; use quantize=int8, of the same size",
        )
    checkpoint = open_checkpoint(model, quantize)
    if spec.stored == "float16":
        checkpoint.notes.append(f"weights stored in float16 compute in {str(chosen).removeprefix('torch.')}")
    return Decoder.load(spec, checkpoint, chosen, where, progress)
