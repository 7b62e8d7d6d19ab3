"""`branchwork run NAME`: finds or pulls the model, starts a runtime with it or connects to one, and begins the chat.

Knows: where a chat's model, backend and lines come from. Must not know: slash commands, how an answer is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import branchwork as bw
from branchwork.chat import Chat, known
from branchwork.library import errors, fail, pulled, told
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import Resolved, resolved
from branchwork.terminal import Terminal, keyboard

VERBOSE = "--verbose"


Start = Callable[[str, Mapping[str, Any]], bw.Runtime]


def run(name: str, arguments: Sequence[str], endpoint: str, options: Mapping[str, Any], start: Start) -> None:
    """Chat with model `name`, or answer the one prompt in `arguments` and on standard input.

    start: starts a runtime and shows its loading. options: of that runtime; those of the library's parameters hold
    where they say nothing.
    Raises typer.Exit after telling what is wrong; ProgramError, BackendError.
    """
    unknown = [word for word in arguments if word.startswith("--") and word != VERBOSE]
    if unknown:
        fail(f"{unknown[0]} is no option of a chat; there is {VERBOSE}")
    words = [word for word in arguments if word != VERBOSE]
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    prompt = "\n\n".join(part for part in (" ".join(words), piped.strip("\n")) if part.strip())
    if not prompt and not sys.stdin.isatty():
        fail("there is nothing to answer: standard input is empty; give a prompt after the name")
    with told():
        host = _Connected(endpoint) if endpoint else _Embedded(options, start)
        try:
            chat = host.chat(name)
            if not chat.backend.frames.roles:
                errors.print("note: no chat template of this model can be used; roles are written as plain lines")
            terminal = Terminal(chat, host.chat, verbose=VERBOSE in arguments)
            if prompt:
                _once(terminal, prompt)
            else:
                terminal.talk(keyboard())
        finally:
            host.close()


def _once(terminal: Terminal, prompt: str) -> None:
    """One answer. Raises KeyboardInterrupt when it was stopped."""
    terminal.answer(prompt)
    if terminal.stopped:
        raise KeyboardInterrupt


class _Embedded:
    """A runtime of one's own, one at a time, with the model that is chatted with."""

    def __init__(self, options: Mapping[str, Any], start: Start) -> None:
        self._options = options
        self._start = start
        self._runtime: bw.Runtime | None = None

    def chat(self, name: str) -> Chat:
        """Raises LoadError, BackendError; then the chat before goes on."""
        found = _found(name)
        defaults = dict(option.split("=", 1) for option in found.options)
        started = self._start(name, {**defaults, **self._options})
        self.close()
        self._runtime = started
        return Chat.of(name, started, found)

    def close(self) -> None:
        if self._runtime is not None:
            self._runtime.shutdown()


class _Connected:
    """A runtime that serves already."""

    def __init__(self, endpoint: str) -> None:
        self._backend = bw.connect(endpoint, token=os.environ.get("BRANCHWORK_TOKEN", ""), timeout=3)

    def chat(self, name: str) -> Chat:
        """Raises LoadError (not_found) for another model than the one that is served."""
        served = self._backend.model.name
        if Path(name).name != served:
            raise LoadError(
                "not_found",
                f"the runtime at {self._backend.endpoint} serves {served!r}, not {name!r}; ask for {served}",
            )
        return Chat.of(name, self._backend, known(name))

    def close(self) -> None:
        self._backend.close()


def _found(name: str) -> Resolved:
    """A model's files and settings; a hub's model is pulled into the library first. Raises LoadError."""
    try:
        return resolved(name, offline=True)
    except LoadError as error:
        if error.code != "offline":
            raise
    pulled(name)
    return resolved(name)
