"""Claims about the model that ships: its files, its tokenizer, its template, and the code that grew it.

Knows: the model directory and the corpus.
Must not know: how a runtime executes the model."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import branchwork.runtime.sapling as sapling
from branchwork.runtime.sapling import extract, judge, knowledge, lookup, react, sample, sentiment, talk, tips, tooluse
from branchwork.runtime.sapling.corpus import MIXTURE, SKILLS, cases_of, held_out, training_sample
from branchwork.runtime.sapling.sample import Chat, Phrases, is_held, tools_text

MODEL = Path(sapling.__file__).parent
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MODULES = (extract, judge, knowledge, lookup, react, sample, sentiment, talk, tips)


@cache
def shipped_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return shipped_tokenizer()


@pytest.fixture(scope="module")
def chat_tokenizer() -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(MODEL)


def test_model_files_weigh_at_most_twelve_megabytes() -> None:
    for name in FILES:
        assert (MODEL / name).is_file(), name
    assert sum(path.stat().st_size for path in MODEL.iterdir() if path.is_file()) <= 12_000_000


def test_config_and_weights_agree() -> None:
    from safetensors import safe_open

    config = json.loads((MODEL / "config.json").read_text("utf-8"))
    with safe_open(str(MODEL / "model.safetensors"), "pt") as weights:
        embedding = weights.get_slice("model.embed_tokens.weight")
        assert embedding.get_shape() == [config["vocab_size"], config["hidden_size"]]
        assert embedding.get_dtype() == "BF16"
        assert sum(name.endswith("input_layernorm.weight") for name in weights.keys())  # noqa: SIM118 == config["num_hidden_layers"]


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = shipped_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_any_byte_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    rng = random.Random(3)
    for _ in range(200):
        text = rng.randbytes(rng.randrange(1, 80)).decode("latin-1")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_names_are_the_same_tokens_wherever_they_stand(tokenizer: Tokenizer) -> None:
    alone = tokenizer.encode("Velorin").tokens
    for before in ("I met ", "| ", 'name: "', "a,", "\n"):
        assert tokenizer.encode(before + "Velorin").tokens[-len(alone) :] == alone


def test_digits_and_line_breaks_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("4071\n\n\n").tokens == ["4", "0", "7", "1", "Ċ", "Ċ", "Ċ"]


def test_names_of_the_two_splits_never_meet() -> None:
    rng = random.Random(1)
    trained = {sample.invent(rng, "train") for _ in range(3000)} | {sample.person(rng, "train") for _ in range(1000)}
    held = {sample.invent(rng, "held") for _ in range(3000)} | {sample.person(rng, "held") for _ in range(1000)}
    assert not trained & held
    assert all(is_held(name.split()[0]) for name in held)
    assert not any(is_held(word) for name in trained for word in name.split())


def phrases_of(value: object) -> list[Phrases]:
    """Every Phrases inside a module-level value."""
    if isinstance(value, Phrases):
        return [value]
    if isinstance(value, dict):
        return [found for part in value.values() for found in phrases_of(part)]
    if isinstance(value, list | tuple):
        return [found for part in value for found in phrases_of(part)]
    return []


def test_held_out_phrasings_are_never_trained_on() -> None:
    found = [p for module in (*MODULES, tooluse) for value in vars(module).values() for p in phrases_of(value)]
    assert len(found) > 60
    for phrases in found:
        common = set(phrases.train) & set(phrases.held)
        assert common <= {""}, common


def test_a_sample_depends_on_its_seed_and_index_only() -> None:
    assert training_sample(1, 77) == training_sample(1, 77)
    assert training_sample(1, 77) != training_sample(2, 77)


@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_has_held_out_cases_that_accept_the_true_answer(skill: str) -> None:
    cases = held_out(skill, 40)
    assert len(cases) == 40
    for case in cases:
        assert case.keys and case.accepts(case.expected.split(case.stop)[0]), case
        assert not case.accepts("")


@pytest.mark.parametrize("maker", MIXTURE)
def test_every_maker_yields_something_to_learn(maker: str) -> None:
    made = MIXTURE[maker][-1](random.Random(5), "train")
    assert any(piece.learn for piece in made.pieces)
    assert list(cases_of(made, "x")) or maker == "extract"


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_template_renders_what_the_corpus_trained_on(chat_tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Brunö"}}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather in Brunö?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
        {"role": "user", "content": "Thanks"},
    ]
    talk_ = Chat("Be kind.\n\n" + tools_text([WEATHER])).user("Weather in Brunö?")
    talk_.assistant(sample.call_text("get_weather", {"city": "Brunö"})).tool("sunny").assistant("It is sunny.").user(
        "Thanks"
    )
    expected = "".join(piece.text for piece in talk_.pieces) + talk_.pending + sample.opening("assistant")
    shown = chat_tokenizer.apply_chat_template(messages, tools=[WEATHER], tokenize=False, add_generation_prompt=True)
    assert shown == expected


def test_template_takes_arguments_as_text_and_no_system_turn(chat_tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So:", "tool_calls": [call, call]}]
    shown = chat_tokenizer.apply_chat_template(messages, tokenize=False)
    one = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert shown == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nSo:\n{one}\n{one}<|im_end|>\n"


def test_template_lists_tools_without_a_system_message(chat_tokenizer: Any) -> None:
    shown = chat_tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tools=[WEATHER], tokenize=False)
    assert shown.startswith(f"<|im_start|>system\n{tools_text([WEATHER])}<|im_end|>\n<|im_start|>user\n")


def test_quick_growth_gives_a_directory_that_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "model"
    command = [sys.executable, "-m", "branchwork.runtime.sapling.grow", "--quick", "--out", str(out)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    reader = transformers.AutoTokenizer.from_pretrained(out)
    ids = reader.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = ids["input_ids"] if not hasattr(ids, "shape") else ids
    assert model.generate(ids, max_new_tokens=4).shape[1] > ids.shape[1]


def test_stacked_network_equals_the_exported_llama(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from branchwork.runtime.sapling.grow import export
    from branchwork.runtime.sapling.network import Network, Shape

    net = Network(Shape(vocab=3072, layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96))
    export(net, Tokenizer.from_file(str(MODEL / "tokenizer.json")), tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 3072, (2, 48))
    ours = net.logits(ids, torch.arange(96)).float().view(2, 48, -1)
    theirs = model(ids).logits
    # Ours computes in bfloat16: single logits differ, the distributions must not.
    assert (ours - theirs).abs().mean() < 0.03 * theirs.std()
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.8
