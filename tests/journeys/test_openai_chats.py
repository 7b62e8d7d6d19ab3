"""/v1/chat/completions as OpenAI's own client meets it: whole and streamed, alone and at once, shaped and scored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

import branchwork as bw

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me about your day."}]


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_chat_is_answered_and_counted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sapling", messages=FRANCE, temperature=0)
    choice = answer.choices[0]
    assert choice.message.content == "The capital of France is Paris." and choice.finish_reason == "stop"
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "sapling"
    again = client.chat.completions.create(model="sapling", messages=FRANCE, temperature=0)
    usage = again.usage
    assert usage is not None and usage.prompt_tokens == 16 and usage.total_tokens == 16 + usage.completion_tokens
    assert usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens == 15
    assert again.system_fingerprint == answer.system_fingerprint and again.id != answer.id


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    knobs: dict[str, Any] = {
        "model": "sapling",
        "messages": STORY,
        "seed": 7,
        "n": 2,
        "max_tokens": 40,
        "logprobs": True,
        "top_logprobs": 2,
        "temperature": 1.8,
        "stop": ["never", "written"],
        "frequency_penalty": 0.5,
    }
    whole = client.chat.completions.create(**knobs)
    texts, scores, ends = {0: "", 1: ""}, {0: [], 1: []}, {}
    chunks = list(client.chat.completions.create(**knobs, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            scores[choice.index] += choice.logprobs.content if choice.logprobs else []
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert chunks[0].choices[0].delta.role == "assistant"
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert scores[choice.index] == choice.logprobs.content
        assert ends[choice.index] == choice.finish_reason
    assert texts[0] != texts[1]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_log_probabilities_are_those_of_the_text_alone(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sapling", messages=FRANCE, temperature=0, logprobs=True, top_logprobs=3, stop="France"
    )
    scores = answer.choices[0].logprobs.content
    assert answer.choices[0].message.content == "The capital of " == "".join(score.token for score in scores)
    assert all(len(score.top_logprobs) == 3 and score.top_logprobs[0].token == score.token for score in scores)
    assert bytes(scores[0].bytes) == b"The" and -0.01 < scores[0].logprob <= 0


def test_many_chats_at_once_are_not_mixed(address: str) -> None:
    countries = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}

    async def ask(client: openai.AsyncOpenAI, country: str) -> str:
        messages = [{"role": "user", "content": f"What is the capital of {country}?"}]
        stream = await client.chat.completions.create(model="sapling", messages=messages, temperature=0, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def everything() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, country) for country in list(countries) * 6))

    answers = asyncio.run(everything())
    assert answers == [f"The capital of {country} is {capital}." for country, capital in countries.items()] * 6


def test_a_bias_changes_what_is_drawn(client: openai.OpenAI) -> None:
    knobs: dict[str, Any] = {"model": "sapling", "messages": FRANCE, "temperature": 0, "max_tokens": 3}
    biased = client.chat.completions.create(**knobs, logit_bias={"300": -100})  # "The", as the model would begin
    assert not biased.choices[0].message.content.startswith("The")
    forced = client.chat.completions.create(**knobs, logit_bias={"354": 100})
    assert forced.choices[0].message.content == "isisis"


def test_an_answer_that_is_too_long_is_cut_and_says_so(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sapling", messages=FRANCE, max_completion_tokens=2, temperature=0)
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].message.content == "The capital"


def test_messages_may_be_in_parts_and_by_developers(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}]
    messages: Any = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = client.chat.completions.create(model="sapling", messages=messages, temperature=0)
    same: Any = [{"role": "system", "content": "Be brief."}, *FRANCE]
    assert (
        answer.choices[0].message
        == client.chat.completions.create(model="sapling", messages=same, temperature=0).choices[0].message
    )


def test_the_final_message_may_be_continued(client: openai.OpenAI) -> None:
    messages: Any = [*FRANCE, {"role": "assistant", "content": "The capital of France"}]
    answer = client.chat.completions.create(
        model="sapling", messages=messages, temperature=0, extra_body={"continue_final_message": True}
    )
    assert answer.choices[0].message.content == " is Paris."


def test_what_its_client_leaves_is_over(client: openai.OpenAI, folder: Path) -> None:
    knobs: dict[str, Any] = {"model": "sapling", "n": 8, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
    with contextlib.closing(bw.connect(f"ipc://{folder}/s")) as runtime:
        stream = client.chat.completions.create(**knobs, messages=STORY, stream=True)
        next(iter(stream))
        assert runtime.stats()["programs"] == 1
        stream.close()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).chat.completions.create(**knobs, messages=STORY)
        late = time.monotonic() + 20
        while runtime.stats()["programs"] and time.monotonic() < late:
            time.sleep(0.05)
        assert runtime.stats()["programs"] == 0 == runtime.stats()["requests"]


# --- shapes


class Person(BaseModel):
    name: str
    age: int
    mood: Literal["happy", "sad"]


ANNA: Any = [{"role": "user", "content": "Anna is 31 and happy. Give it as JSON."}]


def test_structured_outputs_are_parsed_by_the_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="sapling", messages=ANNA, temperature=0, response_format=Person)
    assert isinstance(answer.choices[0].message.parsed, Person)
    with client.chat.completions.stream(
        model="sapling", messages=ANNA, temperature=0, response_format=Person
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


def test_a_json_object_is_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sapling", messages=ANNA, temperature=0, response_format={"type": "json_object"}, max_tokens=200
    )
    text = answer.choices[0].message.content
    assert text.startswith("{") and (answer.choices[0].finish_reason == "length" or isinstance(json.loads(text), dict))


@pytest.mark.parametrize(
    ("shape", "pattern"),
    [
        ({"regex": "[A-Z]{3}-[0-9]{2}"}, "[A-Z]{3}-[0-9]{2}"),
        ({"grammar": 'start: "yes" | "no" " "? "thanks"'}, "yes|no ?thanks"),
        ({"grammar": 'root ::= "a" [0-9] "b"'}, "a[0-9]b"),
    ],
)
def test_extension_fields_constrain_the_answer(client: openai.OpenAI, shape: dict[str, str], pattern: str) -> None:
    knobs = {"min_p": 0.05, "top_k": 40, "repetition_penalty": 1.1, "priority": 3, **shape}
    answer = client.chat.completions.create(model="sapling", messages=STORY, seed=1, extra_body=knobs)
    assert re.fullmatch(pattern, answer.choices[0].message.content)


def test_the_end_token_may_be_ignored(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sapling", messages=FRANCE, temperature=0, max_tokens=30, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 30


# --- what is wrong


def image() -> list[dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "empty"),
    ({"messages": image()}, "messages[0].content[1].type", "reads text only"),
    ({"messages": [{"role": "friend", "content": "Hi"}]}, "messages[0].role", "friend"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "no content"),
    ({"temperature": -1}, "temperature", "outside"),
    ({"temperature": "warm"}, "temperature", "float"),
    ({"n": 0}, "n", "outside"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "outside"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "server itself"),
    ({"chat_template_kwargs": {"eos_token": "x"}}, "chat_template_kwargs", "server itself"),
    ({"stop": ""}, "stop", "non-empty"),
    ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
    ({"logit_bias": {"many": 1}}, "logit_bias", "many"),
    ({"functions": [{"name": "f"}]}, "functions", "not served"),
    ({"modalities": ["audio"]}, "modalities", "text only"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "cannot be told"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
    ({"response_format": {"type": "json_schema"}}, "response_format.schema", "missing"),
    ({"regex": "("}, "regex", ""),
    ({"regex": "a", "grammar": 'start: "a"'}, "grammar", "different constraints"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
    ({"continue_final_message": True}, "continue_final_message", "assistant"),
]


@pytest.mark.parametrize(("fields", "param", "words"), WRONG, ids=[param for _, param, _ in WRONG])
def test_what_is_wrong_is_named(client: openai.OpenAI, fields: dict[str, Any], param: str, words: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="sapling",
                messages=fields.get("messages", FRANCE),
                stream=stream,
                extra_body={name: value for name, value in fields.items() if name != "messages"},
            )
        error: Any = caught.value.body
        assert caught.value.type == "invalid_request_error" and error["param"] == param and words in error["message"]


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'oak'") as caught:
        client.chat.completions.create(model="oak", messages=FRANCE)
    assert caught.value.code == "model_not_found"


def test_a_prompt_that_is_too_long_is_refused_with_the_figures(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tokens; the context holds") as caught:
        client.chat.completions.create(model="sapling", messages=[{"role": "user", "content": "word " * 20_000}])
    assert caught.value.code == "context_length_exceeded"


def test_a_schema_that_cannot_be_kept_is_refused(client: openai.OpenAI) -> None:
    bad: Any = {"type": "json_schema", "json_schema": {"name": "bad", "schema": {"type": "nonsense"}, "strict": True}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="sapling", messages=FRANCE, response_format=bad)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert "sapling" in [model.id for model in client.models.list()]
    assert client.models.retrieve("sapling").owned_by == "branchwork"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("oak")


def test_embeddings_say_what_is_wrong(client: openai.OpenAI) -> None:
    for wrong, param in [({"input": []}, "input"), ({"input": "a", "dimensions": 8}, "dimensions")]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="sapling", **wrong)
        assert caught.value.body["param"] == param
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="oak", input="a")


def test_curl_gets_a_stream_of_events(address: str) -> None:
    body = json.dumps({"model": "sapling", "messages": FRANCE, "temperature": 0, "stream": True})
    command = ["curl", "-sN", f"{address}/v1/chat/completions", "-H", "content-type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lines = [line for line in done.stdout.split("\n") if line]
    assert all(line.startswith("data: {") for line in lines[:-1]) and lines[-1] == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for line in lines[:-1]]
    assert "".join(parts) == "The capital of France is Paris."
