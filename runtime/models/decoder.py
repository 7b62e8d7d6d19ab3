"""The dense decoder that Llama, Mistral and Qwen share: names of its tensors, loading, forward.

Knows: spec, layers, Hugging Face's tensor names. Must not know: config.json, requests, plans.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from branchwork import kernels
from branchwork.kernels.reference.quant import Quantized, cat, dequantize
from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.loading.checkpoint import Checkpoint
from branchwork.runtime.models.attention import Attention
from branchwork.runtime.models.layers import Linear, Mlp, Rotary
from branchwork.runtime.models.spec import ModelSpec
from branchwork.runtime.models.step import Step

Progress = Callable[[float], None]
Part = TypeVar("Part", bound=Tensor | Quantized)
_EMBEDDING = "model.embed_tokens.weight"
_IGNORABLE = r"rotary_emb\.inv_freq$|self_attn\.masked_bias$"
_TIED = r"|^lm_head\.weight$"  # some checkpoints store the shared matrix twice


class Layer:
    """One block: attention and feed-forward, each after a norm of the residual stream."""

    __slots__ = ("attention", "mlp", "norm", "post_norm")

    def __init__(self, spec: ModelSpec, parts: kernels.LayerParts) -> None:
        dtype = parts.norm.dtype
        self.norm = parts.norm
        self.attention = Attention(
            spec.attention,
            Linear(*parts.qkv, dtype),
            Linear(*parts.out, dtype),
            norms=parts.qk_norm,
            eps=spec.eps,
            window=parts.window,
        )
        self.post_norm = parts.post_norm
        self.mlp = Mlp(Linear(*_joined(parts.gate, parts.up), dtype), Linear(*parts.down, dtype))


class Decoder:
    """A loaded model. `dtype` is that of activations and KV, and of weights that are not quantized.

    weight_bytes: of all weights as they were handed over, a tensor that serves twice counted once; read_bytes: without
    an embedding that is only looked up. quantization: what the matrices are stored as, "" for floats. notes: what was
    converted while loading, a line each.
    Its layers run in one call where the kernels offer that for it, or else op by op."""

    def __init__(self, spec: ModelSpec, parts: kernels.StackParts) -> None:
        self.spec = spec
        self.dtype = parts.norm.dtype
        self.device = parts.norm.device
        self.weight_bytes = self.read_bytes = parts.bytes
        self.quantization = ""
        self.notes: list[str] = []
        self._stack = kernels.stack(parts)
        if self._stack is None:
            self._rotary = parts.angles
            self._embed = dequantize(parts.embed, self.dtype) if isinstance(parts.embed, Quantized) else parts.embed
            self._layers = [Layer(spec, parts.layer(i)) for i in range(spec.layers)]
            self._norm = parts.norm
            self._head = Linear(parts.head, None, self.dtype)

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress | None,
    ) -> Decoder:
        """Raises LoadError before any data is read when names or shapes do not fit the spec."""
        expected = tensors(spec)
        checkpoint.verify(expected, ignorable(spec))
        reader = _Reader(checkpoint, dtype, device, expected, progress)
        head = reader.matrix(_EMBEDDING if spec.tied else "lm_head.weight")
        a = spec.attention
        parts = kernels.StackParts(
            embed=head if spec.tied else reader.matrix(_EMBEDDING),
            norm=reader.read("model.norm.weight"),
            head=head,
            layer=lambda i: _layer(spec, reader, i),
            angles=Rotary(spec.rope, a.head_dim, device),
            layers=spec.layers,
            heads=a.heads,
            kv_heads=a.kv_heads,
            dim=a.head_dim,
            ffn=spec.ffn,
            eps=spec.eps,
            bytes=sum(math.prod(shape) for shape in expected.values()) * dtype.itemsize,
        )
        model = cls(spec, parts)
        model.weight_bytes = reader.held
        model.read_bytes = reader.held - (0 if spec.tied else parts.embed.nbytes)
        model.quantization = checkpoint.quantization
        model.notes = checkpoint.notes
        return model

    @torch.inference_mode()
    def hidden(self, step: Step, kv: KVPool) -> Tensor:
        """The last normed hidden states at step.logits_index, [L, C]; writes the step's keys and values into `kv`."""
        if self._stack is not None:
            rows = (step.page_table, step.cu_rows, step.kv_len, step.slots, step.logits_index)
            return self._stack.hidden(step.ids, step.positions, *rows, kv.k, kv.v)
        eps = self.spec.eps
        angles = self._rotary(step.positions)
        residual = kernels.embedding(step.ids, self._embed)  # [T, C]
        normed = kernels.rms_norm(residual, self._layers[0].norm, eps)
        last = len(self._layers) - 1
        for i, layer in enumerate(self._layers):
            mixed = layer.attention(normed, step, angles, kv.k[i], kv.v[i])
            if i == last:  # past the last attention only the wanted places matter
                mixed, residual = mixed.index_select(0, step.logits_index), residual.index_select(0, step.logits_index)
            normed, residual = kernels.add_rms_norm(mixed, residual, layer.post_norm, eps)
            following = self._norm if i == last else self._layers[i + 1].norm
            normed, residual = kernels.add_rms_norm(layer.mlp(normed), residual, following, eps)
        return normed

    @torch.inference_mode()
    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """hidden [L, C] to logits [L, V], float32, written into `out` where that is given."""
        found = self._head(hidden) if self._stack is None else self._stack.logits(hidden)
        return found.float() if out is None else out.copy_(found)

    def forward(self, step: Step, kv: KVPool) -> Tensor:
        """Logits at step.logits_index, float32 [L, V]."""
        return self.logits(self.hidden(step, kv))


def tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor a checkpoint of this spec holds."""
    a, c, f = spec.attention, spec.hidden, spec.ffn
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    shapes: dict[str, tuple[int, ...]] = {_EMBEDDING: (spec.vocab, c), "model.norm.weight": (c,)}
    if not spec.tied:
        shapes["lm_head.weight"] = (spec.vocab, c)
    linears = [
        ("self_attn.q_proj", q, c, a.qkv_bias),
        ("self_attn.k_proj", kv, c, a.qkv_bias),
        ("self_attn.v_proj", kv, c, a.qkv_bias),
        ("self_attn.o_proj", c, q, a.out_bias),
        ("mlp.gate_proj", f, c, spec.mlp_bias),
        ("mlp.up_proj", f, c, spec.mlp_bias),
        ("mlp.down_proj", c, f, spec.mlp_bias),
    ]
    for i in range(spec.layers):
        at = f"model.layers.{i}."
        for name, rows, columns, bias in linears:
            shapes[f"{at}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{at}{name}.bias"] = (rows,)
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (c,)
        if a.qk_norm:
            shapes[f"{at}self_attn.q_norm.weight"] = shapes[f"{at}self_attn.k_norm.weight"] = (a.head_dim,)
    return shapes


def ignorable(spec: ModelSpec) -> re.Pattern[str]:
    """Names of tensors that a checkpoint may hold besides."""
    return re.compile(_IGNORABLE + (_TIED if spec.tied else ""))


def is_matrix(name: str, tied: bool) -> bool:
    """Whether a tensor is multiplied with, so that it may be quantized; of embeddings only one that is the head too."""
    return "_proj.weight" in name or name == (_EMBEDDING if tied else "lm_head.weight")


class _Reader:
    """Reads tensors by name onto one device: matrices as they are stored, everything else in one dtype.

    held: bytes handed out so far, a name asked for twice counted once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        expected: Mapping[str, tuple[int, ...]],
        progress: Progress | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._expected = expected
        self._total = sum(map(math.prod, expected.values()))
        self._bytes: dict[str, int] = {}
        self._progress = progress

    @property
    def held(self) -> int:
        return sum(self._bytes.values())

    def read(self, *names: str) -> Tensor:
        """One tensor of floats, or several stacked along their first dimension."""
        parts = [self._told(name, self._checkpoint.read(name, self._dtype, self._device)) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def matrix(self, *names: str) -> Tensor | Quantized:
        """One matrix or several below each other; floats if any of them is, and on devices without integer kernels."""
        parts = [self._told(name, self._checkpoint.matrix(name, self._dtype, self._device)) for name in names]
        return _below(parts, self._dtype, self._device.type == "cpu")

    def affine(self, at: str, bias: bool, *names: str) -> kernels.Affine:
        weight = self.matrix(*(f"{at}{name}.weight" for name in names))
        return kernels.Affine(weight, self.read(*(f"{at}{name}.bias" for name in names)) if bias else None)

    def _told(self, name: str, part: Part) -> Part:
        """Count what was read and report how much of all weights that makes."""
        self._bytes[name] = part.nbytes
        if self._progress is not None:
            self._progress(sum(math.prod(self._expected[name]) for name in self._bytes) / self._total)
        return part


def _layer(spec: ModelSpec, reader: _Reader, i: int) -> kernels.LayerParts:
    a = spec.attention
    at, inner, mlp = f"model.layers.{i}.", f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
    return kernels.LayerParts(
        norm=reader.read(f"{at}input_layernorm.weight"),
        qkv=reader.affine(inner, a.qkv_bias, "q_proj", "k_proj", "v_proj"),
        qk_norm=(reader.read(f"{inner}q_norm.weight"), reader.read(f"{inner}k_norm.weight")) if a.qk_norm else None,
        out=reader.affine(inner, a.out_bias, "o_proj"),
        post_norm=reader.read(f"{at}post_attention_layernorm.weight"),
        gate=reader.affine(mlp, spec.mlp_bias, "gate_proj"),
        up=reader.affine(mlp, spec.mlp_bias, "up_proj"),
        down=reader.affine(mlp, spec.mlp_bias, "down_proj"),
        window=a.windows[i],
    )


def _below(parts: Sequence[Tensor | Quantized], dtype: torch.dtype, integers: bool) -> Tensor | Quantized:
    """Matrices below each other; floats of this dtype if any of them is, or without `integers`."""
    kept = [part for part in parts if isinstance(part, Quantized)]
    if kept and len(kept) == len(parts) and integers:
        return kept[0] if len(kept) == 1 else cat(kept)
    floats = [part if isinstance(part, Tensor) else dequantize(part, dtype) for part in parts]
    return floats[0] if len(floats) == 1 else torch.cat(floats)


def _joined(one: kernels.Affine, other: kernels.Affine) -> kernels.Affine:
    """Two products of the same inputs as one."""
    dtype = next((part.dtype for part in (one.weight, other.weight) if isinstance(part, Tensor)), torch.float32)
    weight = _below((one.weight, other.weight), dtype, True)
    return kernels.Affine(weight, None if one.bias is None or other.bias is None else torch.cat((one.bias, other.bias)))
