"""Programs on OpenAI's API, through its own client library, against a server on loopback."""

from __future__ import annotations

import asyncio
import base64
import datetime
import enum
import functools
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import pytest

import branchwork as bw
from branchwork.lang.backends.compatible import LiteLLM, VertexAI
from branchwork.lang.backends.openai import OpenAI
from branchwork.lang.constraint import Choice
from branchwork.lang.errors import BackendError, CapabilityError, ProgramError
from branchwork.lang.ir import Image, Reasoning, Video
from branchwork.lang.protocol import ChatFrames, Frame
from tests.lang.backends.fake_hosts import Asked, FakeHost, Said, Trouble

PNG = b"\x89PNG\r\n\x1a\n0"


def connect(host: FakeHost, **options: Any) -> OpenAI:
    return OpenAI("some-model", base_url=f"{host.url}/v1", api_key="key", **{"max_retries": 0, **options})


def run(host: FakeHost, body: Callable[[Any], Any], stream: bool = False, **options: Any) -> bw.ProgramState:
    return bw.function(body).run(backend=connect(host, **options), stream=stream)


def ask(*nodes: Any) -> Callable[[Any], None]:
    """A program of one question and one answer."""

    def body(s: Any) -> None:
        s += bw.user("Q")
        s += bw.assistant(functools.reduce(operator.add, nodes))

    return body


def test_roles_become_messages_and_the_answer_a_variable() -> None:
    def body(s: Any) -> None:
        s += bw.system("Be brief.") + bw.user("One?") + bw.assistant(bw.gen("one", max_tokens=9))
        s += bw.user("Two, after " + s.ref("one") + "?")
        s += bw.assistant(bw.gen("two") + " Done.") + bw.user("Three?") + bw.assistant(bw.gen("three"))

    with FakeHost(["first", "second", "third"]) as host:
        state = run(host, body)
        assert [state[name] for name in ("one", "two", "three")] == ["first", "second", "third"]
        assert [message["content"] for message in state.messages()][-3:] == ["second Done.", "Three?", "third"]
        assert host.asked[0].headers["authorization"] == "Bearer key"
    assert host.bodies[2]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "Two, after first?"},
        {"role": "assistant", "content": "second Done."},
        {"role": "user", "content": "Three?"},
    ]


def test_every_parameter_arrives_and_the_api_counts_the_tokens() -> None:
    knobs: dict[str, Any] = {
        "max_tokens": 7,
        "stop": ["END"],
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "seed": 3,
        "n": 2,
        "logprobs": 1,
    }
    with FakeHost([Said(["a b END c", "d"])]) as host:
        backend = connect(host, extra_body={"user": "me"})
        state = bw.function(ask(bw.gen("x", **knobs))).run(backend=backend)
        assert state["x"] == ["a b ", "d"]
        first, second = state.meta("x")
    assert first["completion_tokens"] == 4 and second["completion_tokens"] == 0  # the API tells the sum only
    assert first["prompt_tokens"] == second["prompt_tokens"] and first["finish_reason"] == "stop"
    assert first["output_token_logprobs"][0] == (-0.5, None, "a")
    assert first["output_top_logprobs"][0] == [(-2.0, None, "alt0")]
    (body,) = host.bodies
    assert body.pop("messages") and body == {
        "model": "some-model",
        **{name: value for name, value in knobs.items() if name != "logprobs"},
        "logprobs": True,
        "top_logprobs": 1,
        "user": "me",
    }
    used = backend.token_usage
    assert (used.requests, used.completion_tokens) == (1, 4) and used.prompt_tokens == first["prompt_tokens"]


def test_the_api_itself_is_told_only_what_differs_from_its_defaults() -> None:
    body = OpenAI("gpt-x", api_key="key")._api._body(bw.SamplingParams(temperature=0.0))
    assert body == {"model": "gpt-x", "temperature": 0.0}


def test_text_streams_as_it_comes() -> None:
    with FakeHost(["a b c", "d e"]) as host:

        def body(s: Any) -> None:
            s += bw.user("Q") + bw.assistant(bw.gen("x")) + bw.user("R") + bw.assistant(bw.gen("y"))

        state = run(host, body, stream=True)
        assert list(state.text_iter("x")) == ["a", " b", " c"]
        assert state["y"] == "d e" and state.meta("y")["completion_tokens"] == 2
    assert host.bodies[0]["stream"] is True


