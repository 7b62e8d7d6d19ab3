"""A program written for SGLang means the same here, or an error says where it does not."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import branchwork as sgl
from branchwork.lang.backends import spellings
from branchwork.lang.constraint import JsonSchema, Regex
from branchwork.lang.ir import Gen, Select

NAMES = [
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "select",
    "image",
    "video",
    "separate_reasoning",
    "system",
    "user",
    "assistant",
    "system_begin",
    "system_end",
    "user_begin",
    "user_end",
    "assistant_begin",
    "assistant_end",
    "set_default_backend",
    "flush_cache",
    "get_server_info",
    "Runtime",
    "Engine",
    "RuntimeEndpoint",
    "OpenAI",
    "Anthropic",
    "VertexAI",
    "LiteLLM",
    "token_length_normalized",
    "greedy_token_selection",
    "unconditional_likelihood_normalized",
    "global_config",
    "__version__",
]


def knobs(node: Gen | Select) -> dict[str, Any]:
    assert isinstance(node, Gen)
    return node.knobs


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name: str) -> None:
    assert getattr(sgl, name) is not None


# --- what is generated


def test_knobs_may_be_given_by_position_in_their_order() -> None:
    by_name = sgl.gen("x", max_tokens=8, min_tokens=2, n=3, stop="\n", stop_token_ids=[7], temperature=0.5)
    assert sgl.gen("x", 8, 2, 3, "\n", [7], None, 0.5) == by_name
    assert knobs(sgl.gen_int("x", 8, 3, ["a", "b"])) == {"max_tokens": 8, "n": 3, "stop": ("a", "b")}
    with pytest.raises(TypeError, match=r"max_tokens is given by position \(8\) and by name \(9\)"):
        sgl.gen("x", 8, max_tokens=9)
    with pytest.raises(TypeError, match="18 knobs by position; there are 17"):
        sgl.gen("x", *[None] * 18)


def test_every_knob_of_a_gen_and_of_a_run_is_understood() -> None:
    backend = sgl.ScriptedBackend({"a": "1", "b": "2"})

    @sgl.function
    def f(s: Any) -> None:
        s += sgl.gen("a", max_tokens=9, stop=["x", "y"], temperature=0.1, return_logprob=True, top_logprobs_num=3)
        s += sgl.gen("b")

    f.run(
        backend=backend, max_new_tokens=5, n=1, stop="z", stop_token_ids=[4], stop_regex="[.]", temperature=0.9,
        top_p=0.8, top_k=7, min_p=0.05, frequency_penalty=0.1, presence_penalty=0.2, ignore_eos=True,
        return_logprob=False, logprob_start_len=-1, top_logprobs_num=0, return_text_in_logprobs=True, use_thread=False,
    ).sync()  # fmt: skip
    first, second = (call.params for call in backend.calls)
    assert (first.max_tokens, first.stop, first.temperature, first.logprobs) == (9, ("x", "y"), 0.1, 3)
    assert (second.max_tokens, second.stop, second.temperature, second.logprobs) == (5, ("z",), 0.9, None)
    shared = [(p.stop_token_ids, p.stop_regex, p.top_p, p.top_k, p.min_p, p.ignore_eos) for p in (first, second)]
    assert shared == [((4,), ("[.]",), 0.8, 7, 0.05, True)] * 2


def test_alternatives_may_be_asked_for_by_the_gen_of_a_run_with_logprobs() -> None:
    backend = sgl.ScriptedBackend(["a", "b"])

    @sgl.function
    def f(s: Any) -> None:
        s += sgl.gen("a", top_logprobs_num=5) + sgl.gen("b")

    f.run(backend=backend, return_logprob=True).sync()
    assert [call.params.logprobs for call in backend.calls] == [5, 0]


def test_128_tokens_at_temperature_1_are_the_default() -> None:
    backend = sgl.ScriptedBackend(["x"])
    sgl.function(lambda s: s.gen("x")).run(backend=backend).sync()
    assert (backend.calls[0].params.max_tokens, backend.calls[0].params.temperature) == (128, 1.0)


def test_choices_make_a_select_whatever_stands_beside_them() -> None:
    chosen = Select("x", ("a", "b"), "greedy_token_selection")
    method = sgl.greedy_token_selection
    assert sgl.gen("x", choices=["a", "b"], choices_method=method, max_tokens=5, temperature=0.0) == chosen
    assert sgl.select("x", ["a", "b"], 0.0, method) == chosen
    assert sgl.select("x", choices=["a"], choices_method=None).method == sgl.token_length_normalized
    with pytest.raises(ValueError, match="temperature must be 0"):
        sgl.select("x", choices=["a"], temperature=0.7)


def test_a_dtype_wins_over_a_regex_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="only dtype=<class 'int'> is used") as seen:
        node = sgl.gen("x", dtype=int, regex="[a-z]+")
    assert node == sgl.gen_int("x") and seen[0].filename == __file__


@pytest.mark.parametrize("dtype", [int, "int", float, "float", bool, "bool", str, "str"])
def test_a_dtype_is_a_type_or_its_name_and_its_value_is_text(dtype: Any) -> None:
    node = sgl.gen("x", dtype=dtype)
    assert isinstance(node, Gen) and node.constraint is not None and not node.readers


def test_a_schema_is_text_and_a_regex_is_checked_at_once() -> None:
    node = sgl.gen("x", json_schema='{"type": "integer"}')
    assert isinstance(node, Gen) and node.constraint == JsonSchema('{"type": "integer"}')
    assert sgl.gen("x", regex=r"\d+") == Gen("x", constraint=Regex(r"\d+"))
    with pytest.raises(ValueError):
        sgl.gen("x", regex="(")


def test_of_several_samples_the_variable_has_all_and_the_text_the_first() -> None:
    backend = sgl.ScriptedBackend({"x": [["one", "two"]]})
    state = sgl.function(lambda s: s.gen("x", n=2)).run(backend=backend)
    assert (state["x"], state.text(), len(state.get_meta_info("x"))) == (["one", "two"], "one", 2)


# --- the state


def test_none_is_no_expression() -> None:
    def body(s: Any) -> None:
        s += None

    with pytest.raises(TypeError, match="NoneType"):
        sgl.function(body).run(backend=sgl.ScriptedBackend())


def test_roles_in_all_three_ways_make_the_same_messages() -> None:
    def called(s: Any) -> None:
        s += sgl.system("Be brief.")
        s += sgl.user(" Hi") + sgl.assistant(sgl.gen("a"))

    def opened(s: Any) -> None:
        s += sgl.system_begin() + "Be brief." + sgl.system_end()
        s += sgl.user_begin()
        s += " Hi"
        s += sgl.user_end()
        s += sgl.assistant_begin() + sgl.gen("a") + sgl.assistant_end()

    def within(s: Any) -> None:
        s.system("Be brief.")
        with s.user():
            s += " Hi"
        with s.assistant():
            s += sgl.gen("a")

    states = [sgl.function(body).run(backend=sgl.ScriptedBackend({"a": "Yes"})) for body in (called, opened, within)]
    pairs = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes")]
    assert all(s.messages() == [{"role": role, "content": text} for role, text in pairs] for s in states)
    assert len({state.text() for state in states}) == 1


def test_branches_of_a_fork_are_laid_on_together_or_one_by_one() -> None:
    def body(s: Any) -> None:
        s += "Tips:"
        forks = s.fork(2, position_ids_offset=None)
        forks += " tip "
        forks += lambda i: f"{i + 1}: "
        forks += ["a ", "b "]
        forks += sgl.gen("x")
        s["before"] = forks[0]["x"]
        forks.join()

    state = sgl.function(body).run(backend=sgl.ScriptedBackend(lambda prompt, call: prompt[-2:]))
    assert state["x"] == ["a ", "b "] and state["before"] == "a " and state.text() == "Tips:"


def test_parallel_texts_are_appended_and_a_copy_comes_back_as_lists() -> None:
    def body(s: Any) -> None:
        s += "Q"
        forks = s.fork(2)
        forks += lambda i: str(i)
        forks.join("concate_and_append")
        with s.copy() as t:
            t += "!" + sgl.gen("x")

    state = sgl.function(body).run(backend=sgl.ScriptedBackend({"x": "done"}))
    assert state.text() == "Q01" and state["x"] == ["done"]


def test_variables_are_read_set_and_asked_for() -> None:
    def body(s: Any) -> str:
        with s.var_scope("all"):
            s += "a" + sgl.gen("x")
        s.set_var("y", [1, 2])
        return str(s.get_var("x"))

    state = sgl.function(body).run(backend=sgl.ScriptedBackend({"x": "b"}))
    assert (state["all"], state["y"], state.ret_value, "x" in state, "z" in state) == ("ab", [1, 2], "b", True, False)
    assert state.error() is None and state.sync() is state


def test_a_failed_gen_is_what_error_returns_and_reading_raises() -> None:
    state = sgl.function(lambda s: s.gen("x")).run(backend=sgl.ScriptedBackend({"x": ValueError("no")}))
    assert isinstance(state.error(), sgl.ProgramError)
    with pytest.raises(sgl.ProgramError, match="ValueError: no"):
        _ = state["x"]


def test_text_of_a_variable_that_is_not_there_yet_is_waited_for_without_spinning() -> None:
    laid, reading = threading.Event(), threading.Event()

    def body(s: Any) -> None:
        reading.wait(10)
        laid.wait(10)
        s += "a" + sgl.gen("x")

    state = sgl.function(body).run(backend=sgl.ScriptedBackend({"x": "one two"}), stream=True)
    wait, waits = state.live.wait, 0

    def counted(ready: Any) -> None:
        nonlocal waits
        waits += 1
        reading.set()
        wait(ready)

    state.live.wait = counted  # type: ignore[method-assign]
    threading.Timer(0.2, laid.set).start()
    assert "".join(state.text_iter("x")) == "one two"
    assert 0 < waits <= state.live.version + 1  # it looks again only when something has changed


def test_streams_name_their_variable_as_programs_do() -> None:
    backend = sgl.ScriptedBackend({"x": "one two"})
    state = sgl.function(lambda s: s.gen("x")).run(backend=backend, stream=True)
    assert list(state.text_iter(var_name="x")) == ["one", " two"]

    async def gather() -> list[Any]:
        started = sgl.function(lambda s: s.gen("x")).run(backend=sgl.ScriptedBackend({"x": "one two"}), stream=True)
        return [item async for item in started.text_async_iter(var_name="x", return_meta_data=True)]

    pairs = asyncio.run(gather())
    assert "".join(text for text, _ in pairs) == "one two" and pairs[-1][1] == {"completion_tokens": 2}


# --- running


def test_batches_take_dicts_and_tuples_and_give_results_in_order() -> None:
    @sgl.function
    def ask(s: Any, country: str, mark: str = "?") -> None:
        s += country + mark + sgl.gen("x")

    backend = sgl.ScriptedBackend(lambda prompt, call: prompt)
    rows = ask.run_batch([{"country": "A"}, {"country": "B", "mark": "!"}], backend=backend, num_threads=2)
    assert [state["x"] for state in rows] == ["A?", "B!"]
    assert [s["x"] for s in ask.run_batch([("A",), ("B", "!")], backend=backend)] == ["A?", "B!"]
    assert ask.run_batch([], backend=backend) == []
    lazily = ask.run_batch([{"country": "A"}], backend=backend, generator_style=True, progress_bar=False)
    assert isinstance(lazily, Iterator) and [state["x"] for state in lazily] == ["A?"]
    with pytest.raises(TypeError):
        ask.run_batch([("A", "!", "too many")], backend=backend)


def test_bound_arguments_are_fixed() -> None:
    @sgl.function(num_api_spec_tokens=None)
    def ask(s: Any, country: str, mark: str) -> None:
        s += country + mark

    assert ask.bind(mark="!").run("A", backend=sgl.ScriptedBackend()).text() == "A!"


def test_the_first_parameter_is_named_s() -> None:
    with pytest.raises(TypeError, match="must be named s"):
        sgl.function(lambda state: None)


# --- settings and questions


def test_settings_of_the_process_can_be_set_and_no_others() -> None:
    config = sgl.global_config
    config.enable_precache_with_tracing = False
    assert config.enable_precache_with_tracing is False
    config.enable_precache_with_tracing = True
    with pytest.raises(AttributeError, match="no 'verbose'; it has default_backend, "):
        config.verbose = 2
    with pytest.raises(AttributeError):
        _ = config.verbose


def test_the_default_backend_can_be_set_there_too() -> None:
    backend = sgl.ScriptedBackend(["x"])
    sgl.global_config.default_backend = backend
    assert sgl.function(lambda s: s.gen("x")).run()["x"] == "x"
    other = sgl.ScriptedBackend()
    sgl.set_default_backend(other)
    assert sgl.global_config.default_backend is other


def test_verbosity_2_prints_the_text_of_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    program = sgl.function(lambda s: s.__iadd__("Q: " + sgl.gen("x")))
    program.run(backend=sgl.ScriptedBackend(["quiet"])).sync()
    sgl.global_config.verbosity = 2
    try:
        program.run(backend=sgl.ScriptedBackend(["loud"]))
    finally:
        sgl.global_config.verbosity = 0
    program.run(backend=sgl.ScriptedBackend(["quiet"])).sync()
    assert capsys.readouterr().out == "Q: loud\n"


def test_questions_without_a_backend_have_no_answer_and_start_none() -> None:
    sgl.set_default_backend(None)
    assert sgl.flush_cache() is False and sgl.get_server_info() is None
    assert sgl.global_config.default_backend is None


def test_a_backend_without_a_cache_says_so() -> None:
    with pytest.raises(sgl.BackendError, match=r"ScriptedBackend \(scripted\) is no runtime"):
        sgl.flush_cache(sgl.ScriptedBackend())
    with pytest.raises(sgl.BackendError, match="cannot answer get_server_info"):
        sgl.get_server_info(sgl.ScriptedBackend())


# --- runtimes


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://localhost:30000", "tcp://localhost:30000"),
        ("http://127.0.0.1:5555/", "tcp://127.0.0.1:5555"),
        ("http://[::1]:5555", "tcp://[::1]:5555"),
        ("http://localhost", "tcp://localhost:30000"),
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1"),
        ("ipc:///run/x", "ipc:///run/x"),
    ],
)
def test_a_base_url_means_an_endpoint(url: str, endpoint: str) -> None:
    assert spellings.address(url) == endpoint


def test_an_endpoint_that_cannot_be_reached_is_a_runtime_error() -> None:
    port = spellings.free_port("127.0.0.1", 35_000)
    with pytest.raises(RuntimeError, match="nobody answered") as caught:
        sgl.RuntimeEndpoint(f"http://127.0.0.1:{port}", timeout=0.3)
    assert isinstance(caught.value, sgl.RuntimeUnavailable)
    with pytest.raises(RuntimeError, match="unencrypted"):
        sgl.RuntimeEndpoint("http://192.0.2.1:30000")
    with pytest.raises(ValueError, match="curve_keys"):
        sgl.RuntimeEndpoint("https://localhost:30000")
    with pytest.raises(ValueError, match="HTTPS"):
        sgl.RuntimeEndpoint("http://localhost:1", verify="ca.pem")


def test_options_of_a_runtime_are_understood_by_both_names() -> None:
    theirs = {
        "model_path": "path/to/model",
        "log_level": "error",
        "context_length": 512,
        "max_running_requests": 8,
        "chunked_prefill_size": 256,
        "schedule_policy": "fcfs",
        "max_total_tokens": 4096,
        "page_size": 16,
        "dtype": "float",
        "tp_size": 1,
        "disable_radix_cache": False,
        "trust_remote_code": True,
        "launch_timeout": 30.0,
        "api_key": "secret",
        "random_thing": 1,
    }
    asked = spellings.asked("sapling", "", theirs)
    assert (asked.model, asked.token, asked.timeout) == ("path/to/model", "secret", 30.0)
    ours = {"context": 512, "max_running": 8, "budget": 256, "policy": "fcfs", "pages": 256, "page_size": 16}
    assert asked.options == {**ours, "dtype": "float32", "random_thing": 1}


def test_a_port_is_an_endpoint_and_a_taken_one_leads_to_the_next() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", spellings.free_port("127.0.0.1", 36_000)))
        taken.listen()
        port = taken.getsockname()[1]
        endpoint = spellings.asked("sapling", "", {"port": port}).endpoint
        number = int(endpoint.removeprefix("tcp://127.0.0.1:"))
        assert port < number < spellings.PORTS


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tp_size": 2}, ValueError, "one device"),
        ({"disable_radix_cache": True}, ValueError, "how this runtime works"),
        ({"chat_template": "llama-2"}, ValueError, "own chat template"),
        ({"model_path": "a", "model": "b"}, TypeError, "give one of them"),
        ({"context_length": 1, "context": 2}, TypeError, "the same option"),
        ({"max_total_tokens": 1, "pages": 2}, TypeError, "say the same"),
        ({"endpoint": "ipc:///x", "port": 1}, TypeError, "the same option"),
    ],
)
def test_what_a_runtime_cannot_do_is_refused_by_name(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sgl.Runtime(**options)


def test_what_tunes_another_engine_is_left_out_with_a_warning() -> None:
    with pytest.warns(
        UserWarning, match=re.escape("mem_fraction_static tunes another engine and is left out: memory=")
    ):
        assert spellings.asked("sapling", "", {"mem_fraction_static": 0.8}).options == {}
