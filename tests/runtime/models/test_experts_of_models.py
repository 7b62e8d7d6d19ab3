"""Mixtures of experts as config.json says them, their sizes, and quantized ones as models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from branchwork.quantize import write_quantized
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.moe import idle, is_expert
from branchwork.runtime.models.registry import load_model, load_spec
from branchwork.runtime.models.size import in_layers, parameters
from branchwork.runtime.models.spec import ExpertSpec
from tests.checkpoints import checkpoint, copy_of, edit_config, wide
from tests.runtime.models.test_parity import all_logits, prompt
from tests.runtime.models.test_spec import refusal, write

QWEN: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}


def experts(where: Path, **changes: Any) -> ExpertSpec | None:
    return load_spec(write(where, **{**QWEN, **changes})).experts


def test_qwens_experts_are_in_the_layers_that_the_config_names(tmp_path: Path) -> None:
    whole = ExpertSpec(16, 4, 24, True, frozenset(range(4)), "qwen")
    assert experts(tmp_path) == whole
    assert experts(tmp_path, num_experts=None, num_local_experts=16) == whole
    found = [experts(tmp_path, decoder_sparse_step=2), experts(tmp_path, mlp_only_layers=[0, 3])]
    assert [each.layers for each in found if each] == [{1, 3}, {1, 2}]
    assert experts(tmp_path, mlp_only_layers=[0, 1, 2, 3]) is None
    assert not (experts(tmp_path, norm_topk_prob=None) or whole).renormalize


def test_every_layer_of_mixtral_has_experts_whose_gains_sum_to_one(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, architectures=["MixtralForCausalLM"], sliding_window=None))
    assert spec.experts == ExpertSpec(8, 2, 128, True, frozenset(range(4)), "mixtral")
    assert not any(spec.attention.windows)


def test_experts_that_are_not_there_are_refused_by_field(tmp_path: Path) -> None:
    assert (
        "num_experts_per_tok=20 is more than the 16 of num_experts"
        in refusal(tmp_path, **{**QWEN, "num_experts_per_tok": 20}).message
    )
    assert "num_experts must be a positive integer" in refusal(tmp_path, **{**QWEN, "num_experts": None}).message
    shared = {**QWEN, "architectures": ["Qwen2MoeForCausalLM"], "shared_expert_intermediate_size": 8}
    assert "use_sliding_window=True is not supported" in refusal(tmp_path, **shared, use_sliding_window=True).message


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    directory = copy_of("mixtral", tmp_path)
    edit_config(directory, num_local_experts=7)
    with pytest.raises(LoadError, match=r"missing tensors: .*block_sparse_moe\.experts\.6\.w1\.weight"):
        load_model(directory)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "qwen3-moe"])
def test_sizes_count_all_experts_and_work_counts_those_of_a_token(name: str) -> None:
    model, spec = load_model(checkpoint(name), dtype="float32"), load_spec(checkpoint(name))
    stored = load_file(checkpoint(name) / "model.safetensors")
    held = sum(tensor.numel() for tensor in stored.values())
    inside = sum(tensor.numel() for key, tensor in stored.items() if is_expert(key))
    assert spec.experts is not None and inside > held / 5
    unused = round(inside * (1 - spec.experts.top_k / spec.experts.count))
    assert idle(spec.experts) * inside == pytest.approx(unused)
    assert parameters(spec) == held and model.weight_bytes == 4 * held
    table = spec.vocab * spec.hidden
    assert in_layers(spec) == held - 2 * table - unused
    assert model.read_bytes == 4 * (held - table - unused)


@pytest.mark.parametrize(("kind", "near"), [("int8", 0.99), ("int4", 0.9)])
def test_quantized_experts_stay_near_and_are_written_as_they_run(kind: str, near: float, tmp_path: Path) -> None:
    directory = wide(tmp_path)
    model, ids = load_model(directory, dtype="float32", quantize=kind), prompt(33, seed=6)
    plain = load_model(directory, dtype="float32")
    assert model.weight_bytes < plain.weight_bytes * (0.5 if kind == "int8" else 0.4)
    found, expected = all_logits(model, ids, 4, 7), all_logits(plain, ids, 4, 7)
    # the median: where two experts are all but equal, rounding may choose the other
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).median() > near
    write_quantized(directory, tmp_path / "out", kind)
    assert torch.equal(all_logits(load_model(tmp_path / "out", dtype="float32"), ids, 4, 7), found)