@pytest.mark.parametrize(("cut", "code"), [("end", "connection"), ("break", "connection"), ("server_error", "server")])
@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_that_breaks_is_an_error_not_a_short_answer(cut: str, code: str, chat: bool) -> None:
    with FakeHost([Said(["a b c d e f"], cut=cut)]) as host:
        state = run(host, ask(bw.gen("x")), stream=True, is_chat_model=chat)
        with pytest.raises(ProgramError) as caught:
            list(state.text_iter("x"))
    assert caught.value.code == code


def test_forks_run_at_once_and_see_their_own_messages() -> None:
    def answer(body: dict[str, Any]) -> str:
        return str(body["messages"][-1]["content"]).upper()

    def program(s: Any) -> None:
        s += bw.system("sys")
        forks = s.fork(3)
        forks += [bw.user(word) + bw.assistant(bw.gen("x")) for word in ("a", "b", "c")]
        forks.join()

    with FakeHost(answer) as host:
        assert run(host, program)["x"] == ["A", "B", "C"]


def test_pictures_go_with_the_message_they_stand_in() -> None:
    def body(s: Any) -> None:
        s += bw.user("What is " + Image(PNG, "image/png") + "?") + bw.assistant(bw.gen("x"))

    with FakeHost(["a dot"]) as host:
        assert run(host, body)["x"] == "a dot"
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert host.bodies[0]["messages"][0]["content"] == [
        {"type": "text", "text": "What is "},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "?"},
    ]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: int


@pytest.mark.parametrize(
    ("kind", "inside", "answer", "value"),
    [
        (int, {"type": "integer"}, "42", 42),
        (float, {"type": "number"}, "2.50", 2.5),
        (bool, {"type": "string", "enum": ["true", "false", "True", "False"]}, '"true"', True),
        (Literal["yes", "no"], {"type": "string", "enum": ["yes", "no"]}, '"no"', "no"),
        (Colour, {"type": "string", "enum": ["red", "blue"]}, '"blue"', Colour.BLUE),
        (list[int], {"type": "array", "items": {"type": "integer"}}, "[1, 2]", [1, 2]),
        (datetime.date, {"type": "string", "format": "date"}, '"2024-02-29"', datetime.date(2024, 2, 29)),
    ],
)
def test_what_is_no_object_is_asked_for_inside_one(kind: Any, inside: Any, answer: str, value: Any) -> None:
    with FakeHost([f'{{"value": {answer}}}']) as host:
        state = run(host, ask(bw.gen("x", type=kind)))
        assert state["x"] == value
        assert state.messages()[-1]["content"] == answer.strip('"')
    form = host.bodies[0]["response_format"]["json_schema"]
    assert form["strict"] is True and form["schema"]["properties"]["value"] == inside


def test_an_object_is_asked_for_as_it_is_and_streams() -> None:
    with FakeHost(['{"x": 1, "y": 2}']) as host:
        state = run(host, ask(bw.gen("p", type=Point)), stream=True)
        assert "".join(state.text_iter("p")) == '{"x": 1, "y": 2}'
        assert state["p"] == Point(1, 2)
    assert list(host.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]) == ["x", "y"]


