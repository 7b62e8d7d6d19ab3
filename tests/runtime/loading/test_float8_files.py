"""e4m3 checkpoints mean value times scale: floats on a CPU, bytes on a GPU; what is not served is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from branchwork import doctor_model
from branchwork.kernels import Float8, Quantized
from branchwork.kernels.reference import float8, quant
from branchwork.quantize import write_quantized
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.formats import open_checkpoint
from branchwork.runtime.loading.weights import choose_dtype
from branchwork.runtime.models.decoder import ignorable, tensors
from branchwork.runtime.models.reader import Reader
from branchwork.runtime.models.registry import load_model, load_spec
from branchwork.runtime.models.size import parameters
from tests.checkpoints import checkpoint, copy_of, edit_config
from tests.gguf_files import tensors_of
from tests.runtime.loading.test_gguf import SAPLING
from tests.runtime.loading.test_packed import awq, layer_matrices, write
from tests.runtime.models.test_parity import all_logits, prompt

CPU, GPU = torch.device("cpu"), torch.device("meta")  # meta: takes tensors as a GPU does, and needs none
IDS = prompt(33, seed=6)
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [32, 64]}


def compressed(strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, **more}
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}


KINDS: dict[str, tuple[dict[str, Any], str, tuple[int, int] | None]] = {  # config, scale's name, block
    "blocks": (BLOCKS, "weight_scale_inv", (32, 64)),
    "whole": ({"quant_method": "fp8", "activation_scheme": "static"}, "weight_scale", None),
    "tensor": (compressed("tensor"), "weight_scale", None),
    "channel": (compressed("channel"), "weight_scale", (1, 10**6)),
    "compressed blocks": (compressed("block", block_structure=[32, 64]), "weight_scale", (32, 64)),
}


def eights(where: Path, kind: str, source: Path = SAPLING) -> tuple[Path, dict[str, Tensor]]:
    """A model's layers as a scheme stores them, and the float weights that this means."""
    config, suffix, block = KINDS[kind]
    stored = tensors_of(source)
    meant = dict(stored)
    for name in layer_matrices(stored):
        wide = None if block is None else (block[0], min(block[1], stored[name].shape[1]))
        weight = float8.quantize(stored[name], wide)
        meant[name], stored[name] = float8.dequantize(weight), weight.values
        stored[f"{name.removesuffix('weight')}{suffix}"] = weight.scales if block else weight.scales[0]
    return write(where, stored, config), meant


def plain(where: Path, meant: dict[str, Tensor]) -> Path:
    directory = write(where, meant, {})
    edit_config(directory, quantization_config=None)
    return directory


