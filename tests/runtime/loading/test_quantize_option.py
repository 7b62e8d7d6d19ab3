"""Any checkpoint's matrices become integers while it loads, and `branchwork quantize` writes what the option makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from branchwork.cli import app
from branchwork.kernels.reference.quant import Quantized
from branchwork.quantize import write_quantized
from branchwork.runtime.config import ConfigError, parse
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.formats import open_checkpoint
from branchwork.runtime.loading.tokenizer import chat_template, eos_ids, load_tokenizer, token_bytes
from branchwork.runtime.models.decoder import tensors
from branchwork.runtime.models.registry import load_model, load_spec
from tests.checkpoints import checkpoint, copy_of, edit_config
from tests.gguf_files import write_gguf
from tests.runtime.loading.test_gguf import SAPLING
from tests.runtime.models.test_parity import all_logits, prompt

CPU = torch.device("cpu")
IDS = prompt(33, seed=6)


def refusal(model: Path, kind: str) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_model(model, quantize=kind)
    return caught.value


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4)])
def test_matrices_are_quantized_and_the_head_never_below_8_bits(kind: str, bits: int) -> None:
    weights, spec = open_checkpoint(SAPLING, kind), load_spec(SAPLING)
    weights.verify(tensors(spec), re.compile("$^"))
    for name in tensors(spec):
        if "_proj." in name or "embed" in name:
            matrix = weights.matrix(name, torch.float32, CPU)
            assert isinstance(matrix, Quantized)
            assert matrix.bits == (8 if "embed" in name else bits)


@pytest.mark.parametrize(("kind", "near", "smaller"), [("int8", 0.99, 1.8), ("int4", 0.8, 2.7)])
def test_a_quantized_model_stays_near_and_takes_less_memory(kind: str, near: float, smaller: float) -> None:
    plain, small = load_model(SAPLING, dtype="bfloat16"), load_model(SAPLING, dtype="bfloat16", quantize=kind)
    assert small.quantization == kind
    assert any(f"quantized to {kind}" in note for note in small.notes)
    assert plain.weight_bytes / small.weight_bytes > smaller
    found, expected = all_logits(small, IDS, 4, 7), all_logits(plain, IDS, 4, 7)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).mean() > near


def test_an_untied_embedding_stays_as_it_is_while_the_head_becomes_int8() -> None:
    model, plain = load_model(checkpoint("llama-head-dim"), quantize="int8"), load_model(checkpoint("llama-head-dim"))
    assert plain.weight_bytes == plain.read_bytes + 320 * 48 * 4
    assert model.read_bytes == model.weight_bytes - 320 * 48 * 4


def test_rows_that_are_no_whole_blocks_stay_floats() -> None:
    """The tiny checkpoints are 48 and 80 wide."""
    weights = open_checkpoint(checkpoint("llama"), "int8")
    assert isinstance(weights.matrix("model.layers.0.mlp.up_proj.weight", torch.float32, CPU), torch.Tensor)
    found = all_logits(load_model(checkpoint("llama"), quantize="int8"), IDS, 4, 7)
    assert torch.equal(found, all_logits(load_model(checkpoint("llama")), IDS, 4, 7))


def test_what_is_quantized_already_is_refused_unless_it_becomes_smaller(tmp_path: Path) -> None:
    file = write_gguf(SAPLING, tmp_path / "q8.gguf", gguf.GGMLQuantizationType.Q8_0)
    error = refusal(file, "int8")
    assert error.code == "unsupported"
    assert f"{file} is quantized already (Q8_0)" in error.message
    lower = load_model(file, quantize="int4")
    assert lower.weight_bytes < load_model(file).weight_bytes * 0.7
    assert (
        "quantized already (Q4_0)"
        in refusal(write_gguf(SAPLING, tmp_path / "q4.gguf", gguf.GGMLQuantizationType.Q4_0), "int8").message
    )
    assert "use int8, int4, fp8, or none" in refusal(SAPLING, "int3").message


def test_the_option_is_checked_before_anything_starts() -> None:
    assert parse(["quantize=int4"]).quantize == "int4"
    assert parse(["quantize="]).quantize == ""
    assert parse(["quantize=fp8"]).quantize == "fp8"
    with pytest.raises(ConfigError, match=r"quantize='int3' must be one of int8, int4, fp8"):
        parse(["quantize=int3"])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("shard", [1 << 40, 300_000])
def test_what_was_written_gives_the_logits_of_the_option_to_the_bit(kind: str, shard: int, tmp_path: Path) -> None:
    heard: list[float] = []
    before, after = write_quantized(SAPLING, tmp_path / "out", kind, shard=shard, progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    assert after < before * (0.6 if kind == "int8" else 0.4)
    assert ((tmp_path / "out" / "model.safetensors.index.json").is_file()) == (shard < 1 << 40)
    model = load_model(tmp_path / "out")
    assert model.quantization == kind
    expected = all_logits(load_model(SAPLING, quantize=kind), IDS, 4, 7)
    assert torch.equal(all_logits(model, IDS, 4, 7), expected)


def test_tokenizer_template_and_ends_come_along(tmp_path: Path) -> None:
    write_quantized(SAPLING, tmp_path / "out", "int8")
    for ask in (token_bytes, eos_ids, chat_template):
        assert ask(tmp_path / "out") == ask(SAPLING)


def test_a_gguf_file_becomes_a_directory(tmp_path: Path) -> None:
    directory = copy_of("llama-rope-llama3", tmp_path)
    file = write_gguf(directory, tmp_path / "model.gguf")
    write_quantized(file, tmp_path / "out", "int8")
    assert load_spec(tmp_path / "out").rope == load_spec(file).rope
    expected = all_logits(load_model(file, quantize="int8"), IDS, 4, 7)
    assert torch.equal(all_logits(load_model(tmp_path / "out"), IDS, 4, 7), expected)
    text = "the lazy fox <|role|> 東京"
    assert load_tokenizer(tmp_path / "out").encode(text).ids == load_tokenizer(file).encode(text).ids
    assert chat_template(tmp_path / "out") == chat_template(file)


def test_the_command_says_sizes_and_never_overwrites(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["quantize", "sapling", str(tmp_path / "out"), "--type", "int4"])
    assert done.exit_code == 0, done.output
    assert "MB" in done.stdout
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert "model.layers.0.mlp.up_proj.weight.int4" in file.keys()  # noqa: SIM118 - a handle is no mapping
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said == {"quant_method": "branchwork", "bits": 4, "group_size": 32}
    again = CliRunner().invoke(app, ["quantize", "sapling", str(tmp_path / "out")])
    assert again.exit_code == 2
    assert "exists already" in again.stderr.replace("\n", " ")


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = copy_of("llama", tmp_path)
    edit_config(broken, intermediate_size=96)
    with pytest.raises(LoadError, match="has shape"):
        write_quantized(broken, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()
    with pytest.raises(LoadError, match="GGUF files are read, not written"):
        write_quantized(SAPLING, tmp_path / "out.gguf", "int8")