def test_definitions_stay_where_references_find_them() -> None:
    schema = {"type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "integer"}}}
    with FakeHost(['{"value": [1]}']) as host:
        assert run(host, ask(bw.gen("x", json_schema=schema)))["x"] == "[1]"
    sent = host.bodies[0]["response_format"]["json_schema"]["schema"]
    assert sent["$defs"] == {"n": {"type": "integer"}} and sent["properties"]["value"]["items"] == {"$ref": "#/$defs/n"}


def test_drawn_choices_come_without_their_wrapping_even_when_streamed() -> None:
    with FakeHost(['{ "value": "b" }']) as host:
        state = run(host, ask(bw.gen("x", choices=Choice(("a", "b")), temperature=0.0)), stream=True)
        assert list(state.text_iter("x")) == ["b"]


@pytest.mark.parametrize(
    ("answer", "knobs", "code"),
    [
        ('{"value": "a long answer that never', {"max_tokens": 3}, "incomplete"),
        ("no JSON at all", {}, "bad_answer"),
        ('{"value": 1e999}', {}, "bad_answer"),
        ('{"other": 1}', {}, "bad_answer"),
    ],
)
def test_an_answer_outside_its_form_is_an_error(answer: str, knobs: Any, code: str) -> None:
    with FakeHost([answer]) as host, pytest.raises(ProgramError) as caught:
        run(host, ask(bw.gen("x", type=int, **knobs)))["x"]
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("node", "named"),
    [
        (bw.gen("x", regex="a+"), "Regex"),
        (bw.gen("x", grammar='start: "a"'), "Grammar"),
        (bw.turn("a", bw.gen("x", stop="."), "."), "turn"),
        (bw.gen("x", tags=[bw.tag("<a>", end="</a>")]), "text with tags or tool calls in it"),
        (bw.gen("x", json_schema={"anyOf": [{"type": "null"}, {"items": {"$ref": "#"}}]}), "refers to itself"),
        (bw.gen("x", top_k=5), "top_k"),
        (bw.gen("x", min_p=0.1), "min_p"),
        (bw.gen("x", repetition_penalty=1.1), "repetition_penalty"),
        (bw.gen("x", stop_token_ids=[1]), "stop_token_ids"),
        (bw.gen("x", stop_regex="a"), "stop_regex"),
        (bw.gen("x", ignore_eos=True), "ignore_eos"),
        (bw.gen("x", min_tokens=2), "min_tokens"),
        (bw.gen("x", prompt_logprobs=0), "prompt_logprobs"),
        (bw.gen("x", heal=True), "heal"),
        (bw.gen("x", jump_forward="off"), "jump_forward"),
        (bw.gen("x", temperature=3.0), "temperatures up to 2"),
        (bw.gen("x", type=int, logprobs=0), "logprobs"),
        (bw.select("x", ["a", "b"]), "choices=bw.Choice"),
        (Video(b"", "video/mp4", 4), "videos"),
        (Image(b"", "image/tiff"), "image/tiff"),
    ],
)
def test_what_a_chat_api_cannot_do_is_refused_at_its_line(node: Any, named: str) -> None:
    with FakeHost([]) as host, pytest.raises(CapabilityError, match=named):
        run(host, ask(node))
    assert host.asked == []


def test_defaults_of_a_run_are_refused_like_those_of_a_gen() -> None:
    with FakeHost([]) as host, pytest.raises(CapabilityError, match="top_k"):
        bw.function(ask(bw.gen("x"))).run(backend=connect(host), top_k=5)


def _outside(s: Any) -> None:
    s += "Say hi." + bw.gen("x")


def _loose(s: Any) -> None:
    s += "Context." + bw.user("Q") + bw.assistant(bw.gen("x"))


def _as_user(s: Any) -> None:
    s += bw.user("I am " + bw.gen("x"))


def _nothing_asked(s: Any) -> None:
    s += bw.assistant(bw.gen("x"))


def _after_text(s: Any) -> None:
    s += bw.user("Q") + bw.assistant("It is " + bw.gen("x"))


def _picture_of_the_assistant(s: Any) -> None:
    s += bw.user("Q") + bw.assistant("See" + Image(PNG, "image/png")) + bw.user("Q") + bw.assistant(bw.gen("x"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (_outside, "'Say hi.' stands outside any"),
        (_loose, "'Context.' stands outside any"),
        (_as_user, "in a user message"),
        (_nothing_asked, "begin with user"),
        (_after_text, "cannot go on from the middle of a turn"),
        (_picture_of_the_assistant, "user's messages only"),
    ],
)
def test_what_only_its_place_rules_out_fails_with_its_line(body: Any, said: str) -> None:
    with FakeHost([]) as host, pytest.raises(ProgramError, match=said) as caught:
        run(host, body)["x"]
    assert caught.value.code == "unsupported" and "test_openai.py" in caught.value.source
    assert host.asked == []


def test_blank_lines_between_messages_say_nothing() -> None:
    def body(s: Any) -> None:
        s += bw.user("Q") + "\n" + bw.assistant(bw.gen("x"))

    with FakeHost(["fine"]) as host:
        assert run(host, body)["x"] == "fine"


def test_a_second_gen_in_a_turn_fails_and_the_first_stands() -> None:
    with FakeHost(["one"]) as host:
        state = run(host, ask(bw.gen("a"), " and ", bw.gen("b")))
        assert state["a"] == "one"
        with pytest.raises(ProgramError, match="num_api_spec_tokens"):
            state["b"]


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "auth"), (403, "auth"), (429, "rate_limit"), (400, "bad_request"), (404, "bad_request"), (500, "server")],
)
def test_every_failure_has_its_code_and_the_words_of_the_api(status: int, code: str) -> None:
    with (
        FakeHost([Trouble(status, "because of this")]) as host,
        pytest.raises(ProgramError, match="because of this") as caught,
    ):
        run(host, ask(bw.gen("x")))["x"]
    assert caught.value.code == code


