"""A GGUF file is a model like any other: same logits, same tokens, strict names, and exact dequantization."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from branchwork.kernels.reference.quant import Quantized, dequantize
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_blocks import FORMS, exact, rounded
from branchwork.runtime.loading.gguf_file import open_gguf
from branchwork.runtime.loading.gguf_weights import GgufWeights
from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.models.registry import load_model, load_spec
from branchwork.runtime.sapling import files
from tests.checkpoints import CHECKPOINTS, checkpoint, wide
from tests.gguf_files import gguf_name, tensors_of, write_gguf
from tests.runtime.models.test_parity import all_logits, prompt

CPU = torch.device("cpu")
SAPLING = Path(files.__file__).parent
UNSAID = ("llama-rope-dynamic", "qwen2-window")  # what the format has no word for
ROWS, COLUMNS = 6, 512


def blocks(kind: str) -> np.ndarray:
    """Random bytes of a matrix [ROWS, COLUMNS]; the float16 parts of each block hold ordinary numbers."""
    form, numbers = FORMS[kind], np.random.default_rng(len(kind))
    data = numbers.integers(0, 256, (ROWS * COLUMNS // form.weights, form.size), dtype=np.uint8)
    halves = {"Q6_K": [208], "Q8_0": [0], "Q4_0": [0], "Q5_0": [0]}.get(kind, [0, 2])
    for at in halves:
        some = (numbers.standard_normal(len(data)) * 0.01).astype(np.float16)
        data[:, at : at + 2] = some.view(np.uint8).reshape(-1, 2)
    return data.reshape(ROWS, -1)


def refusal(path: Path) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_model(path, dtype="float32")
    return caught.value


@pytest.mark.parametrize("kind", FORMS)
def test_every_block_format_means_what_the_gguf_package_says(kind: str) -> None:
    data = blocks(kind)
    found = exact(kind, torch.from_numpy(data.reshape(-1)), (ROWS, COLUMNS))
    assert found.shape == (ROWS, COLUMNS)
    assert torch.equal(dequantize(found), torch.from_numpy(gguf.quants.dequantize(data, Kind[kind])))


@pytest.mark.parametrize("kind", [kind for kind, form in FORMS.items() if form.group == 32])
def test_scales_as_float16_move_no_weight_but_those_of_k_formats_a_little(kind: str) -> None:
    found = exact(kind, torch.from_numpy(blocks(kind).reshape(-1)), (ROWS, COLUMNS))
    before, after = dequantize(found), dequantize(rounded(found))
    if not kind.endswith("_K"):
        assert torch.equal(before, after)
        return
    assert not torch.equal(before, after)
    scale = found.scales.abs() * 31 + (0 if found.offsets is None else found.offsets.abs())
    bound = scale.repeat_interleave(found.group, dim=1) / 2048 + 1e-6
    assert bool(((before - after).abs() <= bound).all())


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name not in UNSAID])
def test_a_file_of_floats_gives_the_checkpoints_logits_to_the_bit(name: str, tmp_path: Path) -> None:
    file = write_gguf(checkpoint(name), tmp_path / "model.gguf")
    ids = prompt(33, seed=6)
    expected = all_logits(load_model(checkpoint(name), dtype="float32"), ids, 4, 7)
    found = all_logits(load_model(file, dtype="float32"), ids, 4, 7)
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error < (1e-5 if "llama3" in name else 1e-9)  # its frequencies' factors are rounded to float32 in the file


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_quantized_file_computes_what_its_dequantized_weights_compute(kind: str, tmp_path: Path) -> None:
    """The oracle: a file of float32 that holds exactly what the gguf package makes of the quantized one."""
    file = write_gguf(SAPLING, tmp_path / "model.gguf", Kind[kind])
    plain = write_gguf(SAPLING, tmp_path / "plain.gguf", Kind.F32, through=Kind[kind])
    model, ids = load_model(file, dtype="float32"), prompt(33, seed=6)
    assert model.quantization == (kind if kind.startswith("Q") else "")
    expected = all_logits(load_model(plain, dtype="float32"), ids, 4, 7)
    found = all_logits(model, ids, 4, 7)
    # quantized products round their inputs to 8 bits, which float ones do not; rows out of order would give about 0
    nearness = torch.nn.functional.cosine_similarity(found, expected, dim=-1)
    assert nearness.min() > (0.99 if kind.startswith("Q") else 1 - 1e-5)
    assert nearness.mean() > 0.998


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_llamas_permuted_rows_come_back_in_order(kind: str, tmp_path: Path) -> None:
    file = write_gguf(SAPLING, tmp_path / "model.gguf", Kind[kind])
    weights, stored = GgufWeights(open_gguf(file)), tensors_of(SAPLING)
    for part in ("q", "k", "v"):
        name = f"model.layers.2.self_attn.{part}_proj.weight"
        packed = gguf.quants.quantize(stored[name].numpy(), Kind[kind])
        expected = torch.from_numpy(gguf.quants.dequantize(packed, Kind[kind]))
        matrix = weights.matrix(name, torch.float32, torch.device("cpu"))
        assert isinstance(matrix, Quantized)
        assert torch.equal(dequantize(matrix), expected)
        assert torch.equal(weights.read(name, torch.float32, torch.device("cpu")), expected)


def test_k_formats_load_and_the_coarse_groups_of_q6_k_are_converted_with_a_note(tmp_path: Path) -> None:
    shapes = {"blk.0.ffn_up.weight": "Q4_K", "blk.0.ffn_gate.weight": "Q5_K", "blk.0.ffn_down.weight": "Q6_K"}
    writer = gguf.GGUFWriter(tmp_path / "some.gguf", "qwen2")
    for name, kind in shapes.items():
        writer.add_tensor(name, blocks(kind), raw_dtype=Kind[kind])
    finish(writer)
    weights = GgufWeights(open_gguf(tmp_path / "some.gguf"))
    assert any("Q6_K (groups of 16): converted to int8" in note for note in weights.notes)
    for name, kind in shapes.items():
        ours = {"up": "up_proj", "gate": "gate_proj", "down": "down_proj"}[name.split(".")[2].removeprefix("ffn_")]
        matrix = weights.matrix(f"model.layers.0.mlp.{ours}.weight", torch.float32, torch.device("cpu"))
        assert isinstance(matrix, Quantized)
        assert (matrix.bits, matrix.group) == (4 if kind == "Q4_K" else 8, 32)
        expected = torch.from_numpy(gguf.quants.dequantize(blocks(kind), Kind[kind]))
        worst = (dequantize(matrix) - expected).abs().max() / expected.abs().max()
        assert worst < (0.005 if kind == "Q6_K" else 0.001)


def test_types_without_a_form_here_become_floats_by_the_gguf_package(tmp_path: Path) -> None:
    data = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "some.gguf", "qwen2")
    packed = gguf.quants.quantize(data, Kind.TQ2_0)
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=Kind.TQ2_0)
    finish(writer)
    weights = GgufWeights(open_gguf(tmp_path / "some.gguf"))
    matrix = weights.matrix("model.layers.0.mlp.up_proj.weight", torch.float32, torch.device("cpu"))
    assert torch.equal(torch.from_numpy(gguf.quants.dequantize(packed, Kind.TQ2_0)), matrix)
    assert "TQ2_0: converted to floats" in weights.notes[0]


def test_metadata_equals_what_the_gguf_package_reads(tmp_path: Path) -> None:
    file = write_gguf(checkpoint("llama"), tmp_path / "model.gguf", Kind.Q8_0)
    ours, theirs = open_gguf(file), gguf.GGUFReader(file)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert set(ours.metadata) == set(fields)
    for key, field in fields.items():
        assert ours.metadata[key] == field.contents(), key
    assert set(ours.tensors) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        here = ours.tensors[tensor.name]
        assert here.kind == tensor.tensor_type.name
        assert here.shape == tuple(reversed(tensor.shape.tolist()))
        assert here.data.tobytes() == tensor.data.tobytes()


def test_a_file_a_folder_with_one_file_and_no_choice_between_two(tmp_path: Path) -> None:
    file = write_gguf(checkpoint("qwen2"), tmp_path / "model.gguf")
    assert find_model(str(file)) == find_model(str(tmp_path)) == file
    assert load_spec(file).family == "qwen2"
    file.with_name("other.gguf").write_bytes(file.read_bytes())
    with pytest.raises(LoadError, match=r"holds 2 \.gguf files; name the one to load: model\.gguf, other\.gguf"):
        find_model(str(tmp_path))


def test_names_are_checked_both_ways(tmp_path: Path) -> None:
    def add(writer: Any) -> None:
        writer.add_tensor("blk.0.surprise.weight", np.ones((4, 32), np.float32))

    file = write_gguf(checkpoint("qwen3"), tmp_path / "more.gguf", change=add)
    assert "unexpected tensors: blk.0.surprise.weight" in refusal(file).message
    file = write_gguf(checkpoint("qwen3"), tmp_path / "less.gguf", without="blk.1.ffn_up.weight")
    error = refusal(file)
    assert error.code == "weights_mismatch"
    assert str(file) in error.message
    assert "missing tensors: blk.1.ffn_up.weight" in error.message


@pytest.mark.parametrize("keep", [0, 3, 30, 3_000, 12_000, 200_000])
def test_a_cut_file_is_named_and_so_is_the_tensor_that_lies_beyond_its_end(tmp_path: Path, keep: int) -> None:
    file = write_gguf(checkpoint("llama"), tmp_path / "model.gguf")
    file.write_bytes(file.read_bytes()[:keep])
    error = refusal(file)
    assert error.code == "weights_damaged"
    assert str(file) in error.message
    if keep == 200_000:
        assert re.search(r"tensor [\w.]+ reaches to byte", error.message)


def test_garbage_in_the_header_is_damage_and_never_a_crash(tmp_path: Path) -> None:
    whole = write_gguf(checkpoint("llama"), tmp_path / "model.gguf").read_bytes()
    numbers = np.random.default_rng(2)
    for n in range(60):
        data = bytearray(whole)
        at = int(numbers.integers(4, 3000))
        data[at : at + 8] = numbers.bytes(8)
        path = tmp_path / f"broken{n}.gguf"
        path.write_bytes(data)
        try:
            open_gguf(path)
        except LoadError as error:
            assert str(path) in error.message


def test_split_files_other_architectures_and_lacking_experts_are_refused_with_what_to_do(tmp_path: Path) -> None:
    file = write_gguf(checkpoint("llama"), tmp_path / "a.gguf", change=lambda w: w.add_uint16("split.count", 3))
    assert "llama-gguf-split --merge" in refusal(file).message
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "gemma2")
    writer.add_tensor("x", np.ones((4, 32), np.float32))
    finish(writer)
    assert "'gemma2' is not supported; supported: llama, qwen2, qwen3" in refusal(tmp_path / "b.gguf").message
    file = write_gguf(checkpoint("mixtral"), tmp_path / "c.gguf", without="blk.1.ffn_up_exps.weight")
    assert "missing tensors: blk.1.block_sparse_moe.experts.0.w3.weight" in refusal(file).message
    file = write_gguf(checkpoint("llama"), tmp_path / "d.gguf", change=lambda w: w.add_expert_count(8))
    assert "llama.expert_used_count is missing" in refusal(file).message


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_quantized_experts_are_kept_as_they_are(kind: str, tmp_path: Path) -> None:
    directory = wide(tmp_path)
    file = write_gguf(directory, tmp_path / "model.gguf", Kind[kind])
    plain = write_gguf(directory, tmp_path / "plain.gguf", through=Kind[kind])
    packed, floats = (GgufWeights(open_gguf(path)) for path in (file, plain))
    for expert in range(8):
        for part in ("w1", "w2", "w3"):
            name = f"model.layers.1.block_sparse_moe.experts.{expert}.{part}.weight"
            matrix = packed.matrix(name, torch.float32, torch.device("cpu"))
            assert isinstance(matrix, Quantized)
            assert torch.equal(dequantize(matrix), floats.read(name, torch.float32, torch.device("cpu"))), name
    model, whole, ids = load_model(file, dtype="float32"), load_model(plain, dtype="float32"), prompt(33, seed=6)
    assert model.quantization == kind
    assert model.weight_bytes < whole.weight_bytes * (0.3 if kind == "Q8_0" else 0.2)
    found, expected = all_logits(model, ids, 4, 7), all_logits(whole, ids, 4, 7)
    # the median: where two experts are all but equal, rounded inputs may choose the other
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).median() > 0.99


def test_layer_names_map_there_and_back() -> None:
    from branchwork.runtime.loading.gguf_config import our_name, their_name

    for name in tensors_of(checkpoint("qwen3")):
        assert their_name(name) == gguf_name(name)
        assert our_name(gguf_name(name)) == name


def test_numbers_of_the_config_are_those_of_the_json_file(tmp_path: Path) -> None:
    for name in ("llama-rope-yarn", "mistral", "qwen3", "llama-tied"):
        file = write_gguf(checkpoint(name), tmp_path / f"{name}.gguf")
        ours, theirs = load_spec(checkpoint(name)), load_spec(file)
        assert (theirs.attention, theirs.rope, theirs.eps, theirs.context, theirs.tied) == (
            ours.attention, ours.rope, ours.eps, ours.context, ours.tied,
        )  # fmt: skip
    assert json.loads((checkpoint("mistral") / "config.json").read_text())["sliding_window"] == 8


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
