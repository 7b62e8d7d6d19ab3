"""Fields of Ollama's requests, read."""

from __future__ import annotations

import math

import pytest

from branchwork.lang.constraint import JsonSchema
from branchwork.runtime.gateway.ollama_fields import knobs, seconds, shape, specs
from branchwork.runtime.gateway.service import Problem


@pytest.mark.parametrize(
    ("keep_alive", "kept"),
    [(None, None), (30, 30.0), (0, 0.0), (-1, math.inf), ("5m", 300.0), ("1h30m", 5400.0), ("1.5s", 1.5), ("0", 0.0)]
    + [("-1s", math.inf), ("250ms", 0.25), ("-5m", math.inf)],
)
def test_a_model_is_kept_for_numbers_of_seconds_and_durations_as_go_writes_them(
    keep_alive: float | str | None, kept: float | None
) -> None:
    assert seconds(keep_alive) == kept


@pytest.mark.parametrize("keep_alive", ["soon", "5", "m", "", "5 m", "1h30"])
def test_what_is_no_duration_is_refused(keep_alive: str) -> None:
    with pytest.raises(Problem, match="keep_alive") as caught:
        seconds(keep_alive)
    assert caught.value.status == 400


def test_options_are_sampling_parameters_by_other_names() -> None:
    given = {
        "num_predict": 7,
        "repeat_penalty": 1.1,
        "top_k": 0,
        "stop": ["a"],
        "seed": -1,
        "num_gpu": 1,
        "min_p": None,
    }
    assert knobs(given) == {"max_tokens": 7, "repetition_penalty": 1.1, "top_k": -1, "stop": ("a",)}
    assert knobs({"num_predict": 0}) == knobs({"num_predict": -1}) == {"max_tokens": 2**31}
    assert knobs(None) == {}


@pytest.mark.parametrize("wrong", [{"mirostat": 1}, {"temprature": 1}, {"top_p": 2}, {"num_ctx": 0}, {"seed": "x"}])
def test_an_option_that_cannot_be_had_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(Problem, match=next(iter(wrong))):
        knobs(wrong)


def test_a_format_is_any_object_or_a_schema() -> None:
    assert shape(None) is None and shape("") is None
    assert isinstance(shape("json"), JsonSchema)
    with pytest.raises(Problem, match="yaml"):
        shape("yaml")


def test_a_tool_is_a_function_with_a_name() -> None:
    (spec,) = specs([{"type": "function", "function": {"name": "f"}}])
    assert spec.name == "f" and spec.parameters == {"type": "object", "properties": {}}
    for wrong in ({"type": "function"}, {"type": "magic", "function": {"name": "f"}}, {"function": {"name": ""}}):
        with pytest.raises(Problem):
            specs([wrong])