def test_the_library_tries_again_where_that_may_help() -> None:
    with FakeHost([Trouble(429), Trouble(500), "at last"]) as host:
        assert run(host, ask(bw.gen("x")), max_retries=2)["x"] == "at last"
    assert len(host.asked) == 3


def test_nobody_there_and_nobody_answering_have_codes() -> None:
    with FakeHost([]) as host:
        gone = connect(host)
    with pytest.raises(ProgramError) as caught:
        bw.function(ask(bw.gen("x"))).run(backend=gone)["x"]
    assert caught.value.code == "connection"
    with FakeHost([Said([""], hang=True)]) as host, pytest.raises(ProgramError) as caught:
        run(host, ask(bw.gen("x")), timeout=0.2)["x"]
    assert caught.value.code == "timeout"


def test_a_refusal_of_the_model_is_an_error() -> None:
    with (
        FakeHost([Said([""], refusal="I will not.")]) as host,
        pytest.raises(ProgramError, match="I will not") as caught,
    ):
        run(host, ask(bw.gen("x")))["x"]
    assert caught.value.code == "refused"


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_a_branch_gives_up_its_request(stream: bool) -> None:
    with FakeHost([Said([""], hang=True)]) as host:
        state = run(host, ask(bw.gen("x")), stream=stream)
        assert host.hanging.wait(30)
        state.cancel()
        assert host.given_up.wait(30)
        with pytest.raises(ProgramError) as caught:
            state["x"]
    assert caught.value.code == "cancelled"


def test_dropping_a_state_gives_up_its_request() -> None:
    with FakeHost([Said([""], hang=True)]) as host:
        state = run(host, ask(bw.gen("x")))
        assert host.hanging.wait(30)
        del state
        assert host.given_up.wait(30)


def test_programs_run_side_by_side_from_threads_and_from_a_loop() -> None:
    def answer(body: dict[str, Any]) -> str:
        return str(body["messages"][0]["content"])[::-1]

    def program(s: Any, word: str) -> None:
        s += bw.user(word) + bw.assistant(bw.gen("x"))

    async def many(backend: OpenAI) -> list[str]:
        states = await asyncio.gather(*(bw.function(program).arun(f"w{i}", backend=backend) for i in range(10)))
        return [state["x"] for state in states]

    with FakeHost(answer) as host:
        backend = connect(host)
        rows = bw.function(program).run_batch([(f"w{i}",) for i in range(20)], backend=backend)
        assert [state["x"] for state in rows] == [f"{i}"[::-1] + "w" for i in range(20)]
        assert asyncio.run(many(backend)) == [f"{i}w" for i in range(10)]
        assert backend.token_usage.requests == 30
        backend.close()


def test_thinking_that_the_server_sets_apart_is_kept_apart() -> None:
    how = Reasoning("<think>", "</think>", begun=True)
    apart = msgspec.structs.replace(bw.gen("x", type=int), reasoning=how)
    with FakeHost([Said(['{"value": 4}'], thoughts="2 and 2"), Said(['{"value": 5}'])]) as host:
        state = run(host, ask(apart))
        assert (state["x_reasoning_content"], state["x"]) == ("2 and 2", 4)
        assert state.messages()[-1]["content"] == "4"
        silent = run(host, ask(apart))  # thinks, and does not show it
        assert (silent["x_reasoning_content"], silent["x"]) == ("", 5)


def test_a_server_that_draws_fewer_samples_than_asked_is_an_error() -> None:
    with FakeHost(["only one"], ignores_n=True) as host, pytest.raises(ProgramError, match="1 of n=3") as caught:
        run(host, ask(bw.gen("x", n=3)))["x"]
    assert caught.value.code == "unsupported"


# --- text completions


def complete(host: FakeHost, body: Callable[[Any], Any], **options: Any) -> bw.ProgramState:
    return run(host, body, is_chat_model=False, **options)


def test_a_completion_model_gets_the_whole_text() -> None:
    def body(s: Any) -> None:
        s += "Q: why? A:" + bw.gen("a", stop="\n", max_tokens=5) + "\nB:" + bw.gen("b", n=2)

    with FakeHost([" so\nmore", Said([" x", " y"])]) as host:
        state = complete(host, body)
        assert state["a"] == " so" and state["b"] == [" x", " y"]
        assert state.text() == "Q: why? A: so\nB: x"
    assert [body["prompt"] for body in host.bodies] == ["Q: why? A:", "Q: why? A: so\nB:"]
    assert {asked.path for asked in host.asked} == {"/v1/completions"}


