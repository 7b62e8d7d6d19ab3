"""One loaded model: its engine under supervision, its programs, its texts and its chat template.

Knows: how these are put together. Must not know: HTTP, who else is loaded, nodes.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from branchwork.lang.protocol import ModelInfo
from branchwork.runtime import wire
from branchwork.runtime.config import Config, cores, parse
from branchwork.runtime.gateway.chat import following, pieces
from branchwork.runtime.gateway.local import CONNECTION, Local
from branchwork.runtime.gateway.named import frames_of, template_of
from branchwork.runtime.gateway.supervisor import Supervisor
from branchwork.runtime.gateway.text import Texts
from branchwork.runtime.loading.hub import Resolved, resolved
from branchwork.runtime.loading.pooling import Pooling, load_pooling
from branchwork.runtime.loading.tokenizer import eos_ids, special_texts
from branchwork.runtime.programs.gens import pack
from branchwork.runtime.programs.host import Emit, Host

Say = Callable[[str, float], None]


class Prompt(NamedTuple):
    """What an answer comes after: its tokens, and what they read as."""

    ids: list[int]
    text: str


class Served:
    """One model. Nothing but `start` and `stop` may be called before `start` has returned.

    options: name=value strings of runtime.config. emit: hears what programs of ZeroMQ clients say. found: what the
    model library says of the name: its files, and the system prompt, first messages and sampling knobs that hold where
    a request says nothing of them. None for what is not the library's; then it is looked for.
    template: the Jinja text that chats are written with.
    """

    found: Resolved
    texts: Texts
    pooling: Pooling
    template: str | None
    specials: Mapping[str, str]
    info: ModelInfo
    ready: wire.Ready
    host: Host
    local: Local

    def __init__(
        self, name: str, options: Sequence[str], folder: Path, emit: Emit, found: Resolved | None = None
    ) -> None:
        self.name = name
        self._found = found
        self.config: Config = parse([f"model={name}", *options])
        self._options = options
        self._folder = folder
        self._emit = emit
        self._supervisor: Supervisor | None = None

    async def start(self, say: Say) -> None:
        """Find the model, start its engine, read its tokenizer meanwhile. Raises LoadError, ConfigError, EngineDied."""
        say("finding the model", 0.0)
        loop = asyncio.get_running_loop()

        def downloading(fraction: float) -> None:
            loop.call_soon_threadsafe(say, "downloading the model", fraction)

        found = self._found
        if found is None:
            found = await asyncio.to_thread(resolved, self.name, progress=downloading)
        self.found, config, directory = found, self.config, found.path
        self._supervisor = Supervisor(
            _engine_command(directory, self._options),
            self._folder,
            threads=config.threads or cores(),
            restarts=config.restarts,
            on_messages=lambda messages: self.host.on_messages(messages),
            in_flight=lambda: self.host.restart(),
            on_loading=say,
        )
        starting = asyncio.create_task(self._supervisor.start())  # the tokenizer is read while the weights are
        self.texts = await asyncio.to_thread(Texts, directory)
        self.pooling = load_pooling(directory)
        self.template = template_of(found)
        self.specials = special_texts(directory)
        model_frames = frames_of(found)
        ends = eos_ids(directory)
        self.host = Host(self.texts, model_frames, eos=ends, max_branches=config.max_branches, emit=self._say)
        self.local = Local(self.host)
        ready = self.ready = await starting
        self.info = ModelInfo(
            name=Path(self.name).name,
            family=ready.family,
            context=ready.context,
            vocab=ready.vocab,
            eos_ids=ends,
            frames=model_frames,
            pages=ready.pages,
            page_size=ready.page_size,
            device=ready.device,
            knobs=dict(found.knobs),
        )
        self.host.attach(self._supervisor.send, ready.context, _facts(self.info.name, ready))

    async def serve(self) -> None:
        """Deliver the engine's events until `stop`. Raises EngineDied when it keeps dying."""
        assert self._supervisor is not None
        await self._supervisor.serve()

    async def stop(self) -> None:
        """End the engine process."""
        if self._supervisor is not None:
            await self._supervisor.stop()

    def under(self, name: str, found: Resolved | None) -> Served:
        """The same engine and tree by another name, with what the library says of that one."""
        other = copy(self)
        other.name = name
        other.found = found or Resolved(name, self.found.path)
        other.template = template_of(other.found)
        info = {"name": Path(name).name, "frames": frames_of(other.found), "knobs": dict(other.found.knobs)}
        other.info = msgspec.structs.replace(self.info, **info)
        return other

    @property
    def memory(self) -> int:
        """Bytes of weights and KV."""
        return self.ready.weight_bytes + self.ready.kv_bytes

    def encode(self, text: str, special: bool = True) -> Prompt:
        """A text as a whole prompt; special: the names of special tokens in it stand for these."""
        return Prompt(self.texts.begin(self.texts.encode([_Written(text, special)])), text)

    def text_to_embed(self, text: str, *, truncate: bool = False) -> Prompt:
        """A text as the model was taught to make vectors of: as its tokenizer writes one where its files say how states
        become vectors, else as a prompt. truncate: what exceeds the context is left out."""
        longest = self.ready.context if truncate else 0
        if self.pooling.said or not self.ready.generates:
            return Prompt(self.texts.encode_whole(text, longest), text)
        ids = self.encode(text, special=False).ids
        return Prompt(ids[: longest or None], text)

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """A vector for each prompt, as the model's files say it is made; see loading.pooling. Leaving early cancels
        them. Raises EmbedFailed."""
        return [array("f", one.vector).tolist() for one in await self.embedded(prompts)]

    async def embedded(self, prompts: Sequence[Sequence[int]]) -> list[wire.Embedded]:
        """The same as the engine tells it, with what each took."""
        kind, normalize = self.pooling.kind, self.pooling.normalize
        return await self.host.embed([pack(ids) for ids in prompts], kind, normalize)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        generate: bool = True,
        continued: bool = False,
        template: str | None = None,
        **context: Any,
    ) -> Prompt:
        """A conversation as the model's template writes it. What messages say never reads as special tokens.

        generate: the assistant's turn is opened. continued: the last message is the assistant's, and goes on.
        template: Jinja, instead of the model's. context: what templates expect beside (tools, enable_thinking ...).
        Raises ChatTemplateError.
        """
        names, context = self.texts.special_names, {**self.specials, **context}
        found = pieces(template or self.template, messages, names, generate=generate, continued=continued, **context)
        written = [_Written(*piece) for piece in found]
        return Prompt(self.texts.begin(self.texts.encode(written)), "".join(piece.text for piece in written))

    def answered(self, prompt: Prompt, text: str, meta: Mapping[str, Any]) -> Prompt:
        """The transcript that an answer leaves: the very tokens that were drawn. text, meta: of the answer."""
        kept = meta["output_ids"][: meta["kept_tokens"]]
        length = sum(len(self.texts.token_bytes[token]) for token in kept)
        rest = text.encode()[length:].decode("utf-8", "ignore")  # of a token that a stop has cut
        tail = self.texts.encode([_Written(rest, False)])
        return Prompt([*prompt.ids, *kept, *tail], prompt.text + text)

    def resume(self, transcript: Prompt, messages: Sequence[Mapping[str, Any]], **context: Any) -> Prompt:
        """A transcript that ends with the text of the assistant's turn, goes on with messages, and opens the next turn.

        Its tokens stay as they are. Raises ChatTemplateError.
        """
        found = following(self.template, messages, self.texts.special_names, **self.specials, **context)
        ids = self.texts.encode([_Written(*piece) for piece in found])
        return Prompt([*transcript.ids, *ids], transcript.text + "".join(text for text, _ in found))

    def begun(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """A conversation from its very beginning: the library's first messages come before these, and its system
        prompt where they have none."""
        whole = [*({"role": one.role, "content": one.content} for one in self.found.messages), *messages]
        if self.found.system and not any(one.get("role") == "system" for one in whole):
            whole.insert(0, {"role": "system", "content": self.found.system})
        return whole

    def _say(self, connection: bytes, message: Any) -> None:
        if connection == CONNECTION:
            self.local.emit(message)
        else:
            self._emit(connection, message)


class _Written(NamedTuple):
    """A Piece of text."""

    text: str
    special: bool
    ids: bytes = b""


def _facts(name: str, ready: wire.Ready) -> dict[str, float | int | str]:
    """What stats say of a runtime besides its counters."""
    return {
        "model": name,
        "weights": ready.quantization or ready.dtype,
        "dtype": ready.dtype,
        "weight_bytes": ready.weight_bytes,
        "read_bytes": ready.read_bytes,
        "parameters": ready.parameters,
        "in_layers": ready.in_layers,
        "kv_bytes": ready.kv_bytes,
        "page_size": ready.page_size,
        "context": ready.context,
        "device": ready.device,
        "threads": ready.threads,
    }


def _engine_command(directory: Path, options: Sequence[str]) -> list[str]:
    command = [sys.executable, "-m", "branchwork.runtime.assembly", "--directory", str(directory)]
    for option in options:
        command += ["--option", option]
    return command
