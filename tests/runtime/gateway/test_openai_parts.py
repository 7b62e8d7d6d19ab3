"""Parts of OpenAI's dialect on their own: which tokens are shown, items and their events, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwork.lang.turnparser import CallArguments, CallBegan, CallEnded, Said, Thought
from branchwork.runtime.gateway.openai_embeddings import rows
from branchwork.runtime.gateway.openai_items import Item, Output, messages_of
from branchwork.runtime.gateway.openai_shapes import LEAST, Shown, Token, chat_logprobs, text_logprobs
from branchwork.runtime.gateway.openai_store import KEPT, Kept, Store


def token(data: bytes, value: float | None = -1.0) -> Token:
    return Token(data, "<end>", value, [(data, "<end>", -1.0), (b"x", "", -2.0)])


@given(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=8), st.data())
def test_tokens_are_shown_with_their_text_however_it_is_cut(words: list[str], data: st.DataObject) -> None:
    """The text comes in other pieces than the tokens, and ends somewhere inside them."""
    text = "".join(words)[: data.draw(st.integers(0, len("".join(words))))]
    given = [token(word.encode()) for word in words]
    once = Shown().feed(text, given)
    shown = Shown()
    cut = data.draw(st.integers(0, len(text)))
    assert shown.feed(text[:cut], given) + shown.feed(text[cut:], []) == once
    told = b"".join(one.data for one in once)
    assert told.startswith(text.encode()) and len(told) - len(text.encode()) < max(len(one.data) for one in given)


def test_the_end_token_is_no_part_of_a_chats_scores() -> None:
    assert [one.data for one in Shown().feed("ab", [token(b"a"), token(b"b"), token(b"")])] == [b"a", b"b"]


def test_bytes_that_are_no_text_are_named() -> None:
    euro = [token(part) for part in (b"\xe2\x82", b"\xac")]
    content = chat_logprobs(euro)["content"]
    assert content[0]["token"] == "bytes:\\xe2\\x82" and content[0]["bytes"] == [0xE2, 0x82]
    legacy = text_logprobs([token(b"a", None), *euro, token(b"", -3.0)], 5)
    assert legacy["tokens"] == ["a", "bytes:\\xe2\\x82", "bytes:\\xac", "<end>"]
    assert legacy["text_offset"] == [5, 6, 6, 7] and legacy["top_logprobs"][0] is None
    assert legacy["top_logprobs"][3] == {"<end>": -1.0, "x": -2.0}
    assert chat_logprobs([token(b"a", LEAST)])["content"][0]["logprob"] == -9999.0


def test_items_are_told_one_after_the_other() -> None:
    output = Output()
    heard = [
        Thought("hm"),
        Said("So "),
        Said("it is"),
        CallBegan(0, "f"),
        CallArguments(0, "{}"),
        CallEnded(0),
        Said("!"),
    ]
    events = [told for one in heard for told in output.hear(one)] + list(output.finish())
    assert [item["type"] for item in output.items] == ["reasoning", "message", "function_call", "message"]
    assert all(item["status"] == "completed" for item in output.items)
    added = [told for told in events if told["type"] == "response.output_item.added"]
    done = [told for told in events if told["type"] == "response.output_item.done"]
    assert [told["output_index"] for told in added] == [told["output_index"] for told in done] == [0, 1, 2, 3]
    assert [told["item"] for told in done] == output.items
    assert all(not told["item"].get("content") and not told["item"].get("arguments") for told in added)
    message = output.message()
    assert message["content"] == "So it is!" and message["reasoning_content"] == "hm"
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    output = Output()
    assert list(output.finish())[-1]["type"] == "response.output_item.done"
    assert output.items[0]["content"][0]["text"] == ""


def test_items_of_a_request_are_messages() -> None:
    items = [
        Item(role="user", content="Hi"),
        Item(type="reasoning", summary=[]),
        Item(role="assistant", content="Let me see."),
        Item(type="function_call", call_id="c1", name="f", arguments="{}"),
        Item(type="function_call_output", call_id="c1", output="7"),
    ]
    user, assistant, tool = messages_of(items)
    assert user == {"role": "user", "content": "Hi"} and tool["tool_call_id"] == "c1" and tool["content"] == "7"
    assert assistant["content"] == "Let me see." and assistant["tool_calls"][0]["id"] == "c1"


def kept(number: str, owner: str = "a") -> Kept:
    return Kept(number, owner, "head", {"id": number}, [{"type": "message"}], [{"role": "user"}], [1, 70_000], "text")


def test_a_store_is_found_again_by_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "responses.sqlite"
    Store(file).put(kept("resp_1"))
    again = Store(file)
    assert again.get("resp_1", "a") == kept("resp_1")
    assert again.get("resp_1", "b") is None and not again.delete("resp_1", "b")
    assert again.delete("resp_1", "a") and again.get("resp_1", "a") is None
    assert file.stat().st_mode & 0o077 == 0


def test_what_is_too_old_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "responses.sqlite")
    store.put(kept("resp_1"))
    monkeypatch.setattr("branchwork.runtime.gateway.openai_store.KEPT", -1.0)
    assert KEPT > 0
    store.put(kept("resp_2"))
    assert store.get("resp_1", "a") is None and store.get("resp_2", "a") is not None


def test_vectors_are_told_as_numbers_or_base64() -> None:
    import base64
    from array import array

    assert rows([[0.5, -1.0]], "float")[0]["embedding"] == [0.5, -1.0]
    found: Any = rows([[0.0], [0.5, -1.0]], "base64")[1]
    assert array("f", base64.b64decode(found["embedding"])).tolist() == [0.5, -1.0] and found["index"] == 1
