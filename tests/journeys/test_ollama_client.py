"""Ollama's own Python client, as it is, against a server of ours: what is said, how it is said, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import httpx
import ollama
import pytest

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
COLD = {"temperature": 0}
THINKER = """{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}{% else %}<think>\n{% endif %}"""


def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: where
    """
    return f"sunny in {city}"


@pytest.fixture
def client(site: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=site) as one:
        yield one


@pytest.fixture
def named(client: ollama.Client) -> Iterator[str]:
    """A name of the library with a system prompt, parameters and first messages."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    parameters = {"temperature": 0, "num_predict": 3, "stop": ["xyz"]}
    client.create(
        "short", from_="sapling", system="You are terse.", parameters=parameters, messages=turns, license="Own"
    )
    yield "short"
    client.delete("short")


def refusal(status: int, do: Any) -> str:
    with pytest.raises(ollama.ResponseError) as caught:
        do()
    assert caught.value.status_code == status
    return str(caught.value.error)


# --- chats


def test_a_chat_is_answered_with_its_figures(client: ollama.Client) -> None:
    answer = client.chat("sapling", FRANCE, options=COLD)
    assert "Paris" in answer.message.content and answer.message.role == "assistant"
    assert answer.done and answer.done_reason == "stop" and answer.model == "sapling"
    assert answer.prompt_eval_count == 16 and answer.eval_count > 5
    assert answer.total_duration >= answer.eval_duration > 0 and answer.total_duration >= answer.load_duration >= 0


def test_a_stream_says_what_the_whole_answer_says(client: ollama.Client) -> None:
    options = {"seed": 5, "temperature": 1.5, "num_predict": 40}
    parts = list(client.chat("sapling", FRANCE, stream=True, options=options))
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (
        "".join(part.message.content for part in parts)
        == client.chat("sapling", FRANCE, options=options).message.content
    )
    assert parts[-1].eval_count > 0


def test_the_asynchronous_client_does_the_same(site: str) -> None:
    async def both() -> tuple[str, str]:
        asking = ollama.AsyncClient(host=site)
        whole = await asking.chat("sapling", FRANCE, options=COLD)
        stream = await asking.chat("sapling", FRANCE, options=COLD, stream=True)
        return whole.message.content, "".join([part.message.content async for part in stream])

    whole, streamed = asyncio.run(both())
    assert whole == streamed and "Paris" in whole


def test_a_tool_is_called_and_its_result_read(client: ollama.Client) -> None:
    whole = client.chat("sapling", WEATHER, tools=[weather], options=COLD)
    calls = whole.message.tool_calls
    assert [(call.function.name, dict(call.function.arguments)) for call in calls] == [("weather", {"city": "Paris"})]
    streamed = [part.message for part in client.chat("sapling", WEATHER, tools=[weather], options=COLD, stream=True)]
    assert [call.function for message in streamed for call in message.tool_calls or []] == [calls[0].function]
    result = {"role": "tool", "tool_name": "weather", "content": "sunny, 21 degrees"}
    last = client.chat("sapling", [*WEATHER, whole.message, result], tools=[weather], options=COLD)
    assert "21 degrees" in last.message.content


def test_an_answer_has_the_format_that_was_asked_for(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    assert json.loads(client.chat("sapling", FRANCE, format=schema, options=COLD).message.content)["ok"] in (
        True,
        False,
    )
    assert client.generate("sapling", "Hi", format="json", options={**COLD, "num_predict": 5}).response.startswith("{")


def test_the_oldest_messages_of_a_long_chat_are_left_out(client: ollama.Client, site: str) -> None:
    old = [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "Yes."}]
    answer = client.chat("sapling", [*old, *old, *old, *FRANCE], options={"num_predict": 1})
    assert 900 < answer.prompt_eval_count < 2048
    body = {"model": "sapling", "messages": [*old, *old, *old, *FRANCE], "truncate": False, "stream": False}
    assert "the context holds 2048" in httpx.post(f"{site}/api/chat", json=body).json()["error"]


def test_the_window_bounds_prompt_and_answer(client: ollama.Client) -> None:
    answer = client.chat("sapling", FRANCE, options={"num_ctx": 20, **COLD})
    assert answer.done_reason == "length" and answer.prompt_eval_count + answer.eval_count == 20


def test_log_probabilities_come_with_their_tokens(client: ollama.Client) -> None:
    whole = client.chat("sapling", FRANCE, logprobs=True, top_logprobs=2, options={**COLD, "num_predict": 3})
    assert "".join(one.token for one in whole.logprobs) == whole.message.content
    assert all(one.top_logprobs[0].logprob == one.logprob and len(one.top_logprobs) == 2 for one in whole.logprobs)
    parts = client.chat("sapling", FRANCE, logprobs=True, options={**COLD, "num_predict": 3}, stream=True)
    assert [one.token for part in parts for one in part.logprobs or []] == [one.token for one in whole.logprobs]


def test_thinking_is_kept_apart(client: ollama.Client) -> None:
    client.create("thinker", from_="sapling", template=THINKER, parameters={"temperature": 0})
    assert "thinking" in client.show("thinker").capabilities
    thought = client.chat("thinker", FRANCE, think=True).message
    assert thought.thinking and not thought.content
    said = client.chat("thinker", FRANCE, think=False).message
    assert said.content and not said.thinking
    client.delete("thinker")
    assert "does not support thinking" in refusal(400, lambda: client.chat("sapling", FRANCE, think=True))


# --- single prompts


def test_a_prompt_goes_on_from_the_context_of_the_one_before(client: ollama.Client) -> None:
    first = client.generate("sapling", "What is the capital of Japan?", options=COLD)
    second = client.generate("sapling", "And of Italy?", context=first.context, options=COLD)
    assert "Tokyo" in first.response and second.prompt_eval_count > len(first.context)
    assert list(second.context[: len(first.context)]) == list(first.context)


def test_a_raw_prompt_is_written_by_no_template(client: ollama.Client) -> None:
    raw = client.generate("sapling", "The capital of Spain is", raw=True, options={**COLD, "num_predict": 4})
    assert "Madrid" in raw.response and raw.prompt_eval_count < 10 and raw.context is None
    assert "raw mode" in refusal(400, lambda: client.generate("sapling", "x", raw=True, system="y"))


def test_system_and_template_are_those_of_the_request(client: ollama.Client) -> None:
    plain = client.generate("sapling", "Hi", options=COLD)
    told = client.generate("sapling", "Hi", system="You are a pirate.", options=COLD)
    assert told.prompt_eval_count > plain.prompt_eval_count
    template = "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n"
    assert (
        client.generate("sapling", "Hi", template=template, options=COLD).prompt_eval_count == plain.prompt_eval_count
    )
    assert refusal(400, lambda: client.generate("sapling", "Hi", template="{{ .Nonsense }}"))


# --- what is refused


def test_wrong_requests_say_what_is_wrong(client: ollama.Client) -> None:
    assert "there is no model 'nope'" in refusal(404, lambda: client.chat("nope", FRANCE))
    assert "mirostat" in refusal(400, lambda: client.chat("sapling", FRANCE, options={"mirostat": 2}))
    assert "temperature" in refusal(400, lambda: client.chat("sapling", FRANCE, options={"temperature": "hot"}))
    assert "keep_alive" in refusal(400, lambda: client.chat("sapling", FRANCE, keep_alive="soon"))
    assert "text only" in refusal(400, lambda: client.generate("sapling", "x", images=[b"\x89PNG"]))
    assert "context holds" in refusal(400, lambda: client.generate("sapling", "word " * 3000))
    assert "insert" in refusal(400, lambda: client.generate("sapling", "x", suffix="y"))
    wrong = {"type": "object", "properties": {"a": {"type": "nonsense"}}}
    assert "schema" in refusal(400, lambda: client.chat("sapling", FRANCE, format=wrong))


def test_a_stream_that_cannot_begin_is_a_status(client: ollama.Client) -> None:
    assert "no model" in refusal(404, lambda: list(client.chat("nope", FRANCE, stream=True)))
    assert "context holds" in refusal(400, lambda: list(client.generate("sapling", "word " * 3000, stream=True)))


# --- the library


def test_a_name_of_the_library_brings_what_it_says(client: ollama.Client, named: str) -> None:
    plain = client.chat("sapling", FRANCE, options=COLD)
    answer = client.chat(named, FRANCE)
    assert answer.done_reason == "length" and answer.eval_count == 3
    assert answer.prompt_eval_count > plain.prompt_eval_count + 10
    assert client.chat(named, FRANCE, options={"num_predict": 5}).eval_count == 5


def test_names_of_one_model_share_its_engine(client: ollama.Client, named: str) -> None:
    client.chat(named, FRANCE)
    rows = {row.model: row for row in client.ps().models}
    assert rows["short:latest"].size == rows["sapling:latest"].size and rows["sapling:latest"].context_length == 2048
    assert rows["short:latest"].expires_at > datetime.now(timezone.utc)
    client.generate(named, keep_alive=0)
    assert [row.model for row in client.ps().models] == ["sapling:latest"]


def test_what_is_there_is_listed_and_shown(client: ollama.Client, named: str) -> None:
    listed = {row.model: row for row in client.list().models}
    assert {"sapling:latest", "short:latest"} <= set(listed)
    assert listed["sapling:latest"].size > 1e6 and listed["sapling:latest"].details.parameter_size == "2.8M"
    shown = client.show(named)
    assert (
        'SYSTEM "You are terse."' in shown.modelfile and "num_predict 3" in shown.parameters and shown.license == "Own"
    )
    assert shown.capabilities == ["completion", "tools"] and "im_start" in shown.template
    assert shown.modelinfo["general.parameter_count"] == 2804160
    refusal(404, lambda: client.show("nope"))


def test_a_copy_is_the_same_model_until_it_is_deleted(client: ollama.Client, named: str) -> None:
    client.copy(named, "twin")
    digests = {row.model: row.digest for row in client.list().models}
    assert digests["twin:latest"] == digests["short:latest"] != digests["sapling:latest"]
    client.delete("twin")
    refusal(404, lambda: client.chat("twin", FRANCE))
    refusal(404, lambda: client.delete("twin"))
    refusal(404, lambda: client.copy("nope", "other"))
    assert "ships with the package" in refusal(400, lambda: client.delete("sapling"))


def test_a_name_is_made_anew(client: ollama.Client, named: str) -> None:
    before = client.chat(named, FRANCE).prompt_eval_count
    steps = [step.status for step in client.create(named, from_="sapling", system="No.", stream=True)]
    assert steps[-1] == "success"
    assert client.chat(named, FRANCE).prompt_eval_count < before
    assert "from" in refusal(400, lambda: client.create("empty"))
    assert "no name" in refusal(400, lambda: client.create("other", from_="../elsewhere"))
    assert "mirostat" in refusal(400, lambda: client.create("other", from_="sapling", parameters={"mirostat": 1}))
    assert "files" in refusal(400, lambda: client.create("other", files={"a": "sha256:b"}))


def test_a_modelfile_is_read(site: str) -> None:
    text = 'FROM sapling\nSYSTEM "You are a poet."\nPARAMETER num_predict 2\n'
    body = {"model": "poet", "modelfile": text, "stream": False}
    assert httpx.post(f"{site}/api/create", json=body).json() == {"status": "success"}
    assert "You are a poet." in httpx.post(f"{site}/api/show", json={"name": "poet"}).json()["modelfile"]
    assert httpx.request("DELETE", f"{site}/api/delete", json={"name": "poet"}).status_code == 200


def test_a_pulled_model_answers_and_goes(client: ollama.Client) -> None:
    steps = list(client.pull("owner/model", stream=True))
    assert steps[0].status == "pulling manifest" and steps[-1].status == "success"
    moved = [step.completed for step in steps if step.digest]
    assert moved == sorted(moved) and all(step.total >= step.completed for step in steps if step.digest)
    assert client.pull("owner/model").status == "success"
    assert client.generate("owner/model", "a", raw=True, options={"num_predict": 2}).eval_count == 2
    client.delete("owner/model")
    assert "owner/model:latest" not in [row.model for row in client.list().models]


def test_what_cannot_be_pulled_says_why(client: ollama.Client) -> None:
    assert "owner/name" in refusal(400, lambda: client.pull("nope"))
    assert "not on the hub" in refusal(404, lambda: client.pull("owner/nope"))
    assert "not on the hub" in refusal(404, lambda: list(client.pull("owner/nope", stream=True)))
    assert client.pull("sapling").status == "success"


def test_the_server_can_be_looked_for(site: str) -> None:
    assert httpx.get(site).text == "Branchwork is running" and httpx.head(site).status_code == 200
    version = httpx.get(f"{site}/api/version").json()["version"]
    assert all(part.isdigit() for part in version.split("."))
    assert "error" in httpx.get(f"{site}/api/nowhere").json()


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("chat", {"messages": FRANCE, "tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}, *FRANCE]}),
        ("chat", {"messages": "hello"}),
        ("generate", {"prompt": "x", "context": [10**6]}),
        ("generate", {"prompt": "x", "options": []}),
        ("generate", {"prompt": "x", "logprobs": True, "top_logprobs": 99}),
        ("create", {"from": "sapling", "parameters": {"numa": {"a": 1}}}),
        ("create", {"from": "sapling", "messages": [{"role": "tool", "content": "x"}]}),
        ("create", {"modelfile": "SYSTEM x"}),
        ("create", {"from": "sapling", "template": "{{ if }}"}),
    ],
)
def test_no_request_is_too_odd_to_be_refused(site: str, path: str, more: dict[str, Any]) -> None:
    answer = httpx.post(f"{site}/api/{path}", json={"model": "sapling" if path != "create" else "odd", **more})
    assert answer.status_code == 400 and answer.json()["error"]
