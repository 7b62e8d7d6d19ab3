"""BERT and its kin (RoBERTa, XLM-RoBERTa, DistilBERT): what their config.json may say, their tensors, their forward.

Knows: encoders' fields and tensor names, layers, kernels. Must not know: requests, plans, what the states are for.
An encoder has no cache: every token attends to all of its text, so a text is computed whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from branchwork import kernels
from branchwork.runtime.loading.checkpoint import Checkpoint
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.layers import Embedding, Linear
from branchwork.runtime.models.reader import Progress, Reader
from branchwork.runtime.models.spec import Fields

_IGNORABLE = re.compile(r"^pooler\.|position_ids$|^embeddings\.token_type_ids$")
_EMBEDDINGS = "embeddings."
_WORDS, _POSITIONS, _KINDS = (f"{_EMBEDDINGS}{what}_embeddings.weight" for what in ("word", "position", "token_type"))


@dataclass(frozen=True)
class Names:
    """A family's tensor names. Of a layer's parts, which lie below `layer`, in the order of their use."""

    layer: str
    qkv: tuple[str, str, str]
    out: str
    norm: str
    up: str
    down: str
    last_norm: str


_BERT = Names(
    layer="encoder.layer.",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    last_norm="output.LayerNorm",
)
_DISTIL = Names(
    layer="transformer.layer.",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    last_norm="output_layer_norm",
)


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder. context in tokens; kinds: token types, of which every token has the first, 0 for none; first: row of
    the table of positions that a text's first token takes; stored: dtype of the checkpoint."""

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    positions: int
    first: int
    kinds: int
    eps: float
    stored: str
    names: Names

    @property
    def context(self) -> int:
        """Tokens of the longest text."""
        return self.positions - self.first


def bert(fields: Fields) -> EncoderSpec:
    """Raises LoadError for missing, wrong and unsupported fields, as the others."""
    return _spec(fields, "bert", first=0)


def roberta(fields: Fields) -> EncoderSpec:
    """Positions begin behind the padding token's."""
    padding = fields.values.get("pad_token_id")
    return _spec(fields, "roberta", first=(1 if padding is None else int(padding)) + 1)


def distilbert(fields: Fields) -> EncoderSpec:
    """The same network under other names, without token types."""
    fields.require("activation", "gelu")
    fields.require("sinusoidal_pos_embds", False, True)  # stored in the checkpoint either way
    hidden, heads = fields.count("dim"), fields.count("n_heads")
    return EncoderSpec(
        family="distilbert",
        vocab=fields.count("vocab_size"),
        hidden=hidden,
        layers=fields.count("n_layers"),
        heads=_divides(fields, heads, hidden),
        ffn=fields.count("hidden_dim"),
        positions=fields.count("max_position_embeddings", 512),
        first=0,
        kinds=0,
        eps=1e-12,
        stored=_stored(fields),
        names=_DISTIL,
    )


ENCODERS: dict[str, Callable[[Fields], EncoderSpec]] = {
    "BertModel": bert,
    "RobertaModel": roberta,
    "XLMRobertaModel": roberta,
    "DistilBertModel": distilbert,
}


