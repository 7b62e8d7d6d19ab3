"""BERT and its kin give the states that transformers gives, whatever other texts are computed beside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoders import ENCODERS, VOCAB, encoder, states

from branchwork import doctor_model, library
from branchwork.runtime.execution.encoding import EncodingRunner
from branchwork.runtime.execution.inputs import whole
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.models.registry import is_encoder, load_encoder, load_encoder_spec, load_spec
from branchwork.runtime.plan import Plan, Row
from tests.checkpoints import checkpoint, edit_config

LENGTHS = (1, 5, 64, 5, 17, 2, 33, 5)


def texts() -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(2, VOCAB, (length,)).tolist() for length in LENGTHS]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_the_states_of_transformers(name: str, tmp_path: Path) -> None:
    directory = encoder(name, tmp_path)
    model = load_encoder(directory)
    assert model.spec.context == 64
    given = whole(Plan(0, tuple(Row(n, 0, ids, ()) for n, ids in enumerate(texts()))), model.device)
    found = model.hidden(given.ids, given.positions, given.lengths).split(given.lengths)
    for ids, ours in zip(sorted(texts(), key=len), found, strict=True):
        torch.testing.assert_close(ours, states(directory, ids), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_text_alone_gives_to_the_bit_what_it_gives_among_others(threads: int, tmp_path: Path) -> None:
    runner = EncodingRunner(load_encoder(encoder("bert", tmp_path)))
    rows = [Row(n, 0, ids, (), state=("sum", "last", "first")[n % 3]) for n, ids in enumerate(texts() * 9)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = runner.launch(Plan(0, tuple(rows))).sample().collect().rows
        for row, drawn in zip(rows, together, strict=True):
            (alone,) = runner.launch(Plan(1, (row,))).sample().collect().rows
            assert alone.state == drawn.state != b""
    finally:
        torch.set_num_threads(before)


def test_a_row_that_is_no_whole_text_is_refused(tmp_path: Path) -> None:
    runner = EncodingRunner(load_encoder(encoder("bert", tmp_path)))
    for row in (Row(0, 3, [5], ()), Row(0, 0, [], ())):
        with pytest.raises(ValueError, match="no whole text"):
            runner.launch(Plan(0, (row,)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 5}, "48 channels cannot be cut into 5 heads"),
        ({"num_hidden_layers": 2}, "unexpected tensors: encoder.layer.2"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    directory = encoder("bert", tmp_path)
    edit_config(directory, **changes)
    with pytest.raises(LoadError, match=message):
        load_encoder(directory)


def test_encoders_and_decoders_are_told_apart(tmp_path: Path) -> None:
    directory = encoder("distilbert", tmp_path)
    assert is_encoder(directory) and not is_encoder(checkpoint("llama"))
    assert load_encoder_spec(directory).family == "distilbert"
    with pytest.raises(LoadError, match="and for embeddings BertModel"):
        load_spec(directory)
    with pytest.raises(LoadError, match="quantize=int8 is for models that generate"):
        load_encoder(directory, quantize="int8")


def test_doctor_and_the_library_know_an_encoder(tmp_path: Path) -> None:
    directory = encoder("bert", tmp_path)
    rows = {row[0]: row for row in doctor_model.examine(str(directory))}
    assert rows["architecture"][1].startswith("bert,") and "no KV" in rows["weights"][2]
    assert rows["context"][1] == "64 tokens"
    assert library._unusable(directory) == []
    edit_config(directory, hidden_act="relu")
    assert "hidden_act='relu'" in library._unusable(directory)[0]
