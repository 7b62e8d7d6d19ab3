"""Options are parsed strictly and resolved by one pure function."""

from __future__ import annotations

import os

import pytest

from branchwork.runtime import config as configuration
from branchwork.runtime.config import Config, ConfigError, Hardware, ModelSize, cores, parse, resolve

LAPTOP = Hardware(device="cpu", cores=2, memory=8 * 2**30)
SMALL = ModelSize(context=2048, page_bytes=6144, weight_bytes=10 * 2**20)


def test_options_are_typed() -> None:
    assert parse(["page_size=16", "memory=0.5", "policy=fcfs"]) == Config(page_size=16, memory=0.5, policy="fcfs")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("pagesize=16", "unknown runtime option"),
        ("page_size", "name=value"),
        ("page_size=big", "page_size"),
        ("page_size=-1", "at least 0"),
        ("policy=random", "one of lpm, fcfs"),
        ("dtype=int3", "one of auto"),
    ],
)
def test_a_bad_option_is_named(option: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse([option])


def test_everything_left_open_is_filled_in_with_a_note() -> None:
    config, notes = resolve(Config(), LAPTOP, SMALL)
    assert config.context == 2048 and config.budget == 1024 and config.device == "cpu"
    assert config.pages * SMALL.page_bytes <= LAPTOP.memory // 4
    assert any("KV cache" in note for note in notes)


def test_cores_are_bounded_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
    assert cores() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_hardware_threads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(configuration, "_siblings", lambda cpu: f"{cpu % 2},{cpu % 2 + 2}")
    monkeypatch.setattr(configuration, "_quota", lambda: 9)
    assert cores() == 2


def test_a_context_beyond_the_models_is_cut_and_said() -> None:
    config, notes = resolve(Config(context=9999), LAPTOP, SMALL)
    assert config.context == 2048 and any("9999" in note for note in notes)


def test_a_long_context_gets_up_to_half_of_the_memory_and_a_short_one_a_quarter_up_to_four_gib() -> None:
    token = 128 * 1024  # bytes of KV of a token of an 8B model
    short, long = (ModelSize(context=context, page_bytes=token, weight_bytes=2**30) for context in (2048, 131072))
    server = Hardware(device="cpu", cores=2, memory=64 * 2**30)
    assert resolve(Config(), LAPTOP, short)[0].pages * token == 2 * 2**30
    assert resolve(Config(), server, short)[0].pages * token == 4 * 2**30
    assert resolve(Config(), server, long)[0].pages == 131072
    config, notes = resolve(Config(), LAPTOP, long)
    assert config.pages * token == 4 * 2**30 and any("less than one context" in note for note in notes)


def test_the_pool_is_never_larger_than_what_can_run_at_once() -> None:
    config, _ = resolve(Config(max_running=2, page_size=16, memory=6.0), LAPTOP, SMALL)
    assert config.pages == 2 * 2048 // 16


def test_pages_given_are_pages_taken() -> None:
    assert resolve(Config(pages=77), LAPTOP, SMALL)[0].pages == 77


def test_too_little_memory_is_an_error_with_the_figure() -> None:
    with pytest.raises(ConfigError, match="6144 bytes a page"):
        resolve(Config(pages=1), LAPTOP, SMALL)
