"""Anthropic's own Python client, as it is, against a server of ours: messages, streams, tools, thinking, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
THINKER = """{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}"""


@pytest.fixture
def client(site: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=site, api_key="none", max_retries=0) as one:
        yield one


def asked(messages: list[Any] = FRANCE, **more: Any) -> dict[str, Any]:
    return {"model": "sapling", "max_tokens": 60, "messages": messages, "extra_body": {"temperature": 0}, **more}


def refusal(kind: type[anthropic.APIStatusError], do: Any) -> str:
    with pytest.raises(kind) as caught:
        do()
    body = caught.value.body
    assert isinstance(body, dict) and body["type"] == "error" and body["request_id"].startswith("req_")
    assert caught.value.request_id == body["request_id"]
    return f"{body['error']['type']}: {body['error']['message']}"


def test_a_message_is_answered_with_its_usage(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(**asked())
    assert answer.type == "message" and answer.role == "assistant" and answer.id.startswith("msg_")
    assert [block.type for block in answer.content] == ["text"] and "Paris" in answer.content[0].text
    assert answer.stop_reason == "end_turn" and answer.stop_sequence is None
    again = client.messages.create(**asked()).usage
    assert again.input_tokens + again.cache_read_input_tokens == 16 and again.cache_read_input_tokens == 15
    assert again.output_tokens == answer.usage.output_tokens > 5


def test_a_stream_tells_of_every_beginning_and_end(client: anthropic.Anthropic, site: str) -> None:
    body = {**asked(), "stream": True, "temperature": 0}
    del body["extra_body"]
    events = [
        line[7:] for line in httpx.post(f"{site}/v1/messages", json=body).text.splitlines() if line[:6] == "event:"
    ]
    pieces = len(events) - 6
    block = ["content_block_start", *["content_block_delta"] * pieces, "content_block_stop"]
    assert events == ["message_start", "ping", *block, "message_delta", "message_stop"]
    with client.messages.stream(**asked()) as stream:
        said = "".join(stream.text_stream)
        last = stream.get_final_message()
    whole = client.messages.create(**asked())
    assert said == whole.content[0].text == last.content[0].text
    assert last.stop_reason == whole.stop_reason and last.usage.output_tokens == whole.usage.output_tokens


def test_the_asynchronous_client_does_the_same(site: str) -> None:
    async def both() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(base_url=site, api_key="none") as asking:
            whole = await asking.messages.create(**asked())
            async with asking.messages.stream(**asked()) as stream:
                streamed = "".join([text async for text in stream.text_stream])
        return whole.content[0].text, streamed

    whole, streamed = asyncio.run(both())
    assert whole == streamed and "Paris" in whole


def test_a_tool_is_called_and_its_result_read(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**asked(WEATHER, tools=[TOOL]))
    (call,) = whole.content
    assert whole.stop_reason == "tool_use" and call.type == "tool_use" and call.id.startswith("toolu_")
    assert call.name == "weather" and call.input == {"city": "Paris"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny, 21 degrees"}]}
    history = [*WEATHER, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    assert "21 degrees" in client.messages.create(**asked(history, tools=[TOOL])).content[0].text


def test_a_streamed_call_comes_as_pieces_of_its_arguments(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(**asked(WEATHER, tools=[TOOL], stream=True)))
    begun = [event.content_block for event in events if event.type == "content_block_start"]
    assert [(block.type, block.name, block.input) for block in begun] == [("tool_use", "weather", {})]
    pieces = [event.delta.partial_json for event in events if event.type == "content_block_delta"]
    assert json.loads("".join(pieces)) == {"city": "Paris"}
    with client.messages.stream(**asked(WEATHER, tools=[TOOL])) as stream:
        assert stream.get_final_message().content[0].input == {"city": "Paris"}


def test_the_choice_of_tools_is_kept(client: anthropic.Anthropic) -> None:
    other = {**TOOL, "name": "time"}
    both = [TOOL, other]
    forced = client.messages.create(**asked(tools=both, tool_choice={"type": "any"}))
    assert forced.stop_reason == "tool_use" and forced.content[0].type == "tool_use"
    named = client.messages.create(**asked(WEATHER, tools=both, tool_choice={"type": "tool", "name": "time"}))
    assert [block.name for block in named.content] == ["time"]
    free = client.messages.create(**asked(WEATHER, tools=both, tool_choice={"type": "none"}))
    assert [block.type for block in free.content] == ["text"]


def test_a_call_that_is_cut_off_stays_as_far_as_it_came(client: anthropic.Anthropic) -> None:
    cut = asked(WEATHER, tools=[TOOL], tool_choice={"type": "any"})
    answer = client.messages.create(**{**cut, "max_tokens": 16})
    assert answer.stop_reason == "max_tokens" and answer.content[0].type == "tool_use"
    with client.messages.stream(**{**cut, "max_tokens": 16}) as stream:
        assert [block.type for block in stream.get_final_message().content] == ["tool_use"]


def test_thinking_is_a_block_of_its_own(client: anthropic.Anthropic, site: str) -> None:
    made = {"model": "muser", "from": "sapling", "template": THINKER, "stream": False}
    assert httpx.post(f"{site}/api/create", json=made).status_code == 200
    thinking = {"type": "enabled", "budget_tokens": 1024}
    more = asked(model="muser", thinking=thinking)
    whole = client.messages.create(**more)
    assert [block.type for block in whole.content] == ["thinking"] and whole.content[0].signature
    with client.messages.stream(**more) as stream:
        last = stream.get_final_message()
    assert last.content[0].thinking == whole.content[0].thinking
    assert last.content[0].signature == whole.content[0].signature
    history = [*FRANCE, {"role": "assistant", "content": [*whole.content, {"type": "text", "text": "Paris"}]}, *FRANCE]
    plain = client.messages.create(**asked(history, model="muser"))
    assert [block.type for block in plain.content] == ["text"]
    httpx.request("DELETE", f"{site}/api/delete", json={"model": "muser"})


def test_an_answer_goes_on_from_a_prefill_and_stops_where_it_is_told(client: anthropic.Anthropic) -> None:
    begun = [*FRANCE, {"role": "assistant", "content": "The capital of"}]
    assert client.messages.create(**asked(begun)).content[0].text.startswith(" France")
    stopped = client.messages.create(**asked(stop_sequences=[" France"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " France")
    assert stopped.content[0].text == "The capital of"
    assert client.messages.create(**asked() | {"max_tokens": 3}).stop_reason == "max_tokens"


def test_an_answer_has_the_format_that_was_asked_for(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = client.messages.create(**asked(output_config={"format": {"type": "json_schema", "schema": schema}}))
    assert json.loads(answer.content[0].text)["ok"] in (True, False)


def test_tokens_are_counted_as_they_are_used(client: anthropic.Anthropic) -> None:
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    counted = client.messages.count_tokens(model="sapling", messages=WEATHER, tools=[TOOL], system=system)
    used = client.messages.create(**asked(WEATHER, tools=[TOOL], system=system)).usage
    assert counted.input_tokens == used.input_tokens + used.cache_read_input_tokens > 40


def test_wrong_requests_say_what_is_wrong(client: anthropic.Anthropic) -> None:
    def wrong(**more: Any) -> str:
        return refusal(anthropic.BadRequestError, lambda: client.messages.create(**{**asked(), **more}))

    missing = refusal(anthropic.NotFoundError, lambda: client.messages.create(**asked(model="nope")))
    assert missing.startswith("not_found_error: there is no model 'nope'")
    assert wrong(messages=[{"role": "user", "content": "word " * 3000}]).startswith("invalid_request_error: the prompt")
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aa"}}
    assert "text only" in wrong(messages=[{"role": "user", "content": [image]}])
    assert "thinking" in wrong(thinking={"type": "enabled", "budget_tokens": 1024})
    assert "tool_choice" in wrong(tools=[TOOL], tool_choice={"type": "tool", "name": "nope"})
    assert "tools" in wrong(tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert "nonsense" in wrong(tools=[{"name": "x", "input_schema": {"properties": {"a": {"type": "nonsense"}}}}])
    assert "max_tokens" in wrong(max_tokens=0) and "messages" in wrong(messages=[])
    assert "role" in wrong(messages=[{"role": "system", "content": "x"}])
    assert "temperature" in wrong(extra_body={"temperature": 3})
    assert "stop_sequences" in wrong(stop_sequences=[" "])


def test_a_stream_that_cannot_begin_is_a_status(client: anthropic.Anthropic) -> None:
    long = [{"role": "user", "content": "word " * 3000}]
    assert "context" in refusal(anthropic.BadRequestError, lambda: client.messages.create(**asked(long, stream=True)))
    refusal(anthropic.NotFoundError, lambda: client.messages.create(**asked(model="nope", stream=True)))


def test_a_body_that_is_no_request_is_refused_in_the_same_shape(site: str) -> None:
    answer = httpx.post(f"{site}/v1/messages", content=b'{"model": "sapling", "messages": []}')
    assert answer.status_code == 400 and "max_tokens" in answer.json()["error"]["message"]
    assert answer.headers["request-id"] == answer.json()["request_id"]
    assert httpx.get(f"{site}/v1/messages").json()["type"] == "error"


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [TOOL], "tool_choice": {"type": ["any"]}},
        {"tools": [{"name": "f", "input_schema": "x"}]},
        {"tools": [TOOL, TOOL]},
        {"tool_choice": {"type": "any"}},
        {"output_config": {"format": "json"}},
        {"thinking": {"type": ["enabled"]}},
        {"system": [{"type": "text"}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": 5}]}]},
        {"messages": [*FRANCE, {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": 5}]}]},
        {"messages": [*FRANCE, {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {}}]}]},
    ],
)
def test_no_request_is_too_odd_to_be_refused(site: str, more: dict[str, Any]) -> None:
    body = {"model": "sapling", "max_tokens": 5, "messages": FRANCE, **more}
    answer = httpx.post(f"{site}/v1/messages", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
