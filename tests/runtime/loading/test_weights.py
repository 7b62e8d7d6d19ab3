"""Checkpoints load whole or not at all, and the error says which file or tensor is at fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.weights import INDEX, SINGLE, Weights, choose_dtype
from branchwork.runtime.models.registry import load_model
from tests.checkpoints import checkpoint, copy_of, edit_config

CPU = torch.device("cpu")


def refusal(directory: Path) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_model(directory, dtype="float32")
    return caught.value


def rewrite(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, directory / SINGLE)


def test_a_sharded_checkpoint_holds_every_tensor_of_its_shards() -> None:
    sharded, whole = Weights(checkpoint("llama-sharded")), Weights(checkpoint("llama"))
    assert (checkpoint("llama-sharded") / INDEX).is_file()
    assert sharded.shapes == whole.shapes


def test_progress_reaches_one_and_weight_bytes_count_every_parameter() -> None:
    heard: list[float] = []
    model = load_model(checkpoint("llama-tied"), dtype="float32", progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    stored = load_file(checkpoint("llama-tied") / SINGLE)
    assert model.weight_bytes == sum(tensor.numel() * 4 for tensor in stored.values())


@pytest.mark.parametrize("keep", [0, 7, 100, 60_000])
def test_a_truncated_file_is_named_with_what_to_do(tmp_path: Path, keep: int) -> None:
    directory = copy_of("llama", tmp_path)
    file = directory / SINGLE
    file.write_bytes(file.read_bytes()[:keep])
    error = refusal(directory)
    assert error.code == "weights_damaged"
    assert str(file) in error.message
    assert "download the model again" in error.message


def test_a_file_of_garbage_is_damaged_and_not_a_crash(tmp_path: Path) -> None:
    directory = copy_of("llama", tmp_path)
    (directory / SINGLE).write_bytes(b"\xff" * 5000)
    assert refusal(directory).code == "weights_damaged"


def test_missing_and_unexpected_tensors_are_listed_together(tmp_path: Path) -> None:
    directory = copy_of("llama", tmp_path)
    tensors = load_file(directory / SINGLE)
    tensors["model.layers.0.mlp.surprise.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    rewrite(directory, tensors)
    error = refusal(directory)
    assert error.code == "weights_mismatch"
    assert "missing tensors: model.layers.1.mlp.up_proj.weight" in error.message
    assert "unexpected tensors: model.layers.0.mlp.surprise.weight" in error.message


def test_a_wrong_shape_names_the_tensor_and_both_shapes(tmp_path: Path) -> None:
    directory = copy_of("llama", tmp_path)
    edit_config(directory, intermediate_size=96)
    message = refusal(directory).message
    assert "model.layers.0.mlp.gate_proj.weight has shape [80, 48] where config.json implies [96, 48]" in message


def test_biases_that_the_config_does_not_announce_are_not_dropped_silently(tmp_path: Path) -> None:
    directory = copy_of("llama-biases", tmp_path)
    edit_config(directory, attention_bias=False)
    assert "unexpected tensors: model.layers.0.self_attn.k_proj.bias" in refusal(directory).message


def test_known_leftovers_are_ignored(tmp_path: Path) -> None:
    directory = copy_of("llama-tied", tmp_path)
    tensors = load_file(directory / SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    rewrite(directory, tensors)
    assert load_model(directory, dtype="float32").spec.tied


def test_an_absent_shard_is_named(tmp_path: Path) -> None:
    directory = copy_of("llama-sharded", tmp_path)
    shard = sorted(directory.glob("model-00002-*"))[0]
    shard.unlink()
    error = refusal(directory)
    assert error.code == "weights_missing"
    assert shard.name in error.message


def test_an_index_that_is_no_index_is_damaged(tmp_path: Path) -> None:
    directory = copy_of("llama-sharded", tmp_path)
    (directory / INDEX).write_text(json.dumps({"weights": []}))
    assert refusal(directory).code == "weights_damaged"


def test_weights_in_another_format_are_named(tmp_path: Path) -> None:
    directory = copy_of("llama", tmp_path)
    (directory / SINGLE).rename(directory / "pytorch_model.bin")
    error = refusal(directory)
    assert error.code == "weights_missing"
    assert "pytorch_model.bin" in error.message
    assert "convert it to safetensors" in error.message


def test_auto_dtype_never_computes_in_float16_and_keeps_float32() -> None:
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert choose_dtype("auto", "float16", CPU) == (torch.bfloat16 if native else torch.float32)
    assert choose_dtype("auto", "float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", "float32", CPU) == torch.bfloat16
    with pytest.raises(LoadError, match="auto, float32 or bfloat16"):
        choose_dtype("int8", "float32", CPU)


def test_tensors_of_the_computing_type_are_views_of_the_file() -> None:
    weights = Weights(checkpoint("llama"))
    name = "model.layers.1.mlp.up_proj.weight"
    first, again = (weights.read(name, torch.float32, CPU) for _ in range(2))
    assert first.data_ptr() == again.data_ptr()
    assert weights.read(name, torch.bfloat16, CPU).data_ptr() != first.data_ptr()


def test_float16_checkpoints_say_what_they_compute_in(tmp_path: Path) -> None:
    directory = copy_of("llama", tmp_path)
    rewrite(directory, {name: tensor.half() for name, tensor in load_file(directory / SINGLE).items()})
    edit_config(directory, dtype="float16", torch_dtype="float16")
    model = load_model(directory)
    assert f"float16 compute in {str(model.dtype).removeprefix('torch.')}" in model.notes[0]
