"""What a config.json says about a model, checked: sizes, biases, windows, rotary scaling.

Knows: Hugging Face's config fields. Must not know: tensors, weights, kernels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from branchwork.runtime.loading.companions import companion
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_file import is_gguf


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: kind is a row of models.rope.KINDS, parameters are that kind's own numbers.

    factors: for the kind of that name, what each of the D / 2 frequencies is divided by."""

    kind: str
    theta: float
    parameters: Mapping[str, float]
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class AttentionSpec:
    """windows: per layer, positions a token attends to (its own included), 0 for all."""

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    out_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]


@dataclass(frozen=True)
class ExpertSpec:
    """Mixtures of `count` experts, of width `ffn` each, of which a token takes top_k; gains sum to 1 if renormalized.

    layers: which have experts. shared: the width of a block that every token takes as well, 0 for none. naming: a row
    of models.moe.NAMES.
    """

    count: int
    top_k: int
    ffn: int
    renormalize: bool
    layers: frozenset[int]
    naming: str
    shared: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """A decoder. family names its file; context in tokens; stored: dtype of the checkpoint; ffn: of dense layers."""

    family: str
    vocab: int
    hidden: int
    layers: int
    ffn: int
    context: int
    eps: float
    tied: bool
    mlp_bias: bool
    attention: AttentionSpec
    rope: RopeSpec
    stored: str
    experts: ExpertSpec | None = None


class Fields:
    """A config.json read with checked types. Raises LoadError (config, unsupported) naming file, field and value."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    @classmethod
    def read(cls, model: Path) -> Fields:
        """Of a model directory, or of a GGUF file's metadata."""
        if is_gguf(model):
            return cls(companion(model, "config.json"), str(model))
        path = model / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LoadError("not_found", f"{model} has no config.json: it is not a model directory") from None
        except (OSError, ValueError) as error:
            raise LoadError("config", f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise LoadError("config", f"{path} holds no JSON object")
        return cls(values, str(path))

    def count(self, name: str, default: int | None = None) -> int:
        """A positive integer; absent or null gives the default, and without one is an error."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LoadError("config", f"{self.where}: {name} must be a positive integer, got {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise LoadError("config", f"{self.where}: {name} must be a positive number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise LoadError("config", f"{self.where}: {name} must be true or false, got {value!r}")
        return value

    def require(self, name: str, *allowed: object) -> None:
        """Raises unless the field is absent or one of `allowed`."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            known = " or ".join(repr(item) for item in allowed) or "absent"
            raise LoadError("unsupported", f"{self.where}: {name}={_short(value)} is not supported (only {known})")


def dense(
    fields: Fields,
    family: str,
    *,
    head_dim: int | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    windows: tuple[int, ...] = (),
    context: int | None = None,
    experts: ExpertSpec | None = None,
) -> ModelSpec:
    """The spec of a decoder: common fields from config.json, what differs by family from the arguments.

    head_dim and context: the family's defaults. windows: empty for full attention everywhere.
    Raises LoadError for missing, wrong and unsupported fields.
    """
    fields.require("hidden_act", "silu", "swish")
    fields.require("partial_rotary_factor", 1.0)
    hidden, heads, layers = (fields.count(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    kv_heads = fields.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise LoadError(
            "config", f"{fields.where}: num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}"
        )
    dim = fields.count("head_dim", head_dim or hidden // heads)
    if dim % 2:
        raise LoadError("unsupported", f"{fields.where}: head_dim={dim} must be even for rotary embedding")
    stored = fields.values.get("dtype") or fields.values.get("torch_dtype") or "float32"
    longest = fields.count("max_position_embeddings", context)
    return ModelSpec(
        family=family,
        vocab=fields.count("vocab_size"),
        hidden=hidden,
        layers=layers,
        ffn=fields.count("intermediate_size"),
        context=longest,
        eps=fields.number("rms_norm_eps", 1e-6),
        tied=fields.flag("tie_word_embeddings"),
        mlp_bias=mlp_bias,
        attention=AttentionSpec(heads, kv_heads, dim, qkv_bias, out_bias, qk_norm, windows or (0,) * layers),
        rope=_rope(fields, longest),
        stored=str(stored).removeprefix("torch."),
        experts=experts,
    )


def layer_windows(fields: Fields) -> tuple[int, ...]:
    """Per-layer windows of the families that mix full and sliding attention (Qwen 2 and 3)."""
    layers = fields.count("num_hidden_layers")
    if not fields.flag("use_sliding_window"):
        return (0,) * layers
    window = fields.count("sliding_window", 4096)
    types = fields.values.get("layer_types")
    if types is None:
        full = fields.values.get("max_window_layers", 28)
        types = ["full_attention" if i < full else "sliding_attention" for i in range(layers)]
    if len(types) != layers or not set(types) <= {"full_attention", "sliding_attention"}:
        raise LoadError("unsupported", f"{fields.where}: layer_types={_short(types)} is not supported")
    return tuple(window if item == "sliding_attention" else 0 for item in types)


def chosen(fields: Fields, name: str, default: int | None = None) -> tuple[int, int]:
    """(experts of a layer, how many of them a token takes). name: the field of the first. Raises LoadError."""
    count, top_k = fields.count(name, default), fields.count("num_experts_per_tok", 2)
    if top_k > count:
        raise LoadError("config", f"{fields.where}: num_experts_per_tok={top_k} is more than the {count} of {name}")
    return count, top_k


def sparse(fields: Fields, shared: int = 0) -> ExpertSpec | None:
    """The experts of Qwen's mixtures, None where no layer has any; shared: as in ExpertSpec. Raises LoadError."""
    count, top_k = chosen(fields, "num_local_experts" if "num_local_experts" in fields.values else "num_experts")
    every, dense_ones = fields.count("decoder_sparse_step", 1), fields.values.get("mlp_only_layers") or []
    layers = range(fields.count("num_hidden_layers"))
    held = frozenset(i for i in layers if i not in dense_ones and (i + 1) % every == 0)
    width = fields.count("moe_intermediate_size")
    return ExpertSpec(count, top_k, width, fields.flag("norm_topk_prob"), held, "qwen", shared) if held else None


_ROPE_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "factors": (),
}
_ROPE_OPTIONAL = {"yarn": ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate")}


def _rope(fields: Fields, context: int) -> RopeSpec:
    """Both spellings: rope_parameters (transformers 5) and rope_theta with rope_scaling (before)."""
    given = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise LoadError("config", f"{fields.where}: rope_parameters must be an object, got {_short(given)}")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in _ROPE_NUMBERS:
        raise LoadError(
            "unsupported",
            f"{fields.where}: rope type {_short(kind)} is not supported; supported: {', '.join(_ROPE_NUMBERS)}",
        )
    inside = Fields(given, f"{fields.where}: rope_parameters")
    inside.require("partial_rotary_factor", 1.0)
    theta = inside.number("rope_theta", fields.number("rope_theta", 10000.0))
    outer = fields.values.get("original_max_position_embeddings") or context
    parameters = {
        name: inside.number(name, outer if name == "original_max_position_embeddings" else None)
        for name in _ROPE_NUMBERS[kind]
    }
    for name in _ROPE_OPTIONAL.get(kind, ()):
        if given.get(name) is not None:
            parameters[name] = float(given[name])
    return RopeSpec(kind, theta, parameters, tuple(given["factors"]) if kind == "factors" else ())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
