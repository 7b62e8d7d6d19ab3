"""Programs on Anthropic's API, through its own client library, against a server on loopback."""

from __future__ import annotations

import base64
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

import branchwork as bw
from branchwork.lang.backends.anthropic import Anthropic
from branchwork.lang.backends.trim import Trim
from branchwork.lang.errors import BackendError, CapabilityError, ProgramError
from branchwork.lang.ir import Image, Reasoning, Video
from tests.lang.backends.fake_hosts import FakeHost, Said, Trouble

PNG = b"\x89PNG\r\n\x1a\n0"


def connect(host: FakeHost, **options: Any) -> Anthropic:
    return Anthropic("some-model", base_url=host.url, api_key="key", **{"max_retries": 0, **options})


def run(host: FakeHost, body: Callable[[Any], Any], stream: bool = False, **options: Any) -> bw.ProgramState:
    return bw.function(body).run(backend=connect(host, **options), stream=stream)


def ask(*nodes: Any) -> Callable[[Any], None]:
    def body(s: Any) -> None:
        s += bw.user("Q")
        s += bw.assistant(functools.reduce(operator.add, nodes))

    return body


def test_roles_become_messages_and_the_system_stands_apart() -> None:
    def body(s: Any) -> None:
        s += bw.system("Be brief.") + bw.system("Be kind.")
        s += bw.user("One?") + bw.assistant(bw.gen("one")) + bw.user("Two?") + bw.assistant(bw.gen("two"))

    with FakeHost(["first", "second"]) as host:
        state = run(host, body)
        assert (state["one"], state["two"]) == ("first", "second")
        assert host.asked[0].path == "/v1/messages"
    assert host.bodies[1]["system"] == "Be brief.\n\nBe kind."
    assert host.bodies[1]["messages"] == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "Two?"},
    ]


def test_every_parameter_arrives_and_tokens_are_counted() -> None:
    knobs = {"max_tokens": 7, "stop": ["END"], "temperature": 0.5, "top_p": 0.9, "top_k": 4}
    with FakeHost(["a b END c"]) as host:
        backend = connect(host, extra_body={"service_tier": "auto"})
        state = bw.function(ask(bw.gen("x", **knobs))).run(backend=backend)
        assert state["x"] == "a b "
        meta = state.meta("x")
    assert (meta["finish_reason"], meta["matched"]) == ("stop", "END")
    assert (meta["prompt_tokens"], meta["cached_tokens"], meta["completion_tokens"]) == (12, 3, 3)
    (body,) = host.bodies
    sent = {name: body[name] for name in ("max_tokens", "temperature", "top_p", "top_k", "service_tier")}
    assert sent == {**{name: knobs[name] for name in knobs if name != "stop"}, "service_tier": "auto"}
    assert body["stop_sequences"] == ["END"]
    assert (backend.token_usage.prompt_tokens, backend.token_usage.completion_tokens) == (12, 3)


def test_what_is_at_its_default_is_left_out_for_models_that_refuse_it() -> None:
    with FakeHost(["a"]) as host:
        run(host, ask(bw.gen("x"))).sync()
    assert set(host.bodies[0]) == {"model", "max_tokens", "messages", "stream"}


def test_a_turn_goes_on_from_its_text_so_far() -> None:
    with FakeHost([" 42 or so\n", " sure."]) as host:
        state = run(host, ask("It is ", bw.gen("x", stop=" or"), ", I am", bw.gen("y")))
        assert (state["x"], state["y"]) == ("42", " sure.")
        assert state.messages()[-1]["content"] == "It is 42, I am sure."
    said = [body["messages"][-1] for body in host.bodies]
    assert said == [
        {"role": "assistant", "content": "It is"},
        {"role": "assistant", "content": "It is 42, I am"},
    ]


def test_white_space_the_api_refuses_makes_no_difference() -> None:
    with FakeHost([" a b\nc"]) as host:
        state = run(host, ask("Answer: ", bw.gen("x", stop="\n")), stream=True)
        assert list(state.text_iter("x")) == ["a", " b"]
        assert state.meta("x")["matched"] == "\n" and state.meta("x")["finish_reason"] == "stop"


def test_a_turn_so_far_of_white_space_alone_is_no_message() -> None:
    with FakeHost(["\n\nword"]) as host:
        assert run(host, ask("\n\n", bw.gen("x")))["x"] == "word"
    assert host.bodies[0]["messages"] == [{"role": "user", "content": "Q"}]


@pytest.mark.parametrize("pieces", [["\n", "\na\n", "\nb"], ["\n\na\n\nb"], list("\n\na\n\nb")])
def test_trimming_does_not_depend_on_how_a_text_comes(pieces: list[str]) -> None:
    trim = Trim("\n\n", ("\n\n", "zzz"))
    assert "".join([*map(trim.feed, pieces), trim.end()]) == "a" and trim.matched == "\n\n"


@pytest.mark.parametrize("text", ["\na", "", "ab\n", "azz"])
def test_trimming_gives_out_what_only_began_like_a_stop_or_a_lead(text: str) -> None:
    trim = Trim("\n\n", ("\n\n", "zzz"))
    assert "".join([*map(trim.feed, text), trim.end()]) == text and trim.matched is None


def test_a_model_that_does_not_go_on_is_not_asked_to() -> None:
    with FakeHost([]) as host, pytest.raises(ProgramError, match="middle of a turn") as caught:
        run(host, ask("It is", bw.gen("x")), prefill=False)["x"]
    assert caught.value.code == "unsupported" and host.asked == []


