"""A chat in the terminal: lines in, answers out as they come, slash commands, history, interruption.

Knows: keys, lines, slash commands. Must not know: how an answer comes about, where models lie.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from branchwork.chat import Chat, timings
from branchwork.lang.errors import BranchworkError
from branchwork.library import part_of
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.loading.parameters import PARAMETERS
from branchwork.runtime.loading.store import Store, home

MARK = '"""'
HELP = """\
/set system TEXT             the system prompt from now on; /set system "" for none
/set parameter NAME VALUE    such as temperature 0.7, num_predict 100, stop "END"
/set history | nohistory     whether what was said is said again with the next question
/set format json | noformat  answers are JSON objects, or any text
/set verbose | quiet         whether figures follow each answer
/show [info | modelfile | system | parameters | template | license]
/save NAME                   this chat as a model of the library
/load NAME                   go on with another model; what was said is left behind
/clear                       forget what was said
/bye                         end (Ctrl-D does it too)
Text over several lines begins and ends with \"\"\". Ctrl-C stops an answer.
The path of a picture in a line sends it along."""

Load = Callable[[str], Chat]


class Bye(Exception):
    """The person wants to end."""


class Lines(NamedTuple):
    """Where lines come from: `read` gives one after a prompt and raises EOFError at the end."""

    read: Callable[[str], str]

    def next(self) -> str:
        """What a person enters: a line, or several between \"\"\"."""
        line = self.read(">>> ")
        if not line.lstrip().startswith(MARK):
            return line
        text = line.lstrip()[len(MARK) :]
        while not text.rstrip().endswith(MARK):
            text += "\n" + self.read("... ")
        return text.rstrip().removesuffix(MARK).strip("\n")