class Layer:
    """Attention within each text and a feed-forward block, a norm after each sum with what went in."""

    __slots__ = ("_down", "_heads", "_last_norm", "_norm", "_out", "_qkv", "_scale", "_up", "eps")

    def __init__(self, spec: EncoderSpec, reader: Reader, at: str) -> None:
        names = spec.names
        self._heads = spec.heads
        self._scale = (spec.hidden // spec.heads) ** -0.5
        self.eps = spec.eps

        def linear(*parts: str) -> Linear:
            return Linear(*reader.affine(at, True, *parts), reader.dtype)

        self._qkv, self._out = linear(*names.qkv), linear(names.out)
        self._up, self._down = linear(names.up), linear(names.down)
        self._norm, self._last_norm = _norm(reader, at + names.norm), _norm(reader, at + names.last_norm)

    def __call__(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """x [T, C] to [T, C]."""
        tokens, width = x.shape
        q, k, v = self._qkv(x).view(tokens, 3, self._heads, -1).unbind(1)  # [T, H, D] each
        mixed = kernels.ragged_attention(q, k, v, lengths, self._scale).view(tokens, width)
        x = kernels.layer_norm(self._out(mixed) + x, *self._norm, self.eps)
        return kernels.layer_norm(self._down(kernels.gelu(self._up(x))) + x, *self._last_norm, self.eps)


class Encoder:
    """A loaded encoder. dtype: of activations and weights. weight_bytes: of all weights."""

    def __init__(self, spec: EncoderSpec, reader: Reader) -> None:
        self.spec = spec
        self.dtype, self.device = reader.dtype, reader.device
        positions = reader.read(_POSITIONS)[spec.first :]
        # one type for all tokens: its row is part of every position's
        self._positions = positions + reader.read(_KINDS)[0] if spec.kinds else positions
        self._words = Embedding(reader.matrix(_WORDS), reader.dtype)
        self._norm = _norm(reader, f"{_EMBEDDINGS}LayerNorm")
        self._layers = [Layer(spec, reader, f"{spec.names.layer}{i}.") for i in range(spec.layers)]
        self.weight_bytes = sum(reader.bytes.values())

    @classmethod
    def load(
        cls,
        spec: EncoderSpec,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress | None,
    ) -> Encoder:
        """Raises LoadError before any data is read when names or shapes do not fit the spec."""
        expected = tensors(spec)
        checkpoint.verify(expected, _IGNORABLE)
        return cls(spec, Reader(checkpoint, dtype, device, expected, progress))

    @torch.inference_mode()
    def hidden(self, ids: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        """The last states, [T, C], of texts one behind the other; ids, positions int64 [T]; lengths: tokens of each."""
        x = self._words(ids) + kernels.embedding(positions, self._positions)
        x = kernels.layer_norm(x, *self._norm, self.spec.eps)
        for layer in self._layers:
            x = layer(x, lengths)
        return x


def tensors(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor a checkpoint of this spec holds."""
    c, f, names = spec.hidden, spec.ffn, spec.names
    shapes: dict[str, tuple[int, ...]] = {_WORDS: (spec.vocab, c), _POSITIONS: (spec.positions, c)}
    if spec.kinds:
        shapes[_KINDS] = (spec.kinds, c)
    norms = [f"{_EMBEDDINGS}LayerNorm"]
    for i in range(spec.layers):
        at = f"{names.layer}{i}."
        sizes = [*((part, c, c) for part in (*names.qkv, names.out)), (names.up, f, c), (names.down, c, f)]
        for part, rows, columns in sizes:
            shapes |= {f"{at}{part}.weight": (rows, columns), f"{at}{part}.bias": (rows,)}
        norms += [at + names.norm, at + names.last_norm]
    return shapes | {f"{norm}.{part}": (c,) for norm in norms for part in ("weight", "bias")}


def parameters(spec: EncoderSpec) -> int:
    """All numbers of an encoder."""
    return sum(math.prod(shape) for shape in tensors(spec).values())


def _spec(fields: Fields, family: str, first: int) -> EncoderSpec:
    fields.require("hidden_act", "gelu")
    fields.require("position_embedding_type", "absolute")
    fields.require("is_decoder", False)
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    return EncoderSpec(
        family=family,
        vocab=fields.count("vocab_size"),
        hidden=hidden,
        layers=fields.count("num_hidden_layers"),
        heads=_divides(fields, heads, hidden),
        ffn=fields.count("intermediate_size"),
        positions=fields.count("max_position_embeddings"),
        first=first,
        kinds=fields.count("type_vocab_size", 2),
        eps=fields.number("layer_norm_eps", 1e-12),
        stored=_stored(fields),
        names=_BERT,
    )


def _divides(fields: Fields, heads: int, hidden: int) -> int:
    if hidden % heads:
        raise LoadError("config", f"{fields.where}: {hidden} channels cannot be cut into {heads} heads")
    return heads


def _stored(fields: Fields) -> str:
    return str(fields.values.get("dtype") or fields.values.get("torch_dtype") or "float32").removeprefix("torch.")


def _norm(reader: Reader, name: str) -> tuple[Tensor, Tensor]:
    return reader.read(f"{name}.weight"), reader.read(f"{name}.bias")
