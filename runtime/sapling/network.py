"""A small Llama in plain torch, laid out for fast training on a CPU.

Knows: the architecture, Muon, and how its stacked weights map to Hugging Face names.
Must not know: the corpus, the tokenizer, or the serving runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are the model that ships."""

    vocab: int = 3072
    layers: int = 6
    hidden: int = 192
    heads: int = 6
    kv_heads: int = 3
    head_dim: int = 32
    ffn: int = 448
    context: int = 2048
    theta: float = 10000.0
    eps: float = 1e-5

    def config(self) -> dict[str, object]:
        """The same sizes as a Hugging Face `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "rope_theta": self.theta,
            "rms_norm_eps": self.eps,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "torch_dtype": "bfloat16",
            "use_cache": True,
        }


def rope_table(shape: Shape) -> tuple[Tensor, Tensor]:
    """cos and sin, each [context, head_dim / 2]."""
    inverse = shape.theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angle = torch.outer(torch.arange(shape.context).float(), inverse)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in Hugging Face's half-split layout; x is [batch, heads, length, head_dim]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm, computed in float32 and returned in x's type."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal grouped-query attention; q is [batch, heads, length, head_dim], k and v have fewer heads."""
    batch, heads, length, width = q.shape
    if length > 512:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    # Up to here whole score matrices are faster on a CPU; a group's heads are folded into the rows of one product.
    groups = k.size(1)
    mask = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1).repeat(heads // groups, 1)
    rows, keys, values = (x.reshape(batch * groups, -1, width) for x in (q, k, v))
    scores = torch.baddbmm(mask, rows, keys.transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), values).view(batch, heads, length, width)


@torch.no_grad()
def plant_copying(net: Network) -> None:
    """Start the network with an induction circuit: "find where this token stood before, and say what followed".

    From random weights so small a run spends most of its tokens finding that circuit (Olsson et al., 2022); training
    reshapes it freely. The hidden dimensions are cut in three: 0 is constant, the last third takes the previous
    token's content, the rest is the token's own content."""
    s = net.shape
    group = s.heads // s.kv_heads
    pairs = s.head_dim // 2
    third = s.hidden // 3
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    net.embed.copy_(torch.randn_like(net.embed) * 0.2)
    net.embed[:, 0] = 1.2
    net.embed[:, s.hidden - third :] *= 0.1
    constant = 1.2 / math.sqrt((1.2**2 + (s.hidden - third) * 0.2**2) / s.hidden)  # after the first norm
    net.norms[-1] = 0.25  # logits then start at a sensible size although the residual stream is large
    net.qkv[:3].mul_(0.3)
    # Layer 0: all but the last group look one position back, by the phase of the fastest rotary pairs.
    strength = math.sqrt(10 * math.sqrt(s.head_dim)) / constant
    before = max(1, s.kv_heads - 1)
    for g in range(before):
        for pair in range(4):
            angle = s.theta ** (-pair / pairs)
            net.qkv[0, q + g * s.head_dim + pair, 0] = strength
            for head in range(g * group, (g + 1) * group):
                net.qkv[0, head * s.head_dim + pair, 0] = strength * math.cos(angle)
                net.qkv[0, head * s.head_dim + pair + pairs, 0] = -strength * math.sin(angle)
        for i in range(min(s.head_dim, third - g * s.head_dim)):
            net.qkv[0, q + kv + g * s.head_dim + i, 1 + g * s.head_dim + i] = 1.0
            for head in range(g * group, (g + 1) * group):
                net.out[0, s.hidden - third + g * s.head_dim + i, head * s.head_dim + i] = 0.4 / group
    # Layers 1 and 2: the slowest pairs compare own content with the content before, whatever the distance; what is
    # found there is added to the residual stream as it is.
    slow = [pair + half for pair in range(pairs - 6, pairs) for half in (0, pairs)]
    gain = math.sqrt(10 * math.sqrt(s.head_dim) / len(slow))
    for layer in range(1, min(3, s.layers)):
        for g in range(s.kv_heads):
            for i, row in enumerate(slow):
                at = ((layer - 1) * s.kv_heads * len(slow) + g * len(slow) + i) % third
                net.qkv[layer, q + g * s.head_dim + row, s.hidden - third + at] = gain
                for head in range(g * group, (g + 1) * group):
                    net.qkv[layer, head * s.head_dim + row, 1 + at] = gain
            for i in range(s.head_dim):
                own = 1 + (g * s.head_dim + i) % (s.hidden - third - 1)
                net.qkv[layer, q + kv + g * s.head_dim + i, own] = 1.0
                for head in range(g * group, (g + 1) * group):
                    net.out[layer, own, head * s.head_dim + i] = 0.4 / group


