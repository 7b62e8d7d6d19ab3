"""`branchwork run NAME`: a chat in a real terminal, answers to prompts and pipes, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

import branchwork as bw
from branchwork.chat import Chat, known
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.store import Store
from branchwork.terminal import Lines, Terminal

PARIS = "The capital of France is Paris"
PIXEL = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de")


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BRANCHWORK_HOME", str(tmp_path / "library"))


@contextmanager
def terminal(runtime: bw.Runtime, *arguments: str) -> Iterator[Any]:
    """A chat on a terminal of its own."""
    command = ["-m", "branchwork", "run", "sapling", "--endpoint", runtime.endpoint, *arguments]
    child = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=30, dimensions=(40, 200), env=_env())
    try:
        child.expect(">>> ")
        yield child
    finally:
        child.close(force=True)


def _env() -> dict[str, str]:
    return os.environ | {"TERM": "xterm", "INPUTRC": "/dev/null"}


def piped(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "branchwork", "run", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, env=_env())


def test_a_chat_goes_on_from_what_was_said(runtime: bw.Runtime, tmp_path: Path) -> None:
    with terminal(runtime, "--verbose") as child:
        child.sendline("What is the capital of France?")
        child.expect(re.escape(PARIS))
        child.expect(r"(\d+) tokens, (\d+) of them found in the cache")
        child.expect(">>> ")
        child.sendline('"""And its currency?')
        child.expect(r"\.\.\. ")
        child.sendline('"""')
        child.expect("(?i)euro")
        child.expect(r"(\d+) tokens, (\d+) of them found in the cache")
        assert int(child.match[2]) >= 16
        child.expect(">>> ")
        child.sendeof()
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0
    assert "capital of France" in (tmp_path / "library" / "history").read_text()


def test_ctrl_c_stops_the_answer_and_not_the_chat(runtime: bw.Runtime) -> None:
    with terminal(runtime) as child:
        child.sendintr()
        child.expect("Ctrl-D or /bye ends the chat")
        child.expect(">>> ")
        child.sendline("/set parameter temperature 5")  # an answer that hardly ever ends by itself
        child.expect(">>> ")
        child.sendline("Go on")
        child.expect(r"Go on\r\n")
        child.expect(r"[^\s\x1b]{3}")
        child.sendintr()
        child.expect(r"\(stopped\)")
        child.expect(">>> ")
        child.sendline("/bye")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0


def test_a_prompt_and_a_pipe_are_answered_on_standard_output(runtime: bw.Runtime) -> None:
    asked = piped("sapling", "--endpoint", runtime.endpoint, "What is the capital of France?")
    assert asked.returncode == 0 and asked.stdout == f"{PARIS}.\n" and asked.stderr == ""
    both = piped("sapling", "--endpoint", runtime.endpoint, "--verbose", stdin="What is the capital of France?\n")
    assert both.stdout == asked.stdout and "tokens/s" in both.stderr


