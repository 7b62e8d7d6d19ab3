"""The decoder that Llama, Mistral and Qwen share: names of its tensors, loading, forward.

Knows: spec, layers, mixtures of experts, Hugging Face's tensor names. Must not know: config.json, requests, plans.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from branchwork import kernels
from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.loading.checkpoint import Checkpoint
from branchwork.runtime.models.attention import Attention
from branchwork.runtime.models.layers import Embedding, Linear, Mlp, Rotary
from branchwork.runtime.models.moe import MixtureMlp, idle, is_expert, mixture_shapes, read_mixture
from branchwork.runtime.models.reader import Progress, Reader
from branchwork.runtime.models.spec import ModelSpec
from branchwork.runtime.models.step import Step

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
        self.mlp: Mlp | MixtureMlp = (
            Mlp(parts.mlp, dtype) if isinstance(parts.mlp, kernels.Gated) else MixtureMlp(parts.mlp, dtype)
        )


class Decoder:
    """A loaded model. `dtype` is that of activations and KV, and of weights that are not quantized.

    weight_bytes: of all weights as they were handed over, a tensor that serves twice counted once; read_bytes: of those
    that a step of one token reads, so without an embedding that is only looked up and without idle experts.
    quantization: what the matrices are stored as, "" for floats. notes: what was converted while loading, a line each.
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
            self._embed = Embedding(parts.embed, self.dtype)
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
        reader = Reader(checkpoint, dtype, device, expected, progress)
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
            dense=spec.experts is None,
        )
        model = cls(spec, parts)
        held = reader.bytes
        unread = 0.0 if spec.tied else float(parts.embed.nbytes)
        if spec.experts is not None:
            unread += idle(spec.experts) * sum(size for name, size in held.items() if is_expert(name))
        model.weight_bytes = sum(held.values())
        model.read_bytes = model.weight_bytes - round(unread)
        model.quantization = "" if reader.widened else checkpoint.quantization
        model.notes = list(checkpoint.notes)
        if reader.widened:
            kind = str(dtype).removeprefix("torch.")
            model.notes.append(f"{checkpoint.quantization} becomes {kind} on a CPU, which has no products with e4m3")
        return model

    @torch.inference_mode()
    def hidden(self, step: Step, kv: KVPool) -> Tensor:
        """The last normed hidden states at step.logits_index, [L, C]; writes the step's keys and values into `kv`."""
        if self._stack is not None:
            rows = (step.page_table, step.cu_rows, step.kv_len, step.slots, step.logits_index)
            return self._stack.hidden(step.ids, step.positions, *rows, kv.k, kv.v)
        eps = self.spec.eps
        angles = self._rotary(step.positions)
        residual = self._embed(step.ids)  # [T, C]
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
    ]
    block = [
        ("mlp.gate_proj", f, c, spec.mlp_bias),
        ("mlp.up_proj", f, c, spec.mlp_bias),
        ("mlp.down_proj", c, f, spec.mlp_bias),
    ]
    for i in range(spec.layers):
        at = f"model.layers.{i}."
        sparse = spec.experts is not None and i in spec.experts.layers
        if spec.experts is not None and sparse:
            shapes |= mixture_shapes(spec, spec.experts, i)
        for name, rows, columns, bias in linears if sparse else linears + block:
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
    return "_proj.weight" in name or is_expert(name) or name == (_EMBEDDING if tied else "lm_head.weight")


def _layer(spec: ModelSpec, reader: Reader, i: int) -> kernels.LayerParts:
    a, experts = spec.attention, spec.experts
    at, inner, mlp = f"model.layers.{i}.", f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
    if experts is not None and i in experts.layers:
        block: kernels.Gated | kernels.Experts = read_mixture(experts, reader, i)
    else:
        names = ("gate_proj", "up_proj", "down_proj")
        block = kernels.Gated(*(reader.affine(mlp, spec.mlp_bias, name) for name in names))
    return kernels.LayerParts(
        norm=reader.read(f"{at}input_layernorm.weight"),
        qkv=reader.affine(inner, a.qkv_bias, "q_proj", "k_proj", "v_proj"),
        qk_norm=(reader.read(f"{inner}q_norm.weight"), reader.read(f"{inner}k_norm.weight")) if a.qk_norm else None,
        out=reader.affine(inner, a.out_bias, "o_proj"),
        post_norm=reader.read(f"{at}post_attention_layernorm.weight"),
        mlp=block,
        window=a.windows[i],
    )
