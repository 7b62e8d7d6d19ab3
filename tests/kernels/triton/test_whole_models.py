"""Whole models through the GPU's kernels, interpreted: every kind of weight, of keys and values, and experts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from branchwork import kernels
from branchwork.kernels import Float8, Quantized, table
from branchwork.kernels.reference import float8, quant
from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.models.decoder import Decoder, tensors
from branchwork.runtime.models.layers import Rotary
from branchwork.runtime.models.registry import load_model, load_spec
from branchwork.runtime.models.spec import AttentionSpec, ModelSpec, RopeSpec
from branchwork.runtime.models.step import Step

pytestmark = pytest.mark.interpreted

HIDDEN, FFN, VOCAB, EXPERTS = 64, 96, 100, 4
SPEC = ModelSpec(
    family="any", vocab=VOCAB, hidden=HIDDEN, layers=2, ffn=FFN, context=256, eps=1e-5, tied=True, mlp_bias=False,
    attention=AttentionSpec(4, 2, 16, False, False, True, (0, 5)), rope=RopeSpec("default", 10000.0, {}),
    stored="float32",
)  # fmt: skip
STORED: dict[str, Callable[[Tensor], Tensor | Quantized | Float8]] = {
    "floats": lambda weight: weight,
    "int8": lambda weight: quant.quantize(weight, 8),
    "int4": lambda weight: quant.quantize(weight, 4),
    "e4m3 blocks": lambda weight: float8.quantize(weight, (32, 32)),
    "e4m3 rows": lambda weight: float8.quantize(weight, (1, weight.shape[1])),
}
LATER = ("floats", "int8", "e4m3 rows")  # left to the longer runs


def parts(kind: str, plain: bool) -> kernels.StackParts:
    """A model of 2 layers, the second of which has experts; plain: the same numbers as floats."""
    draw = torch.Generator().manual_seed(1)

    def weight(outputs: int, inputs: int) -> Any:
        made = STORED[kind](torch.randn(outputs, inputs, generator=draw) / inputs**0.5)
        if not plain or isinstance(made, Tensor):
            return made
        return quant.dequantize(made) if isinstance(made, Quantized) else float8.dequantize(made)

    def gated() -> kernels.Gated:
        shapes = ((FFN, HIDDEN), (FFN, HIDDEN), (HIDDEN, FFN))
        return kernels.Gated(*(kernels.Affine(weight(*shape)) for shape in shapes))

    def layer(i: int) -> kernels.LayerParts:
        norm = torch.rand(HIDDEN, generator=draw) + 0.5
        heads = torch.rand(2, 16, generator=draw) + 0.5
        router = torch.randn(EXPERTS, HIDDEN, generator=draw)
        return kernels.LayerParts(
            norm=norm,
            qkv=kernels.Affine(weight(8 * 16, HIDDEN), torch.randn(8 * 16, generator=draw)),
            qk_norm=(heads[0], heads[1]),
            out=kernels.Affine(weight(HIDDEN, 64)),
            post_norm=norm,
            mlp=kernels.Experts(router, EXPERTS, 2, True, lambda e: gated()) if i else gated(),
            window=SPEC.attention.windows[i],
        )

    embed = weight(VOCAB, HIDDEN)
    return kernels.StackParts(
        embed=embed, norm=torch.ones(HIDDEN), head=embed, layer=layer,
        angles=Rotary(SPEC.rope, 16, torch.device("cpu")),
        layers=2, heads=4, kv_heads=2, dim=16, ffn=FFN, eps=SPEC.eps, bytes=0, dense=False,
    )  # fmt: skip


@contextmanager
def chosen(name: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the device, ops are served by these implementations where there are any."""
    with patch.context() as here:
        here.setattr(table, "kind", lambda device: "cuda")
        if name == "reference":
            here.setattr(table, "why_missing", lambda entry, dim=0: "" if entry.name == name else "not asked for")
        table.implementation.cache_clear()
        yield
    table.implementation.cache_clear()


def logits(model: Decoder, held: torch.dtype = torch.float32) -> Tensor:
    """Of a prompt of 9 ids, and then of one more id beside another row's 4."""
    pool = KVPool(2, 12, 2, 2, 16, held, model.device)
    ids = torch.arange(3, 17)
    first, second = torch.tensor([7, 2, 9, 4, 11]), torch.tensor([1, 3])

    def slots(pages: Tensor, positions: Tensor) -> Tensor:
        return pages[positions // 2] * 2 + positions % 2

    def step(ids: Tensor, rows: list[tuple[Tensor, Tensor]], wanted: list[int]) -> Tensor:
        pages = torch.zeros((len(rows), 5), dtype=torch.int32)
        for r, (own, _) in enumerate(rows):
            pages[r, : len(own)] = own
        made = Step(
            ids=ids,
            positions=torch.cat([positions for _, positions in rows]),
            cu_rows=torch.tensor([0, *(len(positions) for _, positions in rows)]).cumsum(0).int(),
            kv_len=torch.tensor([positions[-1] + 1 for _, positions in rows], dtype=torch.int32),
            page_table=pages,
            slots=torch.cat([slots(*row) for row in rows]),
            logits_index=torch.tensor(wanted),
        )
        return model.forward(made, pool)

    prompt = step(ids[:9], [(first, torch.arange(9))], [0, 8])
    later = step(ids[9:14], [(first, torch.tensor([9])), (second, torch.arange(4))], [0, 4])
    return torch.cat((prompt, later))


def assert_near(kind: str, held: torch.dtype, close: float, patch: pytest.MonkeyPatch) -> None:
    with chosen("reference", patch):
        expected = logits(Decoder(SPEC, parts(kind, True)), held)
    with chosen("triton", patch):
        found = logits(Decoder(SPEC, parts(kind, False)), held)
    assert not found.isnan().any()
    assert ((found - expected).norm() / expected.norm()).item() < close


@pytest.mark.parametrize(
    "kind", ["int4", "e4m3 blocks", *(pytest.param(kind, marks=pytest.mark.soak) for kind in LATER)]
)
def test_weights_of_every_kind_give_what_their_floats_give(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_near(kind, torch.float32, 1e-5, monkeypatch)


@pytest.mark.parametrize("held", [torch.int8, torch.float8_e4m3fn])
def test_keys_and_values_of_bytes_are_what_the_definition_keeps(
    held: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that lies between two of the few there are may go either way."""
    assert_near("floats", held, 0.01, monkeypatch)


CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256, "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "mlp_only_layers": [0], "norm_topk_prob": True, "torch_dtype": "float32", "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "near", "smaller"), [("", 1 - 1e-6, 1.0), ("fp8", 0.99, 0.45), ("int4", 0.95, 0.3)])
def test_a_model_is_loaded_for_a_gpu_as_its_kernels_read_it(
    kind: str, near: float, smaller: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    draw = torch.Generator().manual_seed(2)
    shapes = tensors(load_spec(tmp_path))
    made = {name: torch.randn(shape, generator=draw) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    made |= {name: torch.rand(shape, generator=draw) + 0.5 for name, shape in shapes.items() if "norm" in name}
    save_file(made, tmp_path / "model.safetensors")
    plain = load_model(tmp_path, dtype="float32")
    with chosen("triton", monkeypatch):
        model = load_model(tmp_path, dtype="float32", quantize=kind)
        found = logits(model)
    assert model.quantization == kind
    assert model.weight_bytes <= plain.weight_bytes * smaller
    expected = logits(plain)
    # the median: where two experts are all but equal, rounding may choose the other
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).median() > near
