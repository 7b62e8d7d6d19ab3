"""A GGUF file and a quantized model answer through real processes like any other model."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

import branchwork as bw
from branchwork.quantize import write_quantized
from tests.gguf_files import write_gguf
from tests.runtime.loading.test_gguf import SAPLING


@bw.function
def question(s: bw.State) -> None:
    s += bw.user("What is the capital of France?")
    s += bw.assistant(bw.gen("answer", max_tokens=24, temperature=0))


def answer(model: str, **options: str) -> str:
    with bw.Runtime(model, pages=2048, **options) as runtime:
        return str(question.run(backend=runtime)["answer"])


@pytest.mark.timeout(120)
def test_a_gguf_file_of_the_same_weights_gives_the_same_answer(tmp_path: Path) -> None:
    write_gguf(SAPLING, tmp_path / "sapling.gguf", gguf.GGMLQuantizationType.BF16, whole_tokenizer=True)
    assert answer(str(tmp_path / "sapling.gguf")) == answer("sapling")


@pytest.mark.timeout(120)
def test_a_model_quantized_ahead_gives_what_the_option_gives(tmp_path: Path) -> None:
    write_quantized(SAPLING, tmp_path / "small", "int8")
    assert answer(str(tmp_path / "small")) == answer("sapling", quantize="int8")


@pytest.mark.timeout(60)
def test_a_damaged_file_and_a_needless_quantization_are_told_at_the_start(tmp_path: Path) -> None:
    file = write_gguf(SAPLING, tmp_path / "sapling.gguf", gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(bw.BackendError, match="is quantized already"):
        bw.Runtime(str(file), quantize="int8")
    file.write_bytes(file.read_bytes()[:400_000])
    with pytest.raises(bw.BackendError, match="is damaged or incomplete: tensor"):
        bw.Runtime(str(file))
