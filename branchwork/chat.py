"""A chat with a model: what has been said, the settings in force, and one program for each answer.

Knows: the language's public surface, what the library says of a model. Must not know: the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import branchwork as bw
from branchwork.lang.backend import Backend
from branchwork.runtime.loading import parameters
from branchwork.runtime.loading.companions import companion
from branchwork.runtime.loading.create import base_of
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import Resolved, resolved
from branchwork.runtime.loading.store import Manifest, Message, Value

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
_TURNS = {"system": bw.system, "user": bw.user, "assistant": bw.assistant}
_RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@bw.function
def _reply(s: Any, turns: Sequence[tuple[str, Any]], knobs: Mapping[str, Any]) -> None:
    for role, content in turns:
        s += _TURNS[role](content)
    s += bw.assistant(bw.gen("answer", **knobs))


@dataclass
class Chat:
    """A conversation with the model that `backend` runs.

    system: None for what the model's template says by itself. parameters: by their names in Modelfiles.
    keeps: whether what was said is said again with the next question. form: "" or json, what answers must be.
    usage: what is known of the last answer.
    """

    name: str
    backend: Backend
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    parameters: dict[str, Value] = field(default_factory=dict)
    recommended: Mapping[str, Any] = field(default_factory=dict)
    base: Manifest | None = None
    keeps: bool = True
    form: str = ""
    usage: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, backend: Backend, found: Resolved | None) -> Chat:
        """A new chat with a model as the library has it; found None: nothing is known of it here."""
        if found is None:
            return cls(name, backend)
        return cls(
            name,
            backend,
            found.system,
            list(found.messages),
            dict(found.parameters),
            recommended(found.path),
            found.manifest or base_of(name, found.path),
        )

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer to `text`, piece by piece. What came of it is kept when the iterator is closed early, too.

        Raises ProgramError, BackendError; CapabilityError for a picture that the model cannot see.
        """
        turns = self._turns(text)
        began = time.perf_counter()
        state = _reply.stream(turns, self._knobs(), backend=self.backend)
        pieces: list[str] = []
        done = False
        try:
            for piece in state.text_iter("answer"):
                pieces.append(piece)
                yield piece
            self.usage = {**state.meta("answer"), "wall_s": time.perf_counter() - began}
            done = True
        finally:
            if not done:
                state.cancel()
                self.usage = {}
            if self.keeps and (pieces or done):
                self.messages += [Message("user", text), Message("assistant", "".join(pieces))]

    def clear(self) -> None:
        """Forget what has been said; the settings stay."""
        self.messages.clear()

    def set(self, name: str, text: str) -> Value:
        """Set a parameter of a Modelfile; a repeated stop adds to those before. Raises LoadError (parameter)."""
        value, before = parameters.read(name, text), self.parameters.get(name)
        if isinstance(value, list) and isinstance(before, list):
            value = before + value
        self.parameters[name] = value
        return value

    def manifest(self) -> Manifest:
        """The chat as a model of the library. Raises LoadError where it is not known what its model is made of."""
        if self.base is None:
            raise LoadError(
                "not_found", f"what {self.name} is made of is not known on this machine; it cannot be saved"
            )
        return Manifest(
            path=self.base.path,
            source=self.base.source,
            template=self.base.template,
            license=self.base.license,
            about=self.base.about,
            system=self.system,
            messages=tuple(self.messages),
            parameters=dict(self.parameters),
        )

    def _knobs(self) -> dict[str, Any]:
        form = {"json_schema": {"type": "object"}} if self.form == "json" else {}
        return {"max_tokens": 2**31, **self.recommended, **parameters.knobs(self.parameters), **form}

    def _turns(self, text: str) -> list[tuple[str, Any]]:
        """Every turn so far and the question, with its pictures. A model that knows no system prompt hears it in the
        first question."""
        said = [(message.role, message.content) for message in self.messages if self.keeps]
        turns: list[tuple[str, Any]] = [*said, ("user", text)]
        frames = self.backend.frames
        if self.system or (self.system is not None and frames.default_system):  # an empty one stands against a default
            if "system" in frames.roles or not frames.roles:
                turns.insert(0, ("system", self.system))
            else:
                first = next(i for i, (role, _) in enumerate(turns) if role == "user")
                turns[first] = ("user", f"{self.system}\n\n{turns[first][1]}")
        for path in reversed(pictures_in(text)):
            picture = bw.image(path)
            self.backend.accept(picture)
            turns[-1] = ("user", picture + turns[-1][1])
        return turns


def pictures_in(text: str) -> list[Path]:
    """The words of a question that are picture files."""
    found = [Path(word.strip("'\"")).expanduser() for word in text.split()]
    return [path for path in found if path.suffix.lower() in PICTURES and path.is_file()]


def recommended(path: Path) -> dict[str, Any]:
    """The sampling knobs that a model's own generation_config.json asks for; temperature 0 where it does not sample."""
    said = companion(path, "generation_config.json")
    if said.get("do_sample") is False:
        return {"temperature": 0.0}
    return {name: said[name] for name in _RECOMMENDED if isinstance(said.get(name), (int, float))}


def known(name: str) -> Resolved | None:
    """What this machine knows of a model, without asking the hub; None for nothing."""
    try:
        return resolved(name, offline=True)
    except LoadError:
        return None


def timings(usage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, figure) rows of an answer's usage: tokens, reuse, rates."""
    prompt, cached, answer = usage["prompt_tokens"], usage["cached_tokens"], usage["completion_tokens"]
    reading = usage["first_s"] - usage["queued_s"]
    writing = usage["total_s"] - usage["first_s"]
    rows = [
        ("total", f"{usage['wall_s']:.3f} s"),
        ("prompt", f"{prompt} tokens, {cached} of them found in the cache"),
        ("first token after", f"{usage['first_s']:.3f} s"),
        ("answer", f"{answer} tokens"),
    ]
    if reading > 0:
        rows.insert(3, ("prompt rate", f"{(prompt - cached) / reading:,.1f} tokens/s"))
    if writing > 0 and answer > 1:
        rows.append(("answer rate", f"{(answer - 1) / writing:,.1f} tokens/s"))
    return rows