def test_an_embedded_runtime_serves_a_saved_chat(runtime: bw.Runtime) -> None:
    chat = Chat.of("sapling", runtime, known("sapling"))
    assert "".join(chat.ask("What is the capital of France?")).startswith(PARIS)
    chat.set("num_predict", "2")
    Store().put("talked", chat.manifest())
    done = piped("talked", "-o", "threads=1", "-o", "pages=2048", "And its currency?")
    assert done.returncode == 0, done.stderr
    assert 0 < len(done.stdout.split()) <= 2


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("sapling",), 2, "there is nothing to answer"),
        (("nobody", "hi"), 1, "model 'nobody' is no directory, no .gguf file, no name of the library"),
        (("sapling", "--verbos", "hi"), 2, "--verbos is no option of a chat"),
        (("owner/nobody", "hi"), 1, "the hub cannot be reached to pull owner/nobody"),
        (("sapling", "--endpoint", "ipc:///nowhere/at/all", "hi"), 1, "ipc:///nowhere/at/all"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(arguments: tuple[str, ...], status: int, told: str) -> None:
    done = piped(*arguments)
    assert done.returncode == status and told in done.stderr and done.stdout == ""
    assert "Traceback" not in done.stderr


def test_another_model_than_the_served_one_is_refused(runtime: bw.Runtime) -> None:
    done = piped("sapling-draft", "--endpoint", runtime.endpoint, "hi")
    assert done.returncode == 1 and "serves 'sapling', not 'sapling-draft'" in done.stderr


@pytest.fixture
def talk(runtime: bw.Runtime) -> Terminal:
    return Terminal(Chat.of("sapling", runtime, known("sapling")), lambda name: Chat.of(name, runtime, known(name)))


def lines(*entered: str) -> Lines:
    left = iter(entered)

    def read(prompt: str) -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    return Lines(read)


def test_settings_hold_from_the_next_question_on(talk: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    talk.talk(lines("/set system You are kind.", "/set parameter num_predict 1", "/set nohistory", "Hello", "/show"))
    assert talk.chat.usage["completion_tokens"] == 1 and talk.chat.messages == []
    shown = capsys.readouterr().out
    assert "system   You are kind." in shown and "0 messages, not kept" in shown
    talk.talk(lines('/set system ""', "/set history", "Hello", "/clear"))
    assert talk.chat.system == "" and talk.chat.messages == []


def test_answers_can_be_asked_for_as_json(talk: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    talk.talk(lines("/set format json", "/set parameter num_predict 40", "Write a JSON object."))
    assert capsys.readouterr().out.splitlines()[-2].startswith("{")


def test_a_chat_is_saved_and_gone_on_with(talk: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    talk.talk(lines("/set system Be brief.", "Hello", "/save mine", "/load sapling"))
    assert talk.chat.messages == [] and talk.chat.system is None
    talk.talk(lines("/load mine", "/show system", "/show modelfile"))
    assert [message.role for message in talk.chat.messages] == ["user", "assistant"]
    shown = capsys.readouterr().out
    assert "Be brief." in shown and "FROM sapling" in shown and "MESSAGE user" in shown


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/nonsense", "there is no command /nonsense; /? shows them all"),
        ("/set", "/set takes system, parameter"),
        ("/set parameter heat 1", "there is no parameter 'heat'"),
        ("/set parameter temperature", "/set parameter NAME VALUE"),
        ("/set parameter top_p 3", "outside 0..1"),
        ("/show all", "/show takes info"),
        ("/save", "/save NAME"),
        ("/save sapling", "packaged model's name"),
        ("/load", "/load NAME"),
    ],
)
def test_a_wrong_command_is_told_and_the_chat_goes_on(
    line: str, told: str, talk: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.talk(lines(line, "/?"))
    said = capsys.readouterr()
    assert told in said.err and "/bye" in said.out


def test_a_model_that_cannot_see_says_so(talk: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "dot.png"
    picture.write_bytes(PIXEL)
    talk.talk(lines(f"What is in {picture}"))
    assert "'sapling' reads text only; it cannot see this image" in capsys.readouterr().err
    assert talk.chat.messages == []


def test_what_was_stopped_is_kept_as_far_as_it_came(runtime: bw.Runtime) -> None:
    chat = Chat.of("sapling", runtime, known("sapling"))
    answer = chat.ask("Give 5 tips for staying healthy.")
    first = next(answer)
    answer.close()
    assert chat.messages[-1].content == first and chat.messages[-2].role == "user"
    assert "".join(chat.ask("What is the capital of France?"))


def test_a_chat_with_an_unknown_model_cannot_be_saved(runtime: bw.Runtime) -> None:
    with pytest.raises(LoadError, match="cannot be saved"):
        Chat.of("sapling", runtime, None).manifest()


def test_a_model_without_a_system_frame_hears_it_in_the_first_question() -> None:
    backend = bw.ScriptedBackend(["yes"], frames=bw.ChatFrames(roles={"user": _frame("U"), "assistant": _frame("A")}))
    chat = Chat("scripted", backend, system="Be kind.")
    assert list(chat.ask("Well?")) == ["yes"]
    assert backend.prompts == ["<U>Be kind.\n\nWell?</U><A>"]


def _frame(letter: str) -> Any:
    from branchwork.lang.protocol import Frame

    return Frame(f"<{letter}>", f"</{letter}>")