def test_roles_of_a_completion_model_are_written_by_the_template() -> None:
    frames = ChatFrames(roles={"user": Frame("<u>", "</u>"), "assistant": Frame("<a>", "</a>")})
    with FakeHost([" fine"]) as host:
        assert complete(host, ask("It is" + bw.gen("x")), chat_template=frames)["x"] == " fine"
    assert host.bodies[0]["prompt"] == "<u>Q</u><a>It is"


def test_completions_stream() -> None:
    def body(s: Any) -> None:
        s += "Go:" + bw.gen("x")

    with FakeHost([" a b"]) as host:
        state = complete(host, body, stream=True)
        assert list(state.text_iter("x")) == [" a", " b"] and state.meta("x")["finish_reason"] == "stop"


def _chosen(s: Any) -> None:
    s += "The sky is " + bw.select("x", ["deep green", "blue"]) + "."


def test_select_takes_the_choice_with_the_best_mean_score() -> None:
    scores = {" deep": -1.0, " green": -9.0, " blue": -2.0}
    with FakeHost(score=lambda token: scores.get(token, -50.0)) as host:
        state = complete(host, _chosen)
        assert state["x"] == "blue" and state.text() == "The sky is blue."
        assert state.meta("x")["normalized_prompt_logprobs"] == [-5.0, -2.0]
    assert host.bodies[0]["prompt"] == ["The sky is deep green", "The sky is blue"]
    assert host.bodies[0]["max_tokens"] == 0


def test_select_fails_where_the_server_does_not_score() -> None:
    with FakeHost(scores_prompts=False) as host, pytest.raises(ProgramError, match="log-probabilities") as caught:
        complete(host, _chosen)["x"]
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize(
    ("node", "named"),
    [
        (bw.gen("x", type=int), "no constraints"),
        (bw.select("x", ["a"], choices_method=bw.unconditional_likelihood_normalized), "unconditional"),
        (Image(PNG, "image/png"), "no pictures"),
    ],
)
def test_what_a_completion_api_cannot_do_is_refused_at_its_line(node: Any, named: str) -> None:
    with FakeHost([]) as host, pytest.raises(CapabilityError, match=named):
        complete(host, ask(node))


def test_openai_knows_its_own_completion_models() -> None:
    assert not OpenAI("gpt-3.5-turbo-instruct", api_key="k")._api.rules.chat
    assert OpenAI("Llama-3-8B-Instruct", api_key="k")._api.rules.chat


# --- other ways in


def test_without_a_key_there_is_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(BackendError, match="OPENAI_API_KEY"):
        OpenAI("m")


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(BackendError, match=r"pip install branchwork\[openai\]"):
        OpenAI("m", api_key="k")


def test_azure_is_reached_through_its_own_client() -> None:
    with FakeHost(["hi"]) as host:
        azure = {"azure_endpoint": host.url, "api_version": "2024-10-21", "api_key": "secret"}
        backend = OpenAI("deployed", is_azure=True, **azure)
        assert bw.function(ask(bw.gen("x"))).run(backend=backend)["x"] == "hi"
    (asked,) = host.asked
    assert asked.path == "/openai/deployments/deployed/chat/completions" and asked.headers["api-key"] == "secret"
    assert asked.body["max_completion_tokens"] == 128


def test_vertex_and_litellm_are_openai_at_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def token() -> str:
        return "fresh"

    with FakeHost(["a", "b"]) as host:
        backends = [
            VertexAI("gemini-x", api_key=token, base_url=f"{host.url}/v1"),
            LiteLLM("any", base_url=f"{host.url}/v1"),
        ]
        answers = [bw.function(ask(bw.gen("x"))).run(backend=backend)["x"] for backend in backends]
        assert answers == ["a", "b"]
    by_model: dict[str, Asked] = {asked.body["model"]: asked for asked in host.asked}
    assert by_model["google/gemini-x"].headers["authorization"] == "Bearer fresh"
    for name in ("GCP_PROJECT_ID", "GCP_LOCATION", "LITELLM_PROXY_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BackendError, match="project="):
        VertexAI("gemini-x", api_key="t")
    with pytest.raises(BackendError, match="api_key="):
        VertexAI("gemini-x", project="p", location="global")
    with pytest.raises(BackendError, match="base_url="):
        LiteLLM("any")


def test_the_address_of_vertex_is_made_of_project_and_location() -> None:
    client = VertexAI("gemini-x", project="p", location="europe-west4", api_key="t")._api._clients.get(None)
    expected = "https://europe-west4-aiplatform.googleapis.com/v1/projects/p/locations/europe-west4/endpoints/openapi/"
    assert str(client.base_url) == expected