def test_samples_are_requests_side_by_side() -> None:
    with FakeHost([Said(["a"]), Said(["b c"])]) as host:
        state = run(host, ask(bw.gen("x", n=2)))
        assert sorted(state["x"]) == ["a", "b c"]
        assert sorted(meta["completion_tokens"] for meta in state.meta("x")) == [1, 2]
    assert len(host.asked) == 2


def test_one_sample_that_fails_fails_them_all_and_gives_up_the_rest() -> None:
    with FakeHost([Said([""], hang=True), Trouble(400)]) as host, pytest.raises(ProgramError) as caught:
        run(host, ask(bw.gen("x", n=2)))["x"]
        assert caught.value.code == "bad_request"
        assert host.given_up.wait(30)


def test_pictures_go_with_the_message_they_stand_in() -> None:
    def body(s: Any) -> None:
        s += bw.user("What is " + Image(PNG, "image/png")) + bw.assistant(bw.gen("x"))

    with FakeHost(["a dot"]) as host:
        assert run(host, body)["x"] == "a dot"
    data = base64.b64encode(PNG).decode()
    assert host.bodies[0]["messages"][0]["content"] == [
        {"type": "text", "text": "What is "},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
    ]


@dataclass
class Point:
    x: int
    y: int


def test_types_are_asked_for_as_schemas() -> None:
    with FakeHost(['{"x": 1, "y": 2}', '{"value": 7}']) as host:

        def body(s: Any) -> None:
            s += bw.user("Where?") + bw.assistant(bw.gen("p", type=Point))
            s += bw.user("How many?") + bw.assistant(bw.gen("n", type=int))

        state = run(host, body, extra_body={"output_config": {"effort": "low"}})
        assert (state["p"], state["n"]) == (Point(1, 2), 7)
    assert [body["output_config"]["effort"] for body in host.bodies] == ["low", "low"]
    forms = [body["output_config"]["format"] for body in host.bodies]
    assert [form["type"] for form in forms] == ["json_schema", "json_schema"]
    assert forms[1]["schema"]["properties"] == {"value": {"type": "integer"}}


def test_the_rest_of_a_turn_cannot_be_held_to_a_schema() -> None:
    with FakeHost([]) as host, pytest.raises(ProgramError, match="hold the rest of a turn") as caught:
        run(host, ask("Number: ", bw.gen("x", type=int)))["x"]
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize(
    ("node", "named"),
    [
        (bw.gen("x", regex="a+"), "Regex"),
        (bw.gen("x", seed=1), "seed"),
        (bw.gen("x", logprobs=0), "logprobs"),
        (bw.gen("x", frequency_penalty=0.5), "frequency_penalty"),
        (bw.gen("x", presence_penalty=0.5), "presence_penalty"),
        (bw.gen("x", temperature=1.5), "temperatures up to 1"),
        (bw.gen("x", min_tokens=1), "min_tokens"),
        (bw.select("x", ["a", "b"]), "choices=bw.Choice"),
        (Video(b"", "video/mp4", 4), "videos"),
    ],
)
def test_what_the_api_cannot_do_is_refused_at_its_line(node: Any, named: str) -> None:
    with FakeHost([]) as host, pytest.raises(CapabilityError, match=named):
        run(host, ask(node))
    assert host.asked == []


def test_a_system_message_later_on_fails() -> None:
    def body(s: Any) -> None:
        s += bw.user("Q") + bw.system("sys") + bw.assistant(bw.gen("x"))

    with FakeHost([]) as host, pytest.raises(ProgramError, match="before all others"):
        run(host, body)["x"]


@pytest.mark.parametrize(
    ("status", "code"), [(401, "auth"), (429, "rate_limit"), (400, "bad_request"), (529, "server")]
)
def test_every_failure_has_its_code_and_the_words_of_the_api(status: int, code: str) -> None:
    with (
        FakeHost([Trouble(status, "because of this")]) as host,
        pytest.raises(ProgramError, match="because of this") as caught,
    ):
        run(host, ask(bw.gen("x")))["x"]
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("cut", "code"),
    [
        ("end", "connection"),
        ("break", "connection"),
        ("overloaded_error", "server"),
        ("rate_limit_error", "rate_limit"),
    ],
)
def test_a_stream_that_breaks_is_an_error_not_a_short_answer(cut: str, code: str) -> None:
    with FakeHost([Said(["a b c d e f"], cut=cut)]) as host, pytest.raises(ProgramError) as caught:
        run(host, ask(bw.gen("x")))["x"]
    assert caught.value.code == code


def test_a_refusal_of_the_model_is_an_error() -> None:
    with FakeHost([Said([""], refusal="no")]) as host, pytest.raises(ProgramError) as caught:
        run(host, ask(bw.gen("x")))["x"]
    assert caught.value.code == "refused"


def test_cancelling_gives_up_the_request() -> None:
    with FakeHost([Said([""], hang=True)]) as host:
        state = run(host, ask(bw.gen("x")))
        assert host.hanging.wait(30)
        state.cancel()
        assert host.given_up.wait(30)


def test_thinking_is_kept_apart() -> None:
    apart = msgspec.structs.replace(bw.gen("x"), reasoning=Reasoning("<think>", "</think>"))
    with FakeHost([Said(["four"], thoughts="2 and 2")]) as host:
        state = run(host, ask(apart))
        assert (state["x_reasoning_content"], state["x"]) == ("2 and 2", "four")
    with FakeHost([Said(["four"], thoughts="2 and 2")]) as host:
        plain = run(host, ask(bw.gen("x")))
        assert (plain["x"], plain.meta("x")["reasoning_content"]) == ("four", "2 and 2")


def test_without_a_key_there_is_no_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE", "ANTHROPIC_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BackendError, match="ANTHROPIC_API_KEY"):
        Anthropic("m")