class Terminal:
    """A chat with a person. load: makes the chat with another model, and ends the one before."""

    def __init__(self, chat: Chat, load: Load, *, verbose: bool = False) -> None:
        self.chat = chat
        self.verbose = verbose
        self.stopped = False  # whether Ctrl-C ended the last answer
        self._load = load
        self._out = Console(highlight=False, soft_wrap=True)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def talk(self, lines: Lines) -> None:
        """Until the person ends it."""
        self._out.print(f"[bold]{escape(self.chat.name)}[/] answers. /? shows the commands, Ctrl-D ends.")
        while True:
            try:
                text = lines.next()
            except EOFError:
                self._out.print()
                return
            except KeyboardInterrupt:
                self._out.print("\nCtrl-D or /bye ends the chat.")
                continue
            try:
                if text.startswith("/"):
                    self.command(text)
                elif text.strip():
                    self.answer(text)
            except Bye:
                return
            except (LoadError, ValueError, BranchworkError) as error:
                self._errors.print(f"[red]error:[/] {escape(str(error))}")

    def answer(self, text: str) -> None:
        """Ask, and write the answer as it comes. Ctrl-C stops the answer. Raises what asking raises."""
        pieces = self.chat.ask(text)
        self.stopped = False
        try:
            with self._waiting():
                first = next(pieces, "")
            sys.stdout.write(first)
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            pieces.close()
            self.stopped = True
            sys.stdout.write("\n(stopped)")
        sys.stdout.write("\n")
        sys.stdout.flush()
        if self.verbose and self.chat.usage:
            for what, figure in timings(self.chat.usage):
                self._errors.print(f"[dim]{what + ':':<18} {escape(figure)}[/]")

    def command(self, text: str) -> None:
        """Do what a line with a slash says. Raises ValueError, LoadError with what to write instead; Bye."""
        word, _, rest = text.strip().partition(" ")
        known = self._commands().get(word)
        if known is None:
            raise ValueError(f"there is no command {word}; /? shows them all")
        known(rest.strip())

    def _commands(self) -> dict[str, Callable[[str], None]]:
        return {
            "/?": self._help,
            "/help": self._help,
            "/bye": self._bye,
            "/exit": self._bye,
            "/clear": self._clear,
            "/set": self._set,
            "/show": self._show,
            "/save": self._save,
            "/load": self._change,
        }

    def _help(self, rest: str) -> None:
        self._out.print(escape(HELP))

    def _bye(self, rest: str) -> None:
        raise Bye

    def _clear(self, rest: str) -> None:
        self.chat.clear()
        self._out.print("What was said is forgotten.")

    def _set(self, rest: str) -> None:
        what, _, value = rest.partition(" ")
        value = _unquoted(value.strip())
        if what == "system" and rest != "system":
            self.chat.system = value
            self._out.print("The system prompt is set." if value else "There is no system prompt any more.")
        elif what == "parameter":
            name, _, text = value.partition(" ")
            if not text:
                raise ValueError(f"/set parameter NAME VALUE; names: {', '.join(sorted(PARAMETERS))}")
            self.chat.set(name, _unquoted(text.strip()))
            late = " It holds when the model is loaded next (/save, then /load)." if PARAMETERS[name].option else ""
            self._out.print(f"{escape(name)} is {escape(text.strip())}.{late}")
        elif rest in ("history", "nohistory"):
            self.chat.keeps = rest == "history"
            self._out.print("What is said is kept." if self.chat.keeps else "Every question stands for itself.")
        elif rest in ("format json", "noformat"):
            self.chat.form = "json" if rest == "format json" else ""
            self._out.print("Answers are JSON objects." if self.chat.form else "Answers are any text.")
        elif rest in ("verbose", "quiet"):
            self.verbose = rest == "verbose"
            self._out.print("Figures follow each answer." if self.verbose else "No figures follow.")
        else:
            raise ValueError(
                "/set takes system, parameter, history, nohistory, format json, noformat, verbose or quiet"
            )

    def _show(self, rest: str) -> None:
        if rest in ("", "info"):
            self._info()
        elif rest in ("modelfile", "system", "parameters", "template", "license"):
            manifest = self.chat.manifest()
            text = part_of(self.chat.name, manifest, find_model(manifest.path), rest)
            self._out.print(escape(text.rstrip("\n")) if text else f"There is no {rest}.")
        else:
            raise ValueError("/show takes info, modelfile, system, parameters, template or license")

    def _info(self) -> None:
        model = self.chat.backend.model
        self._out.print(f"model    {escape(self.chat.name)}: {model.family}, context {model.context:,}, {model.device}")
        self._out.print(f"said     {len(self.chat.messages)} messages{'' if self.chat.keeps else ', not kept'}")
        if self.chat.system:
            self._out.print(f"system   {escape(self.chat.system)}")

    def _save(self, rest: str) -> None:
        if not rest:
            raise ValueError("/save NAME: give the name of the new model")
        Store().put(rest, self.chat.manifest())
        self._out.print(f"This chat is the model {escape(rest)} now.")

    def _change(self, rest: str) -> None:
        if not rest:
            raise ValueError("/load NAME: give the name of a model")
        self.chat = self._load(rest)
        self._out.print(f"[bold]{escape(self.chat.name)}[/] answers from here on.")

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """A sign on a terminal that the prompt is being read, until the answer begins."""
        if not self._errors.is_terminal:
            yield
            return
        with self._errors.status("reading ..."):
            yield


def keyboard() -> Lines:
    """Lines of a person, with editing and a history that outlives the chat where readline is there."""
    try:
        import readline
    except ImportError:  # not on every platform
        return Lines(input)
    path = home() / "history"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # the first time there is none
        readline.read_history_file(path)
    readline.set_history_length(1000)

    def read(prompt: str) -> str:
        line = input(prompt)
        _keep(readline.write_history_file, path)
        return line

    return Lines(read)


def _keep(write: Callable[[str], None], path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that may not be written to costs the history, not the chat
        write(str(path))


def _unquoted(text: str) -> str:
    for mark in (MARK, '"'):
        if text.startswith(mark) and text.endswith(mark) and len(text) >= 2 * len(mark):
            return text[len(mark) : -len(mark)]
    return text
