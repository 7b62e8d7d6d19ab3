"""GPTQ and AWQ checkpoints, packed here from the formats' definitions, mean what a plain dequantization says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from branchwork.kernels.reference.quant import Quantized, dequantize
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.formats import open_checkpoint
from branchwork.runtime.models.registry import load_model
from tests.checkpoints import edit_config
from tests.gguf_files import tensors_of
from tests.runtime.loading.test_gguf import SAPLING
from tests.runtime.models.test_parity import all_logits, prompt

CPU = torch.device("cpu")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours stands in four-bit place 0, 1, ...


def packed(numbers: torch.Tensor, bits: int, order: tuple[int, ...]) -> torch.Tensor:
    """Unsigned numbers [R, C] in 32-bit words [R, C / (32 / bits)]; order: which neighbour stands in each place."""
    rows, words = numbers.shape[0], numbers.view(numbers.shape[0], -1, 32 // bits)
    out = torch.zeros(rows, words.shape[1], dtype=torch.int64)
    for place, neighbour in enumerate(order):
        out |= words[..., neighbour].long() << (bits * place)
    return torch.where(out >= 1 << 31, out - (1 << 32), out).to(torch.int32)


def rounded(weight: torch.Tensor, bits: int, of: torch.Tensor, even: bool) -> tuple[torch.Tensor, ...]:
    """Codes [N, K], zeros [N, G], scales float16 [N, G] of a weight [N, K] whose input k is in group of[k]."""
    most, groups = (1 << bits) - 1, int(of.max()) + 1
    codes, zeros, scales = torch.zeros(weight.shape), [], []
    for g in range(groups):
        part = weight[:, of == g]
        low, high = part.amin(1), part.amax(1)
        if even:
            high = torch.maximum(-low, high)
            low = -high
        scale = ((high - low) / most).half()
        zero = torch.full_like(low, 1 << (bits - 1)) if even else (-low / scale.float()).round().clamp(1, most)
        codes[:, of == g] = (part / scale.float()[:, None] + zero[:, None]).round().clamp(0, most)
        zeros.append(zero)
        scales.append(scale)
    return codes, torch.stack(zeros, 1), torch.stack(scales, 1)


def layer_matrices(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in tensors if re.search(r"layers\.\d+\.(mlp|self_attn)\.\w+\.weight", name)]


def write(where: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    where.mkdir()
    for file in SAPLING.glob("*.json"):
        (where / file.name).write_text(file.read_text())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, where / "model.safetensors")
    edit_config(where, quantization_config=config)
    return where


def gptq(
    where: Path, *, group: int = 32, even: bool = False, bits: int = 4, shuffled: bool = False, **said: Any
) -> Any:
    """sapling's layers as GPTQ stores them, and the float weights that this means."""
    tensors = tensors_of(SAPLING)
    meant = dict(tensors)
    for name in layer_matrices(tensors):
        weight = tensors.pop(name)
        inputs = weight.shape[1]
        of = torch.arange(inputs) // (inputs if group == -1 else group)
        if shuffled:
            of = of[torch.randperm(inputs, generator=torch.Generator().manual_seed(1))]
        codes, zeros, scales = rounded(weight, bits, of, even)
        meant[name] = (codes - zeros[:, of]) * scales.float()[:, of]
        module, places = name.removesuffix(".weight"), tuple(range(32 // bits))
        stored = zeros if said.get("checkpoint_format") == "gptq_v2" else zeros - 1
        tensors[f"{module}.qweight"] = packed(codes, bits, places).T
        outputs = len(weight)
        assert outputs % len(places) == 0
        tensors[f"{module}.qzeros"] = packed(stored.T.contiguous(), bits, places)
        tensors[f"{module}.scales"] = scales.T
        tensors[f"{module}.g_idx"] = of.to(torch.int32)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": shuffled, "sym": even, **said}
    return write(where, tensors, config), meant


def awq(where: Path, *, group: int = 32, **said: Any) -> Any:
    """sapling's layers as AWQ stores them, and the float weights that this means."""
    tensors = tensors_of(SAPLING)
    meant = dict(tensors)
    for name in layer_matrices(tensors):
        weight = tensors.pop(name)
        of = torch.arange(weight.shape[1]) // group
        codes, zeros, scales = rounded(weight, 4, of, even=False)
        meant[name] = (codes - zeros[:, of]) * scales.float()[:, of]
        module = name.removesuffix(".weight")
        tensors[f"{module}.qweight"] = packed(codes.T.contiguous(), 4, AWQ_ORDER)
        tensors[f"{module}.qzeros"] = packed(zeros.T.contiguous(), 4, AWQ_ORDER)
        tensors[f"{module}.scales"] = scales.T
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm", **said}
    return write(where, tensors, config), meant


def check(directory: Path, meant: dict[str, torch.Tensor], *, bits: int = 4, exact: bool = False) -> None:
    """Every matrix of the layers is kept quantized and is what was meant, but for float16 products scale * zero."""
    checkpoint = open_checkpoint(directory)
    for name in layer_matrices(meant):
        matrix = checkpoint.matrix(name, torch.float32, CPU)
        assert isinstance(matrix, Quantized)
        assert matrix.bits == bits
        error = (dequantize(matrix) - meant[name]).abs().max() / meant[name].abs().max()
        assert error < (1e-6 if exact else 2e-3), name
        assert torch.equal(checkpoint.read(name, torch.float32, CPU), dequantize(matrix))


def refusal(directory: Path) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_model(directory, dtype="float32")
    return caught.value


@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_gptq_matrices_mean_scale_times_code_less_zero(group: int, layout: str, tmp_path: Path) -> None:
    directory, meant = gptq(tmp_path / "m", group=group, checkpoint_format=layout)
    check(directory, meant)


@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_gptq_is_kept_exactly_and_without_offsets(bits: int, tmp_path: Path) -> None:
    directory, meant = gptq(tmp_path / "m", even=True, bits=bits)
    check(directory, meant, bits=bits, exact=True)
    name = "model.layers.0.mlp.up_proj.weight"
    assert open_checkpoint(directory).matrix(name, torch.float32, CPU).offsets is None  # type: ignore[union-attr]


def test_gptq_in_activation_order_becomes_int8_as_its_groups_are_scattered(tmp_path: Path) -> None:
    directory, meant = gptq(tmp_path / "m", shuffled=True)
    checkpoint = open_checkpoint(directory)
    for name in layer_matrices(meant)[:7]:
        matrix = checkpoint.matrix(name, torch.float32, CPU)
        assert isinstance(matrix, Quantized)
        assert matrix.bits == 8
        assert (dequantize(matrix) - meant[name]).abs().max() / meant[name].abs().max() < 0.006


@pytest.mark.parametrize("group", [32, 64])
def test_awq_matrices_mean_scale_times_code_less_zero(group: int, tmp_path: Path) -> None:
    directory, meant = awq(tmp_path / "m", group=group)
    check(directory, meant)


@pytest.mark.parametrize("maker", [gptq, awq])
def test_packed_checkpoints_run_and_compute_what_their_weights_mean(maker: Any, tmp_path: Path) -> None:
    directory, meant = maker(tmp_path / "m")
    plain = write(tmp_path / "plain", meant, {})
    edit_config(plain, quantization_config=None)
    model, ids = load_model(directory, dtype="float32"), prompt(33, seed=6)
    assert model.quantization == f"{maker.__name__} int4, groups of 32"
    expected = all_logits(load_model(plain, dtype="float32"), ids, 4, 7)
    nearness = torch.nn.functional.cosine_similarity(all_logits(model, ids, 4, 7), expected, dim=-1)
    assert nearness.min() > 0.99
    assert nearness.mean() > 0.998


def test_modules_that_were_not_converted_stay_floats(tmp_path: Path) -> None:
    directory, _ = awq(tmp_path / "m", modules_to_not_convert=["self_attn"])
    tensors = load_file(directory / "model.safetensors")
    for part in ("q", "k", "v", "o"):
        module = f"model.layers.1.self_attn.{part}_proj"
        for packed_part in ("qweight", "qzeros", "scales"):
            del tensors[f"{module}.{packed_part}"]
        tensors[f"{module}.weight"] = tensors_of(SAPLING)[f"{module}.weight"]
    save_file(tensors, directory / "model.safetensors")
    matrix = open_checkpoint(directory).matrix("model.layers.1.self_attn.q_proj.weight", torch.float32, CPU)
    assert torch.equal(torch.as_tensor(matrix), tensors_of(SAPLING)["model.layers.1.self_attn.q_proj.weight"])
    load_model(directory, dtype="float32")


def test_groups_that_are_no_multiple_of_32_become_floats(tmp_path: Path) -> None:
    directory, meant = awq(tmp_path / "m", group=16)
    name = "model.layers.0.mlp.down_proj.weight"
    matrix = open_checkpoint(directory).matrix(name, torch.float32, CPU)
    assert isinstance(matrix, torch.Tensor)
    assert (matrix - meant[name]).abs().max() / meant[name].abs().max() < 2e-3


def test_missing_parts_and_wrong_shapes_are_named(tmp_path: Path) -> None:
    directory, _ = gptq(tmp_path / "m")
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.scales"]
    save_file(tensors, directory / "model.safetensors")
    error = refusal(directory)
    assert error.code == "weights_mismatch"
    assert "model.layers.2.mlp.up_proj.qweight" in error.message
    assert "lack scales" in error.message
    other, _ = gptq(tmp_path / "n")
    edit_config(other, intermediate_size=512)
    assert "mlp.gate_proj.weight has shape [448, 192] where config.json implies [512, 192]" in refusal(other).message
    groups, _ = gptq(tmp_path / "o")
    edit_config(groups, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 64})
    assert "do not fit each other or config.json" in refusal(groups).message


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"quant_method": "bitsandbytes"}, "quantization method 'bitsandbytes' is not supported; supported: gptq, awq"),
        ({"quant_method": "gptq", "bits": 3}, "bits=3 is not supported"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "'marlin' is not supported"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "this is 'gemv'"),
    ],
)
def test_other_methods_are_refused_by_name(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    directory, _ = awq(tmp_path / "m")
    edit_config(directory, quantization_config=changes)
    error = refusal(directory)
    assert error.code == "unsupported"
    assert complaint in error.message
    assert str(directory) in error.message