def refusal(directory: Path, **options: str) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_model(directory, dtype="float32", **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_e4m3_matrices_compute_on_a_cpu_what_value_times_scale_is(kind: str, tmp_path: Path) -> None:
    directory, meant = eights(tmp_path / "m", kind)
    model = load_model(directory, dtype="float32")
    assert model.quantization == ""
    assert any("fp8 becomes float32 on a CPU" in note for note in model.notes)
    each = choose_dtype("auto", model.spec.stored, CPU).itemsize
    assert doctor_model.weight_bytes(directory, model.spec) == each * parameters(model.spec)
    assert model.weight_bytes == 4 * parameters(model.spec)
    expected = all_logits(load_model(plain(tmp_path / "plain", meant), dtype="float32"), IDS, 4, 7)
    assert torch.equal(all_logits(model, IDS, 4, 7), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_e4m3_matrices_stay_as_they_are_on_a_gpu(kind: str, tmp_path: Path) -> None:
    directory, _ = eights(tmp_path / "m", kind)
    spec = load_spec(directory)
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    found = reader(directory, GPU).matrix(*names)
    assert isinstance(found, Float8)
    assert found.values.device == found.scales.device == GPU
    a = spec.attention
    assert found.shape == ((a.heads + 2 * a.kv_heads) * a.head_dim, spec.hidden)


@pytest.mark.parametrize("block", [None, (1, 64), (32, 64), (48, 32)])
def test_e4m3_matrices_below_each_other_mean_what_each_means(block: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(rows, 80) * rows for rows in (96, 32, 33)]
    weights = [float8.quantize(part, block) for part in parts]
    whole = float8.cat(weights)
    float8.check(whole)
    assert torch.equal(float8.dequantize(whole), torch.cat([float8.dequantize(weight) for weight in weights]))


def reader(directory: Path, device: torch.device, quantize: str = "") -> Reader:
    found, spec = open_checkpoint(directory, quantize), load_spec(directory)
    found.verify(tensors(spec), ignorable(spec))
    return Reader(found, torch.bfloat16, device, tensors(spec), None)


def test_integers_move_to_the_gpu_as_they_are(tmp_path: Path) -> None:
    directory, _ = awq(tmp_path / "m")
    found = reader(directory, GPU).matrix(*(f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up")))
    assert isinstance(found, Quantized)
    assert found.values.device == found.scales.device == GPU
    assert found.offsets is not None and found.offsets.device == GPU


def test_the_older_e4m3_of_amd_is_converted(tmp_path: Path) -> None:
    """It reaches 240 and has one smaller step below 2**-6, which is what may be rounded."""
    directory, meant = eights(tmp_path / "m", "channel")
    file = directory / "model.safetensors"
    stored = load_file(file)
    for name in layer_matrices(meant):
        stored[name] = (stored[name].float() * 0.5).to(torch.float8_e4m3fnuz)
    save_file(stored, file)
    for name in layer_matrices(meant):
        found = open_checkpoint(directory).matrix(name, torch.float32, CPU)
        assert isinstance(found, Float8)
        scale = stored[f"{name}_scale"]
        exact = stored[name].float() * scale
        assert ((float8.dequantize(found) - exact).abs() <= scale * 1.001 * 2.0**-10).all()
        assert (float8.dequantize(found) == exact).float().mean() > 0.99


def test_scales_that_are_powers_of_two_are_read(tmp_path: Path) -> None:
    directory, meant = eights(tmp_path / "m", "blocks")
    file = directory / "model.safetensors"
    stored = load_file(file)
    name = layer_matrices(meant)[0]
    scales = f"{name}_scale_inv"
    stored[scales] = stored[scales].to(torch.float8_e8m0fnu)
    save_file(stored, file)
    found = open_checkpoint(directory).matrix(name, torch.float32, CPU)
    assert isinstance(found, Float8)
    assert torch.equal(found.scales, stored[scales].float())


def test_scales_of_rows_and_of_keys_are_left_out_and_said(tmp_path: Path) -> None:
    directory, meant = eights(tmp_path / "m", "tensor")
    file = directory / "model.safetensors"
    extra = {f"{name.removesuffix('weight')}input_scale": torch.ones(1) for name in layer_matrices(meant)}
    extra["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file({**load_file(file), **extra}, file)
    notes = load_model(directory, dtype="float32").notes
    assert any(f"{len(extra)} tensors such as" in note and "are not used" in note for note in notes)


def test_integers_made_of_e4m3_stay_near_it(tmp_path: Path) -> None:
    directory, _ = eights(tmp_path / "m", "blocks")
    model = load_model(directory, dtype="float32", quantize="int8")
    assert model.quantization == "int8"
    assert any("rounds once more" in note for note in model.notes)
    expected = all_logits(load_model(directory, dtype="float32"), IDS, 4, 7)
    assert torch.nn.functional.cosine_similarity(all_logits(model, IDS, 4, 7), expected, dim=-1).min() > 0.99


def test_what_is_not_served_is_refused_by_name(tmp_path: Path) -> None:
    directory, meant = eights(tmp_path / "m", "blocks")
    file, name = directory / "model.safetensors", layer_matrices(meant)[0]
    stored = load_file(file)
    assert "no products with e4m3; use quantize=int8" in refusal(SAPLING, quantize="fp8").message
    with pytest.raises(LoadError, match=r"quantized already \(fp8\)"):
        open_checkpoint(directory, "fp8")
    save_file({**stored, name: stored[name].float().to(torch.float8_e5m2)}, file)
    assert f"tensor {name} is of e5m2" in refusal(directory).message
    save_file({key: value for key, value in stored.items() if key != f"{name}_scale_inv"}, file)
    assert refusal(directory).code == "weights_mismatch" and name in refusal(directory).message
    save_file({**stored, f"{name}_scale_inv": torch.ones(3, 5)}, file)
    assert "scales [3, 5], which do not fit blocks of (32, 64)" in refusal(directory).message
    edit_config(directory, quantization_config={**BLOCKS, "fmt": "e5m2"})
    assert "fmt='e5m2' is not supported" in refusal(directory).message
    edit_config(directory, quantization_config={**BLOCKS, "weight_block_size": 128})
    assert "weight_block_size must be two positive integers, got 128" in refusal(directory).message
    edit_config(directory, quantization_config=compressed("channel", num_bits=4, type="int"))
    assert "('int', 4, 'channel')" in refusal(directory).message


def test_blocks_too_narrow_for_the_kernels_become_floats(tmp_path: Path) -> None:
    directory, meant = eights(tmp_path / "m", "blocks")
    file, name = directory / "model.safetensors", layer_matrices(meant)[0]
    weight = float8.quantize(meant[name], (32, 8))
    save_file({**load_file(file), name: weight.values, f"{name}_scale_inv": weight.scales}, file)
    edit_config(directory, quantization_config={**BLOCKS, "weight_block_size": [32, 8]})
    assert torch.equal(open_checkpoint(directory).read(name, torch.float32, CPU), float8.dequantize(weight))
    assert isinstance(open_checkpoint(directory).matrix(name, torch.float32, GPU), Tensor)


def test_what_is_written_for_gpus_is_what_the_option_makes(tmp_path: Path) -> None:
    """The head stays as it is: a step of e4m3 is a sixteenth of a number, too much for the last product."""
    before, after = write_quantized(checkpoint("mixtral"), tmp_path / "out", "fp8")
    assert after < before * 0.6
    written, option = open_checkpoint(tmp_path / "out"), open_checkpoint(checkpoint("mixtral"), "fp8")
    spec = load_spec(tmp_path / "out")
    for each in (written, option):
        each.verify(tensors(spec), ignorable(spec))
    kept = 0
    for name in tensors(spec):
        if "_proj" in name or ".experts." in name:
            found, made = (each.matrix(name, torch.float32, CPU) for each in (written, option))
            assert isinstance(found, Float8) and isinstance(made, Float8)
            assert torch.equal(found.values.view(torch.uint8), made.values.view(torch.uint8))
            assert torch.equal(found.scales, made.scales) and found.block == made.block == (1, found.shape[1])
            kept += 1
    assert kept == 3 * (4 + 6 * 3)
    assert isinstance(option.matrix("lm_head.weight", torch.float32, CPU), Tensor)
    assert load_model(tmp_path / "out", dtype="float32").read_bytes < load_model(checkpoint("mixtral")).weight_bytes


def test_rows_of_a_table_of_integers_are_those_of_its_floats() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([5, 0, 5, 17])
    for bits, offsets in ((8, False), (8, True), (4, False), (4, True)):
        table = quant.quantize(torch.randn(18, 64), bits, offsets=offsets)
        assert torch.equal(quant.dequantize(quant.rows(table, ids)), quant.dequantize(table)[ids])


def test_e4m3_experts_compute_on_a_cpu_what_they_mean(tmp_path: Path) -> None:
    directory = copy_of("qwen3-moe", tmp_path)
    file = directory / "model.safetensors"
    stored = load_file(file)
    meant = dict(stored)
    for name in [name for name in stored if ".experts." in name]:
        weight = float8.quantize(stored[name], (16, 16))
        meant[name], stored[name], stored[f"{name}_scale_inv"] = (
            float8.dequantize(weight), weight.values, weight.scales,
        )  # fmt: skip
    save_file(meant, file)
    expected = all_logits(load_model(directory, dtype="float32"), IDS, 4, 7)
    save_file(stored, file)
    edit_config(directory, quantization_config={**BLOCKS, "weight_block_size": [16, 16]})
    assert torch.equal(all_logits(load_model(directory, dtype="float32"), IDS, 4, 7), expected)
