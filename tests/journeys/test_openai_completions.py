"""/v1/completions as OpenAI's own client meets it: texts and ids in, echoes, and scores as transformers gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import branchwork.runtime.sapling as sapling
from tests.serving import addresses

MODEL = Path(sapling.__file__).parent
TEXTS = ["The capital of France is Paris.", "Water is made of hydrogen and oxygen; é is no ASCII."]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that computes as exactly as transformers does."""
    yield from addresses(tmp_path_factory.mktemp("exact"), "-o", "threads=1", "-o", "pages=4000", "-o", "dtype=float32")


@pytest.fixture(scope="module")
def client(exact: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{exact}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(MODEL)


def ask(client: openai.OpenAI, prompt: Any, **more: Any) -> Any:
    return client.completions.create(**{"model": "sapling", "prompt": prompt, "temperature": 0, **more})


def test_ids_and_text_are_the_same_prompt(client: openai.OpenAI, tokenizer: Any) -> None:
    ids = tokenizer.encode(TEXTS[0], add_special_tokens=False)
    by_text, by_ids = ask(client, TEXTS[0]), ask(client, ids)
    assert by_text.choices[0].text == by_ids.choices[0].text
    assert by_text.usage.prompt_tokens == by_ids.usage.prompt_tokens == len(ids)


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI) -> None:
    single = [ask(client, text, max_tokens=5) for text in TEXTS]
    alone, counts = [one.choices[0].text for one in single], [one.usage.completion_tokens for one in single]
    both = ask(client, TEXTS, max_tokens=5, n=2, seed=3)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices] == [alone[0]] * 2 + [alone[1]] * 2
    assert both.object == "text_completion" and both.usage.completion_tokens == sum(counts) * 2


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    knobs: dict[str, Any] = {"temperature": 1, "seed": 5, "max_tokens": 12, "logprobs": 2}
    for echo in (False, True):
        whole = ask(client, TEXTS, echo=echo, **knobs)
        texts, tokens, offsets = ["", ""], [[], []], [[], []]
        for chunk in ask(client, TEXTS, echo=echo, stream=True, **knobs):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
                offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
        assert texts == [choice.text for choice in whole.choices]
        assert tokens == [choice.logprobs.tokens for choice in whole.choices]
        assert offsets == [choice.logprobs.text_offset for choice in whole.choices]


def test_an_echo_is_scored_as_transformers_scores_it(client: openai.OpenAI, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    found = ask(client, TEXTS, echo=True, logprobs=1, max_tokens=1)
    for text, choice in zip(TEXTS, found.choices):
        ids = tokenizer.encode(text, add_special_tokens=False)
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores = choice.logprobs.token_logprobs
        assert scores[0] is None and len(scores) == len(ids) + 1 == len(choice.logprobs.text_offset)
        for place, (token, score) in enumerate(zip(ids[1:], scores[1:])):
            assert score == pytest.approx(expected[place, token].item(), abs=1e-3)
            best = max(choice.logprobs.top_logprobs[place + 1].values())
            assert best == pytest.approx(expected[place].max().item(), abs=1e-3)
        assert choice.text.startswith(text)


def test_an_echo_may_come_alone(client: openai.OpenAI) -> None:
    found = ask(client, TEXTS[0], echo=True, logprobs=0, max_tokens=0)
    assert found.choices[0].text == TEXTS[0] == "".join(found.choices[0].logprobs.tokens)
    assert found.usage.completion_tokens == 0


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [999_999]}, "prompt"),
        ({"suffix": "."}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 99}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_wrong_is_named(client: openai.OpenAI, wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **{"prompt": "a", **wrong})
    assert caught.value.body["param"] == param


@pytest.mark.soak
def test_lm_eval_scores_as_it_does_through_transformers(exact: str, tmp_path: Path) -> None:
    evaluator = pytest.importorskip("lm_eval.evaluator")
    tasks = pytest.importorskip("lm_eval.tasks")
    for needed in ("tenacity", "accelerate"):  # lm-eval's own, for its clients of APIs and of transformers
        pytest.importorskip(needed)
    questions = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo"), ("Egypt", "Cairo")]
    capitals = [capital for _, capital in questions]
    lines = [
        json.dumps({"question": f"The capital of {country} is", "choices": capitals, "gold": number})
        for number, (country, _) in enumerate(questions)
    ]
    (tmp_path / "capitals.jsonl").write_text("\n".join(lines))
    (tmp_path / "capitals.yaml").write_text(
        f"task: capitals\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/capitals.jsonl\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{gold}}'\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    server = f"base_url={exact}/v1/completions,model=sapling,tokenizer={MODEL},num_concurrent=1,batch_size=1"
    results = [
        evaluator.simple_evaluate(model=kind, model_args=arguments, tasks=["capitals"], task_manager=manager)
        for kind, arguments in [("local-completions", server), ("hf", f"pretrained={MODEL},device=cpu,dtype=float32")]
    ]
    scores = [
        [score for sample in result["samples"]["capitals"] for (score, _), *_ in sample["resps"]] for result in results
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert results[0]["results"]["capitals"]["acc,none"] == results[1]["results"]["capitals"]["acc,none"]
