"""The door to a model's weights: which format serves which path.

Knows: what tells formats apart. Must not know: architectures, block formats, packings.
"""

from __future__ import annotations

from pathlib import Path

from branchwork.runtime.loading.checkpoint import Checkpoint
from branchwork.runtime.loading.companions import companion
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.float8 import Float8Weights
from branchwork.runtime.loading.gguf_file import is_gguf, open_gguf
from branchwork.runtime.loading.gguf_weights import GgufWeights
from branchwork.runtime.loading.packed import SCHEMES, PackedWeights
from branchwork.runtime.loading.quantize import Quantizing
from branchwork.runtime.loading.weights import Weights

FLOAT8 = ("fp8", "compressed-tensors")  # quant_methods


def open_checkpoint(model: Path, quantize: str = "") -> Checkpoint:
    """The weights of a model directory or GGUF file. quantize: "" | int8 | int4 | fp8, for matrices as they are read.

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
    if method in FLOAT8:
        return Float8Weights(Weights(model), said, str(model / "config.json"))
    if method not in SCHEMES:
        raise LoadError(
            "unsupported",
            f"{model / 'config.json'}: quantization method {method!r} is not supported; supported: "
            f"{', '.join((*SCHEMES, *FLOAT8))}, GGUF files, and quantize=int8 or int4 for the unquantized checkpoint",
        )
    return PackedWeights(Weights(model), SCHEMES[method](said, str(model / "config.json")))
