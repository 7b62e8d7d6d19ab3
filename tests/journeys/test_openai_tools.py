"""Tools over OpenAI's chats: whole and streamed calls, choices, results in the history; and through LangChain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest


def tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    function = {"name": name, "description": description, "parameters": {**schema, "required": list(properties)}}
    return {"type": "function", "function": function}


TOOLS: Any = [
    tool("get_weather", "Get the weather of a city.", city="string"),
    tool("multiply", "Multiply two numbers.", a="integer", b="integer"),
]
PARIS: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, messages: Any = PARIS, **more: Any) -> Any:
    knobs = {"model": "sapling", "messages": messages, "temperature": 0, "tools": TOOLS, "max_tokens": 80, **more}
    return client.chat.completions.create(**knobs).choices[0]


def test_the_model_calls_a_tool_and_answers_from_its_result(client: openai.OpenAI) -> None:
    first = ask(client)
    assert first.finish_reason == "tool_calls" and first.message.content is None
    call = first.message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "cloudy", "temperature": 12}'}
    second = ask(client, [*PARIS, first.message.model_dump(exclude_none=True), result])
    assert second.finish_reason == "stop" and second.message.tool_calls is None
    assert second.message.content == "The sky is cloudy and the temperature is 12."


def test_a_streamed_call_comes_name_first_and_adds_up(client: openai.OpenAI) -> None:
    knobs: dict[str, Any] = {"model": "sapling", "messages": PARIS, "temperature": 0, "tools": TOOLS}
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**knobs, stream=True)]
    calls = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert calls[0].function.name == "get_weather" and calls[0].id.startswith("call_") and calls[0].type == "function"
    assert all(call.id is None and call.function.name is None and call.index == 0 for call in calls[1:])
    assert len(calls) > 1
    assert json.loads("".join(call.function.arguments for call in calls)) == {"city": "Paris"}
    with client.chat.completions.stream(**knobs) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls" and final.message.tool_calls[0].function.arguments == '{"city": "Paris"}'


@pytest.mark.parametrize("parallel", [True, False])
def test_a_tool_that_is_asked_for_is_called(client: openai.OpenAI, parallel: bool) -> None:
    wanted = {"type": "function", "function": {"name": "multiply"}}
    choice = ask(client, tool_choice=wanted, parallel_tool_calls=parallel)
    calls = choice.message.tool_calls
    assert {call.function.name for call in calls} == {"multiply"} and (parallel or len(calls) == 1)
    assert all(set(json.loads(call.function.arguments)) == {"a", "b"} for call in calls[: 1 if parallel else None])


def test_a_call_can_be_required_and_forbidden(client: openai.OpenAI) -> None:
    hello: Any = [{"role": "user", "content": "What is the capital of France?"}]
    assert ask(client, hello).message.tool_calls is None
    required = ask(client, hello, tool_choice="required", parallel_tool_calls=False)
    assert required.message.tool_calls[0].function.name in ("get_weather", "multiply")
    forbidden = ask(client, tool_choice="none")
    assert forbidden.message.tool_calls is None and "<tool_call>" not in forbidden.message.content
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[1]]}}
    assert ask(client, tool_choice=allowed).message.tool_calls[0].function.name == "multiply"


def test_a_call_that_is_cut_off_is_told_as_far_as_it_came(client: openai.OpenAI) -> None:
    cut = ask(client, max_tokens=18)
    assert cut.finish_reason == "length"
    stream = client.chat.completions.create(
        model="sapling", messages=PARIS, temperature=0, tools=TOOLS, max_tokens=18, stream=True
    )
    parts = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert "".join(part.function.arguments for part in parts) == cut.message.tool_calls[0].function.arguments


def test_an_answer_may_be_a_call_or_of_a_format(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "ok", "schema": {**schema, "additionalProperties": False}}}
    assert ask(client, response_format=form).message.tool_calls[0].function.name == "get_weather"
    answer = ask(client, response_format=form, tool_choice="none")
    assert set(json.loads(answer.message.content)) == {"ok"}


def test_tools_that_are_none_are_refused(client: openai.OpenAI) -> None:
    twice = [TOOLS[0], TOOLS[0]]
    unknown = {"type": "function", "function": {"name": "swim"}}
    for wrong, param in [({"tools": twice}, "tools"), ({"tool_choice": unknown}, "tool_choice")]:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **wrong)
        assert caught.value.body["param"] == param


def test_langchain_chats_and_calls(address: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(base_url=f"{address}/v1", api_key="none", model="sapling", temperature=0)
    assert model.invoke("What is the capital of France?").content == "The capital of France is Paris."
    called = model.bind_tools(TOOLS).invoke("What is the weather in Paris?")
    assert called.tool_calls[0]["name"] == "get_weather" and called.tool_calls[0]["args"] == {"city": "Paris"}
