"""/v1/responses as OpenAI's own client meets it: kept, continued from the same tokens, streamed, and let go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

QUESTION = "What is the capital of France?"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="mine", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, given: Any = QUESTION, **more: Any) -> Any:
    return client.responses.create(**{"model": "sapling", "input": given, "temperature": 0, **more})


def test_a_conversation_goes_on_from_the_very_tokens(client: openai.OpenAI) -> None:
    first = ask(client)
    assert first.output_text == "The capital of France is Paris." and first.status == "completed"
    second = ask(client, "And of Italy?", previous_response_id=first.id)
    assert second.output_text == "The capital of Italy is Rome." and second.previous_response_id == first.id
    # all that was read and written before, but for the end of the turn
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 1
    third = ask(client, "And of Spain?", previous_response_id=second.id)
    assert third.usage.input_tokens_details.cached_tokens >= second.usage.total_tokens - 1


def test_other_instructions_begin_the_conversation_anew(client: openai.OpenAI) -> None:
    first = ask(client, instructions="Be kind.")
    same = ask(client, "And of Italy?", previous_response_id=first.id, instructions="Be kind.")
    other = ask(client, "And of Italy?", previous_response_id=first.id)
    assert same.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 1
    assert other.usage.input_tokens < same.usage.input_tokens  # the first instructions do not stand in it


def test_what_is_kept_can_be_got_and_deleted_by_its_owner_alone(client: openai.OpenAI, address: str) -> None:
    made = ask(client, metadata={"run": "7"})
    found = client.responses.retrieve(made.id)
    assert found.output_text == made.output_text and found.metadata == {"run": "7"}
    items = client.responses.input_items.list(made.id).data
    assert items[0].role == "user" and items[0].content[0].text == QUESTION
    with openai.OpenAI(base_url=f"{address}/v1", api_key="another's", max_retries=0) as other:
        with pytest.raises(openai.NotFoundError):
            other.responses.retrieve(made.id)
        with pytest.raises(openai.BadRequestError):
            ask(other, "And of Italy?", previous_response_id=made.id)
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(made.id)


def test_what_is_not_to_be_kept_is_not(client: openai.OpenAI) -> None:
    made = ask(client, store=False)
    assert made.output_text
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "And of Italy?", previous_response_id=made.id)
    assert caught.value.code == "previous_response_not_found" and caught.value.param == "previous_response_id"


def test_a_stream_tells_of_every_item_and_ends_with_the_response(client: openai.OpenAI) -> None:
    events = list(ask(client, stream=True, include=["message.output_text.logprobs"]))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    said = [event for event in events if event.type == "response.output_text.delta"]
    final = events[-1].response
    assert "".join(event.delta for event in said) == final.output_text == "The capital of France is Paris."
    scores = [score.token for event in said for score in event.logprobs]
    assert "".join(scores) == final.output_text
    assert client.responses.retrieve(final.id).output_text == final.output_text


def test_tools_are_called_and_their_results_are_read(client: openai.OpenAI) -> None:
    first = ask(client, "What is the weather in Paris?", tools=[WEATHER])
    call = first.output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Paris"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "cloudy", "temperature": 12}'}
    second = ask(client, [result], tools=[WEATHER], previous_response_id=first.id)
    assert second.output_text == "The sky is cloudy and the temperature is 12."
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 1
    # the same with all items in the request
    asked = {"role": "user", "content": "What is the weather in Paris?"}
    whole = ask(client, [asked, call.model_dump(exclude_none=True), result], tools=[WEATHER])
    assert whole.output_text == second.output_text


def test_a_streamed_call_adds_up(client: openai.OpenAI) -> None:
    events = list(ask(client, "What is the weather in Paris?", tools=[WEATHER], tool_choice="required", stream=True))
    arguments = [event for event in events if event.type.startswith("response.function_call_arguments")]
    assert arguments[-1].type.endswith("done") and json.loads(arguments[-1].arguments) == {"city": "Paris"}
    assert "".join(event.delta for event in arguments[:-1]) == arguments[-1].arguments
    assert events[-1].response.output[0].arguments == arguments[-1].arguments


class Person(BaseModel):
    name: str
    age: int


def test_a_text_format_is_kept_and_parsed(client: openai.OpenAI) -> None:
    made = client.responses.parse(model="sapling", input="Anna is 31.", temperature=0, text_format=Person)
    assert isinstance(made.output_parsed, Person)


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    made = ask(client, max_output_tokens=3)
    assert made.status == "incomplete" and made.incomplete_details.reason == "max_output_tokens"
    assert made.output[0].status == "incomplete" and made.output_text == "The capital of"
    events = list(ask(client, max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(client: openai.OpenAI, wrong: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **{"stream": stream, **wrong})
        assert caught.value.body["param"] == param