class Network(nn.Module):
    """Every matrix is stacked over the layers, so that one batched Newton-Schulz serves them all."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        s = self.shape = shape
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim

        def matrix(rows: int, columns: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(s.layers, rows, columns) * (gain / math.sqrt(columns)))

        self.embed = nn.Parameter(torch.randn(s.vocab, s.hidden) * 0.02)
        self.qkv = matrix(q + 2 * kv, s.hidden)
        self.out = matrix(s.hidden, q, 0.03)
        self.gate_up = matrix(2 * s.ffn, s.hidden)
        self.down = matrix(s.hidden, s.ffn, 0.03)
        self.norms = nn.Parameter(torch.ones(2 * s.layers + 1, s.hidden))
        cos, sin = rope_table(s)
        plant_copying(self)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor, at: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The loss of `targets` [n] at the flat positions `at` [n] of `ids` [batch, length], summed by `weights`."""
        return F.cross_entropy(self.logits(ids, at).float(), targets, reduction="none") @ weights

    def logits(self, ids: Tensor, at: Tensor) -> Tensor:
        """Logits [n, vocab], in bfloat16, at the flat positions `at` [n] of `ids` [batch, length]."""
        s, half = self.shape, torch.bfloat16
        batch, length = ids.shape
        cos, sin = self.cos[:length].to(half), self.sin[:length].to(half)
        x = F.embedding(ids, self.embed).to(half)
        # Casting the stacks once per step, then unbinding, makes the backward one stack per matrix kind.
        stacks = zip(*(w.to(half).unbind(0) for w in (self.qkv, self.out, self.gate_up, self.down)), strict=True)
        q_size, kv_size = s.heads * s.head_dim, s.kv_heads * s.head_dim
        for layer, (qkv, out, gate_up, down) in enumerate(stacks):
            h = rms_norm(x, self.norms[2 * layer], s.eps)
            q, k, v = (
                part.view(batch, length, -1, s.head_dim).transpose(1, 2)
                for part in F.linear(h, qkv).split_with_sizes((q_size, kv_size, kv_size), dim=-1)
            )
            mixed = attend(rotate(q, cos, sin), rotate(k, cos, sin), v).transpose(1, 2).reshape(batch, length, q_size)
            if layer + 1 == s.layers:
                # Past the last attention, positions are independent: only the asked ones go on.
                x, mixed = x.flatten(0, 1)[at], mixed.flatten(0, 1)[at]
            x = x + F.linear(mixed, out)
            h = rms_norm(x, self.norms[2 * layer + 1], s.eps)
            gate, up = F.linear(h, gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(rms_norm(x, self.norms[-1], s.eps), self.embed.to(half))

    def matrices(self) -> list[nn.Parameter]:
        """The parameters that Muon steps; the rest belong to AdamW."""
        return [self.qkv, self.out, self.gate_up, self.down]

    @torch.no_grad()
    def take(self, state: dict[str, Tensor]) -> None:
        """The weights of `hugging_face_state`, read back."""
        self.embed.copy_(state["model.embed_tokens.weight"])
        self.norms[-1] = state["model.norm.weight"]
        for i in range(self.shape.layers):
            at = f"model.layers.{i}."
            self.qkv[i] = torch.cat([state[f"{at}self_attn.{name}_proj.weight"] for name in "qkv"])
            self.out[i] = state[at + "self_attn.o_proj.weight"]
            self.gate_up[i] = torch.cat([state[at + "mlp.gate_proj.weight"], state[at + "mlp.up_proj.weight"]])
            self.down[i] = state[at + "mlp.down_proj.weight"]
            self.norms[2 * i] = state[at + "input_layernorm.weight"]
            self.norms[2 * i + 1] = state[at + "post_attention_layernorm.weight"]

    def hugging_face_state(self) -> dict[str, Tensor]:
        """The weights under LlamaForCausalLM's names, in bfloat16."""
        s = self.shape
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        state = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norms[-1]}
        for i in range(s.layers):
            at = f"model.layers.{i}."
            for name, part in zip("qkv", self.qkv[i].split_with_sizes((q, kv, kv)), strict=True):
                state[f"{at}self_attn.{name}_proj.weight"] = part
            state[at + "self_attn.o_proj.weight"] = self.out[i]
            state[at + "mlp.gate_proj.weight"], state[at + "mlp.up_proj.weight"] = self.gate_up[i].chunk(2)
            state[at + "mlp.down_proj.weight"] = self.down[i]
            state[at + "input_layernorm.weight"] = self.norms[2 * i]
            state[at + "post_attention_layernorm.weight"] = self.norms[2 * i + 1]
        return {name: tensor.detach().to(torch.bfloat16).contiguous().clone() for name, tensor in state.items()}


def newton_schulz(update: Tensor) -> Tensor:
    """Orthogonalise a batch of matrices [n, rows, columns] by the quintic iteration of Muon (Jordan et al., 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = update.bfloat16()
    wide = x.size(-2) <= x.size(-1)
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; each stack [layers, rows, columns] is cut into blocks of `block` rows first."""

    def __init__(self, stacks: list[tuple[nn.Parameter, int]], lr: float, momentum: float, weight_decay: float) -> None:
        groups = [{"params": [stack], "block": block} for stack, block in stacks]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (p,) = group["params"]
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            buffer = self.state[p]["momentum"]
            buffer.lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(buffer, group["momentum"])
            blocks = update.reshape(-1, group["block"], p.size(-1))
            gain = 0.2 * math.sqrt(max(blocks.shape[-2:]))
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(newton_schulz(blocks).reshape(p.shape), alpha=group["lr"] * gain)
