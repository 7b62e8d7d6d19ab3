"""config.json is read in old and new spellings, and refused, by field, where it asks for what is not served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.registry import FAMILIES, load_spec
from branchwork.runtime.models.spec import RopeSpec

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}


def write(where: Path, **changes: Any) -> Path:
    (where / "config.json").write_text(json.dumps({**BASE, **changes}))
    return where


def refusal(where: Path, **changes: Any) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_spec(write(where, **changes))
    return caught.value


def test_old_and_new_rope_spellings_mean_the_same(tmp_path: Path) -> None:
    old = load_spec(write(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3}))
    new = load_spec(write(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}))
    assert old.rope == new.rope == RopeSpec("llama3", 5e5, LLAMA3)


def test_the_oldest_spelling_of_a_rope_type_is_read(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, rope_scaling={"type": "linear", "factor": 4}))
    assert spec.rope == RopeSpec("linear", 10000.0, {"factor": 4.0})


def test_absent_fields_take_the_familys_defaults(tmp_path: Path) -> None:
    write(tmp_path, num_key_value_heads=None)
    spec = load_spec(tmp_path)
    assert spec.attention.kv_heads == 8
    assert spec.attention.head_dim == 8
    assert not spec.tied
    assert spec.stored == "bfloat16"
    assert load_spec(write(tmp_path, architectures=["Qwen3ForCausalLM"])).attention.head_dim == 128


def test_windows_follow_the_family(tmp_path: Path) -> None:
    def windows(**changes: Any) -> tuple[int, ...]:
        return load_spec(write(tmp_path, **changes)).attention.windows

    assert windows(architectures=["MistralForCausalLM"], sliding_window=8) == (8, 8, 8, 8)
    assert windows(architectures=["MistralForCausalLM"], sliding_window=None) == (0, 0, 0, 0)
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "max_window_layers": 3}
    assert windows(**qwen) == (0, 0, 0, 0)
    assert windows(**qwen, use_sliding_window=True) == (0, 0, 0, 8)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows(**qwen, use_sliding_window=True, layer_types=kinds) == (8, 0, 8, 0)


def test_an_unknown_architecture_is_refused_with_the_list_of_known_ones(tmp_path: Path) -> None:
    error = refusal(tmp_path, architectures=["MambaForCausalLM"])
    assert error.code == "unsupported"
    assert all(name in error.message for name in ("MambaForCausalLM", *FAMILIES))


@pytest.mark.parametrize(
    "field, value, code",
    [
        ("hidden_act", "gelu", "unsupported"),
        ("partial_rotary_factor", 0.5, "unsupported"),
        ("rope_scaling", {"rope_type": "longrope"}, "unsupported"),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "config"),
        ("head_dim", 7, "unsupported"),
        ("num_key_value_heads", 3, "config"),
        ("vocab_size", None, "config"),
        ("num_hidden_layers", "four", "config"),
        ("tie_word_embeddings", "yes", "config"),
        ("architectures", None, "config"),
    ],
)
def test_a_field_that_cannot_be_served_is_named(tmp_path: Path, field: str, value: Any, code: str) -> None:
    error = refusal(tmp_path, **{field: value})
    assert error.code == code
    named = "rope" if field == "rope_scaling" else field
    assert named in error.message
    assert str(tmp_path / "config.json") in error.message


def test_a_config_that_is_no_json_and_one_that_is_absent_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="it is not a model directory") as absent:
        load_spec(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": [')
    with pytest.raises(LoadError, match="cannot be read as JSON") as broken:
        load_spec(tmp_path)
    assert (absent.value.code, broken.value.code) == ("not_found", "config")
