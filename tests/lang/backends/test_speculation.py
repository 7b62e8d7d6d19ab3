"""One call for several gens of a turn (num_api_spec_tokens): which text is whose, and what happens when it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang.backend import Backend
from branchwork.lang.backends.anthropic import Anthropic
from branchwork.lang.backends.openai import OpenAI
from branchwork.lang.backends.speculate import Hole, match
from branchwork.lang.errors import CapabilityError, ProgramError
from branchwork.lang.ir import Fill, Gen, Placed, RoleBegin, RoleEnd, Template, Text
from branchwork.lang.live import LiveProgram
from branchwork.lang.params import SamplingParams
from branchwork.lang.protocol import Budget
from branchwork.lang.state import ProgramState
from tests.lang.backends.fake_hosts import FakeHost, Said

ALICE = "Name: Alice\nAge: 30\nJob: baker"


def chat(host: FakeHost) -> OpenAI:
    return OpenAI("m", base_url=f"{host.url}/v1", api_key="k", max_retries=0)


def text(host: FakeHost) -> OpenAI:
    return OpenAI("m", False, base_url=f"{host.url}/v1", api_key="k", max_retries=0)


def run(
    backend: Backend, body: Callable[[Any], None], tokens: int = 40, budget: Budget | None = None
) -> bw.ProgramState:
    return bw.function(body, num_api_spec_tokens=tokens).run(backend=backend, budget=budget)


def card(s: Any) -> None:
    s += bw.user("Who?")
    s += bw.assistant(
        "Name: " + bw.gen("name", stop="\n") + "\nAge: " + bw.gen("age", stop="\n") + "\nJob: " + bw.gen("job")
    )


def test_one_call_answers_all_gens_of_a_turn() -> None:
    with FakeHost([ALICE]) as host:
        backend = chat(host)
        state = run(backend, card)
        assert [state[name] for name in ("name", "age", "job")] == ["Alice", "30", "baker"]
        assert state.messages()[-1]["content"] == ALICE
        metas = [state.meta(name) for name in ("name", "age", "job")]
    (body,) = host.bodies
    assert body["max_tokens"] == 40 and "stop" not in body
    assert body["messages"] == [{"role": "user", "content": "Who?"}]
    assert [meta["requests"] for meta in metas] == [1, 0, 0]
    assert sum(meta["completion_tokens"] for meta in metas) == backend.token_usage.completion_tokens
    assert [meta["matched"] for meta in metas] == ["\n", "\n", None]


def test_a_turn_that_does_not_fit_is_asked_for_again() -> None:
    with FakeHost(["Alice is 30.", "Name: Alice", ALICE]) as host:
        backend = chat(host)
        state = run(backend, card)
        assert state["age"] == "30" and state.meta("name")["requests"] == 3
        assert state.meta("name")["completion_tokens"] == backend.token_usage.completion_tokens
    assert len(host.asked) == 3


def test_a_turn_that_never_fits_fails_with_what_was_expected_and_what_came() -> None:
    with (
        FakeHost(lambda body: "Name: Alice\nHeight: 170\nJob: baker") as host,
        pytest.raises(ProgramError, match=r"expected '\\nAge: ', got '\\nHeight") as caught,
    ):
        run(chat(host), card)["job"]
    root = caught.value.cause or caught.value
    assert root.code == "speculation_mismatch" and len(host.asked) == 3


def test_too_few_tokens_are_told_from_a_wrong_text() -> None:
    with FakeHost(lambda body: ALICE) as host, pytest.raises(ProgramError, match="finish_reason: length"):
        run(chat(host), card, tokens=4)["name"]


def test_each_turn_is_merged_on_its_own() -> None:
    def body(s: Any) -> None:
        card(s)
        s += bw.user("And?") + bw.assistant(bw.gen("more"))
        s += bw.user("Pair?") + bw.assistant(bw.gen("a", stop=",") + ", " + bw.gen("b", stop=".") + ".")

    with FakeHost([ALICE, "that is all", "x, y. z"]) as host:
        state = run(chat(host), body)
        assert (state["more"], state["a"], state["b"]) == ("that is all", "x", "y")
    assert [body["max_tokens"] for body in host.bodies] == [40, 128, 40]  # a gen alone has its own
    assert host.bodies[2]["messages"][1] == {"role": "assistant", "content": ALICE}


def test_scopes_and_variables_inside_a_turn_do_not_end_it() -> None:
    def body(s: Any) -> None:
        s += bw.user("Q")
        with s.var_scope("whole"):
            s += bw.assistant(bw.gen("a", stop=";") + "; " + bw.gen("b"))

    with FakeHost(["x; y"]) as host:
        assert run(chat(host), body)["b"] == "y"
    assert len(host.asked) == 1


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (bw.gen("b", temperature=0.1), "temperature differ"),
        (bw.gen("b", n=2), "n=2"),
        (bw.gen("b", type=int), "constraint"),
        (bw.gen("b", logprobs=0), "logprobs"),
    ],
)
def test_gens_that_cannot_share_a_call_say_why(second: Any, why: str) -> None:
    def body(s: Any) -> None:
        s += bw.user("Q") + bw.assistant(bw.gen("a", stop=";") + "; " + second)

    with FakeHost([]) as host, pytest.raises(ProgramError, match=why) as caught:
        run(chat(host), body)["a"]
    assert caught.value.code == "unsupported" and host.asked == []


def test_a_gen_that_nothing_ends_cannot_have_another_behind_it() -> None:
    def body(s: Any) -> None:
        s += bw.user("Q") + bw.assistant(bw.gen("a") + bw.gen("b"))

    with FakeHost([]) as host, pytest.raises(ProgramError, match="no stop"):
        run(chat(host), body)["a"]


def test_what_is_laid_piece_by_piece_is_not_merged_and_says_so() -> None:
    def body(s: Any) -> None:
        s += bw.user("Q")
        with s.assistant():
            s += bw.gen("a", stop=";")
            s += "; "
            s += bw.gen("b")

    with FakeHost(["x; y"]) as host:
        state = run(chat(host), body)
        assert state["a"] == "x"
        with pytest.raises(ProgramError, match="in one expression"):
            state["b"]


def test_a_completion_model_takes_what_fits_and_is_asked_for_the_rest() -> None:
    def body(s: Any) -> None:
        s += "Name:" + bw.gen("name", stop="\n") + "\nAge:" + bw.gen("age", stop="\n") + "\nJob:" + bw.gen("job")

    with FakeHost([" Alice\nAge: 30\nHome: here", " 30\nJob: baker"]) as host:
        state = run(text(host), body)
        assert (state["name"], state["age"], state["job"]) == (" Alice", " 30", " baker")
    assert [body["prompt"] for body in host.bodies] == ["Name:", "Name: Alice\nAge:"]


def test_a_first_gen_that_does_not_end_gets_a_call_of_its_own() -> None:
    def body(s: Any) -> None:
        s += "Name:" + bw.gen("name", stop="\n", max_tokens=9) + "\nAge:" + bw.gen("age", stop="\n")

    with FakeHost([" a b c d", " a b c d\nAge: 1", " 1"]) as host:
        backend = text(host)
        state = run(backend, body, tokens=3)
        assert (state["name"], state["age"]) == (" a b c d", " 1")
        assert state.meta("name")["completion_tokens"] == 7  # of both calls
    assert [body["max_tokens"] for body in host.bodies] == [3, 9, 128]


def test_a_last_gen_that_the_call_cut_off_gets_one_of_its_own() -> None:
    def body(s: Any) -> None:
        s += "A:" + bw.gen("a", stop=";") + "; B:" + bw.gen("b")

    with FakeHost([" x; B: one two", " one two three"]) as host:
        state = run(text(host), body, tokens=5)
        assert (state["a"], state["b"]) == (" x", " one two three")
        assert state.meta("b")["finish_reason"] == "stop"


def test_a_model_that_goes_on_does_not_write_the_beginning_of_its_turn() -> None:
    with FakeHost([" Alice\nAge: 30\nJob: baker"]) as host:
        backend = Anthropic("m", base_url=host.url, api_key="k", max_retries=0)
        state = run(backend, card)
        assert [state[name] for name in ("name", "age", "job")] == ["Alice", "30", "baker"]
    assert host.bodies[0]["messages"][-1] == {"role": "assistant", "content": "Name:"}


def test_a_budget_caps_the_call() -> None:
    with FakeHost(lambda body: ALICE) as host, pytest.raises(ProgramError):
        run(chat(host), card, budget=Budget(tokens=3))["name"]
    assert {body["max_tokens"] for body in host.bodies} == {3}


def test_rows_of_a_batch_do_not_share_their_answers() -> None:
    def answer(body: dict[str, Any]) -> str:
        who = body["messages"][0]["content"]
        return f"{who}-a; {who}-b"

    @bw.function(num_api_spec_tokens=40)
    def program(s: Any, who: str) -> None:
        s += bw.user(who) + bw.assistant(bw.gen("a", stop=";") + "; " + bw.gen("b"))

    with FakeHost(answer) as host:
        states = program.run_batch([(f"w{i}",) for i in range(16)], backend=chat(host))
        assert [(state["a"], state["b"]) for state in states] == [(f"w{i}-a", f"w{i}-b") for i in range(16)]
    assert len(host.asked) == 16


def test_a_program_that_starts_as_a_template_is_merged_too() -> None:
    once = SamplingParams(stop=(";",))
    nodes = (
        RoleBegin("user"),
        Fill(("Who is ", 0)),
        RoleEnd("user"),
        RoleBegin("assistant"),
        Gen("a", params=once),
        Text("; "),
        Gen("b", params=SamplingParams()),
        RoleEnd("assistant"),
    )
    template = Template(tuple(Placed(0, node) for node in nodes), ("who",), ("",) * len(nodes))
    with FakeHost(["x; y"]) as host:
        live = LiveProgram(chat(host), speculate=40)
        live.start(template, ["she"])
        live.end()
        assert ProgramState(live)["b"] == "y"
    assert host.bodies[0]["messages"] == [{"role": "user", "content": "Who is she"}] and len(host.bodies) == 1


def test_forks_of_one_program_do_not_share_their_answers() -> None:
    def body(s: Any) -> None:
        forks = s.fork(2)
        for i in range(2):
            forks[i] += bw.user(f"w{i}") + bw.assistant(bw.gen("a", stop=";") + "; " + bw.gen("b"))
        forks.join()

    with FakeHost(lambda body: body["messages"][0]["content"] + "; z") as host:
        state = run(chat(host), body)
        assert (state["a"], state["b"]) == (["w0", "w1"], ["z", "z"])


def test_cancelling_gives_up_the_merged_call() -> None:
    with FakeHost([Said([""], hang=True)]) as host:
        state = run(chat(host), card)
        assert host.hanging.wait(30)
        state.cancel()
        assert host.given_up.wait(30)


def test_it_cannot_be_streamed() -> None:
    with FakeHost([]) as host, pytest.raises(CapabilityError, match="stream=True"):
        bw.function(card, num_api_spec_tokens=10).run(backend=chat(host), stream=True)


A, B = Hole(1, ("\n",)), Hole(2, ())


@pytest.mark.parametrize(
    ("parts", "answer", "texts"),
    [
        (("x: ", A, "\ny: ", B), "x: 1\ny: 2\n3", ["1", "2\n3"]),
        ((A, "y: ", B), "1\ny: 2", ["1", "2"]),  # the literal after the stop
        ((A, B), "1\n2", ["1", "2"]),  # the stop is cut off
        ((B, ", ", A), "1, 2\n3", ["1", "2"]),  # ended by the literal
        ((Hole(1, ("\n\n", "\n")), "\n\ny", B), "1\n\ny2", ["1", "2"]),  # the longer of two stops at one place
        ((A, "\n", B), "\n", ["", ""]),
    ],
)
def test_a_text_is_taken_apart_by_stops_and_literals(parts: Any, answer: str, texts: list[str]) -> None:
    pieces, missed = match(parts, answer, "stop")
    assert missed is None and [piece.text for piece in pieces.values()] == texts


@pytest.mark.parametrize(
    ("parts", "answer", "named"),
    [
        (("x: ", A), "X: 1", "'x: '"),
        ((A, "\ny: ", B), "no end", r"'\n'"),
        ((A, "\ny: ", B), "1\nz: 2", r"'\ny: '"),
        ((B, ", ", A), "1; 2", "', '"),
    ],
)
def test_a_text_that_does_not_fit_is_told(parts: Any, answer: str, named: str) -> None:
    _, missed = match(parts, answer, "length")
    assert missed is not None and named in missed.replace("\\\\", "\\") and "length" in missed


def test_sampling_parameters_of_a_merged_call_are_those_of_its_gens() -> None:
    def body(s: Any) -> None:
        knobs = {"temperature": 0.0, "seed": 3}
        s += bw.user("Q") + bw.assistant(bw.gen("a", stop=";", **knobs) + "; " + bw.gen("b", max_tokens=9, **knobs))

    with FakeHost(["x; y"]) as host:
        assert run(chat(host), body)["b"] == "y"
    assert (host.bodies[0]["temperature"], host.bodies[0]["seed"]) == (0.0, 3)
