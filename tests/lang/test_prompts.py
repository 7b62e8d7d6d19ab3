"""Plain prompts are programs of one gen: side by side, streamed, cancelled like any other."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import branchwork as sgl
from branchwork.lang import prompts
from branchwork.lang.backend import Call, Chunk, Reply
from branchwork.lang.constraint import Regex


def test_a_prompt_is_completed_with_what_gen_takes() -> None:
    backend = sgl.ScriptedBackend(lambda prompt, call: prompt.upper())
    done = prompts.complete(backend, "ab", {"max_new_tokens": 3, "temperature": 0, "regex": "[A-Z]+"})
    assert done == {"text": "AB", "meta_info": {"completion_tokens": 1}}
    call = backend.calls[0]
    assert (call.params.max_tokens, call.params.temperature, call.constraint) == (3, 0, Regex("[A-Z]+"))


def test_prompts_are_completed_side_by_side_in_order() -> None:
    gate = asyncio.Barrier(3) if hasattr(asyncio, "Barrier") else None

    async def answer(prompt: str, call: Call) -> str:
        if gate is not None:
            await gate.wait()  # nobody is answered before all have been asked
        return f"{prompt}{call.params.max_tokens}"

    each = [{"max_new_tokens": 1}, {"max_new_tokens": 2}, {"max_new_tokens": 3}]
    done = prompts.complete(sgl.ScriptedBackend(answer), ["a", "b", "c"], each)
    assert [one["text"] for one in done if isinstance(one, dict)] == ["a1", "b2", "c3"]


def test_samples_of_prompts_stand_next_to_each_other() -> None:
    backend = sgl.ScriptedBackend(lambda prompt, call: [prompt + "1", prompt + "2"])
    done = prompts.complete(backend, ["a", "b"], {"n": 2})
    assert [one["text"] for one in done if isinstance(one, dict)] == ["a1", "a2", "b1", "b2"]


def test_pieces_grow_and_end_with_what_is_known_of_them() -> None:
    grown = list(prompts.pieces(sgl.ScriptedBackend(["one two"]), "ab"))
    assert [piece["text"] for piece in grown] == ["one", "one two", "one two"]
    assert grown[0]["meta_info"] == {} and grown[-1]["meta_info"] == {"completion_tokens": 2}


def test_cancelling_a_completion_cancels_its_calls() -> None:
    asked, stopped = threading.Event(), threading.Event()

    async def slowly(prompt: str, call: Call) -> str:
        asked.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return "never"

    async def give_up() -> None:
        task = asyncio.ensure_future(prompts.complete_async(sgl.ScriptedBackend(slowly), ["a", "b"]))
        await asyncio.to_thread(asked.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert stopped.wait(10)


def test_a_stream_that_nobody_reads_on_is_cancelled() -> None:
    stopped = threading.Event()

    async def endless(call: Call, branch: Any, emit: Any) -> Reply:
        emit(Chunk("one"))
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return Reply(("never",))

    pieces = prompts.pieces(sgl.LocalBackend(endless, model="endless"), "a")
    assert next(pieces)["text"] == "one"
    pieces.close()  # type: ignore[attr-defined]
    assert stopped.wait(10)


@pytest.mark.parametrize(
    ("prompt", "params", "error", "words"),
    [
        ([1, 2, 3], None, TypeError, "token ids are not taken"),
        ("a", [{}], TypeError, "a single prompt"),
        (["a", "b"], [{}], ValueError, "1 sampling_params for 2 prompts"),
        ("a", {"max_new_token": 3}, TypeError, "unknown sampling parameter 'max_new_token'"),
    ],
)
def test_a_wrong_prompt_is_an_error_before_anything_runs(
    prompt: Any, params: Any, error: type[Exception], words: str
) -> None:
    backend = sgl.ScriptedBackend(["x", "y", "z"])
    with pytest.raises(error, match=words):
        prompts.complete(backend, prompt, params)
    assert not backend.calls
