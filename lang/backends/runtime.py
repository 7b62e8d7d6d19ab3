"""Our own runtime as a backend: connect to one that serves, or start one for this program.

Knows: endpoints, keys. Must not know: the runtime's code and command line, messages' contents.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq
import zmq.auth

from branchwork.lang import loop, prompts
from branchwork.lang.backend import Session, Sink, refuse_pictures
from branchwork.lang.backends import process, spellings
from branchwork.lang.backends.link import Keys, Link, Traffic
from branchwork.lang.errors import (
    BackendError,
    CapabilityError,
    Refused,
    RuntimeLost,
    RuntimeStartError,
)
from branchwork.lang.ir import Laid, Node, Template
from branchwork.lang.protocol import Budget, Cancel, ChatFrames, ModelInfo, Open, is_private

Stage = Callable[[str, float], None]


class RuntimeBackend:
    """Programs run on the runtime behind `link`. Made by connect(), Runtime() and RuntimeEndpoint()."""

    def __init__(self, link: Link, model: ModelInfo) -> None:
        self.model = model
        self._link = link
        self._finalizer = weakref.finalize(self, link.close_soon)

    @property
    def endpoint(self) -> str:
        return self._link.endpoint

    @property
    def frames(self) -> ChatFrames:
        return self.model.frames

    @property
    def traffic(self) -> Traffic:
        """Bytes and messages that have gone over this connection so far."""
        return self._link.traffic

    def open(self, sink: Sink, stream: bool, budget: Budget | None = None, speculate: int | None = None) -> Session:
        """Raises RuntimeLost when the connection is over."""
        return _RuntimeSession(self._link, self._link.open(sink), stream, budget)

    def accept(self, node: Node) -> None:
        refuse_pictures(node, self.model)

    def stats(self, timeout: float = 10.0) -> dict[str, Any]:
        """The runtime's counters. Raises RuntimeLost, BackendError."""
        return self._link.ask("stats", timeout)

    def flush_cache(self, empty_cache: bool = True, *, timeout: float = 60.0) -> dict[str, Any]:
        """Drop every cached prefix that nobody uses. empty_cache: SGLang's, without effect.

        Raises RuntimeLost, BackendError.
        """
        return self._link.ask("flush_cache", timeout)

    def cache_prefix(self, prefix: str) -> None:
        """Compute the KV of a text ahead of the programs that begin with it. Raises ProgramError, BackendError."""
        prompts.complete(self, prefix, {"max_tokens": 1, "temperature": 0.0})

    def get_model_name(self) -> str:
        return self.model.name

    def get_server_info(self) -> dict[str, Any]:
        """The model and the runtime's counters. Raises RuntimeLost, BackendError."""
        model = self.model
        about = {"model_path": model.name, "family": model.family, "context_length": model.context}
        pages = {"pages": model.pages, "page_size": model.page_size, "device": model.device}
        return {**about, "vocab_size": model.vocab, "endpoint": self.endpoint, **pages, **self.stats()}

    def ask(self, what: str, timeout: float = 10.0) -> dict[str, Any]:
        """Any question the runtime answers (ping, stats, check, flush_cache). Raises RuntimeLost, BackendError."""
        return self._link.ask(what, timeout)

    def close(self) -> None:
        """End the connection; programs that still run on it fail with code closed."""
        self._finalizer()


class _RuntimeSession:
    """What opens the program on the wire is its first message: Open before Nodes, or Start for all of it."""

    def __init__(self, link: Link, program: int, stream: bool, budget: Budget | None) -> None:
        self._link, self._program = link, program
        self._stream, self._budget = stream, budget
        self._begun = False

    def lay(self, branch: int, nodes: Sequence[Laid]) -> None:
        if not self._begun:
            self._begun = True
            self._link.put(Open(self._program, self._stream, self._budget))
        self._link.lay(self._program, branch, nodes)

    def start(self, template: Template, arguments: Sequence[str]) -> None:
        self._begun = True
        self._link.launch(self._program, template, arguments, self._stream, self._budget)

    def cancel(self, branch: int | None) -> None:
        self._link.put(Cancel(self._program, branch))

    def close(self) -> None:
        self._link.forget_soon(self._program)


def connect(
    endpoint: str,
    *,
    token: str = "",
    timeout: float = 10.0,
    curve_keys: str | Path = "",
) -> RuntimeBackend:
    """Connect to a runtime that serves at `endpoint` (ipc://path, tcp://host:port).

    token: the runtime's shared secret on loopback TCP. curve_keys: a folder with the runtime's server.key and this
    client's client.key_secret, as `branchwork keys` writes them; needed for any other machine.
    timeout: seconds without a sign of life. Raises RuntimeUnavailable, Refused.
    """
    return RuntimeBackend(*_dial(endpoint, token, timeout, curve_keys))


def _dial(endpoint: str, token: str, timeout: float, curve_keys: str | Path) -> tuple[Link, ModelInfo]:
    if not curve_keys and not is_private(endpoint):
        raise Refused(
            "unencrypted",
            f"{endpoint} leaves this machine and would go unencrypted; pass curve_keys= (the folder with the runtime's "
            "CURVE keys), or reach it through a tunnel to 127.0.0.1",
        )
    link = Link(endpoint, _read_keys(Path(curve_keys)) if curve_keys else None)
    try:
        return link, loop.run(link.start(token, timeout, None))
    except Refused as no:
        raise Refused(no.code, f"{no.reason} (said by the runtime at {endpoint})") from None


class RuntimeEndpoint(RuntimeBackend):
    """connect() by the name that SGLang programs use.

    base_url: http://host:port (means tcp://host:port), tcp://host:port, or ipc://path. api_key: the runtime's token.
    verify and chat_template_name have no meaning here: another machine is known by its CURVE keys, and a model's turns
    are framed by its own chat template. Raises ValueError for an address of another kind and for `verify`;
    RuntimeUnavailable, Refused.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        chat_template_name: str | None = None,
        *,
        curve_keys: str | Path = "",
        timeout: float = 10.0,
    ) -> None:
        if verify is not None:
            raise ValueError(f"verify={verify!r} is for HTTPS; a runtime on another machine needs curve_keys=FOLDER")
        if chat_template_name is not None:
            warnings.warn(
                f"chat_template_name={chat_template_name!r} is not used: turns are framed by the model's own template",
                stacklevel=2,
            )
        super().__init__(*_dial(spellings.address(base_url), api_key or "", timeout, curve_keys))
        self.base_url = base_url


def _read_keys(folder: Path) -> Keys:
    """Raises Refused naming the file that is missing or no key."""
    try:
        server, _ = zmq.auth.load_certificate(folder / "server.key")
        public, secret = zmq.auth.load_certificate(folder / "client.key_secret")
    except (OSError, ValueError) as error:
        raise Refused("keys", f"{folder} lacks usable CURVE keys ({error}); `branchwork keys` writes them") from None
    return Keys(server.decode(), public.decode(), (secret or b"").decode())


class Runtime:
    """A runtime of `model`, started by this program and ended with it.

    endpoint: where it listens; by default a socket in a folder that only this user can enter, else loopback TCP with a
    secret that both sides know (port * takes a free one). options are the runtime's own (page_size=16, ...) and are
    handed on as name=value; SGLang's names for them (model_path, port, api_key, context_length ...) are understood too,
    see lang.backends.spellings. progress: True prints loading stages, a function hears (stage, fraction).
    start_timeout: seconds without a sign of life while it loads. Raises RuntimeStartError with the runtime's own words,
    ValueError for what this runtime cannot do.

    api_key: the secret that others give to reach it, "" where its folder already keeps them out.
    """

    def __init__(
        self,
        model: str = "sapling",
        *,
        endpoint: str = "",
        progress: bool | Stage = False,
        start_timeout: float = 120.0,
        **options: Any,
    ) -> None:
        asked = spellings.asked(model, endpoint, options)
        model, endpoint, start_timeout = asked.model, asked.endpoint, asked.timeout or start_timeout
        if endpoint and not is_private(endpoint):
            raise Refused("unencrypted", f"{endpoint} is open to other machines; a runtime of one's own needs loopback")
        folder = Path(process.private_folder())
        ipc = f"ipc://{folder}/runtime"
        endpoint = endpoint or (ipc if zmq.has("ipc") else "tcp://127.0.0.1:*")
        self._model_path = model
        self.api_key = token = asked.token or ("" if endpoint == ipc else secrets.token_hex(16))
        self._process = process.spawn(model, endpoint, asked.options, folder / "log", token)
        ended = process.Obituary(self._process, folder / "log")
        link = Link(endpoint, owner=ended)
        self._finalizer = weakref.finalize(self, _end, os.getpid(), self._process, link, folder)
        try:
            if endpoint.endswith(":*"):
                link.endpoint = ended.listening(start_timeout)
            say = _print_stage if progress is True else progress or None
            info = loop.run(link.start(token, start_timeout, say))
        except BackendError as error:
            said = "" if isinstance(error, (Refused, RuntimeLost)) else ended.last_words()
            self.shutdown()
            why = f"{error.code}: {error.reason}" if isinstance(error, Refused) else f"{error}{said}"
            raise RuntimeStartError(f"the runtime for model {model!r} did not start: {why}") from None
        except BaseException:
            self.shutdown()
            raise
        self._backend = RuntimeBackend(link, info)

    @property
    def endpoint(self) -> str:
        return self._backend.endpoint

    url = endpoint

    @property
    def model(self) -> ModelInfo:
        return self._backend.model

    @property
    def frames(self) -> ChatFrames:
        return self._backend.frames

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self, sink: Sink, stream: bool, budget: Budget | None = None, speculate: int | None = None) -> Session:
        return self._backend.open(sink, stream, budget, speculate)

    def accept(self, node: Node) -> None:
        self._backend.accept(node)

    def stats(self) -> dict[str, Any]:
        """The runtime's counters. Raises RuntimeLost, BackendError."""
        return self._backend.stats()

    def flush_cache(self, empty_cache: bool = True) -> dict[str, Any]:
        """Drop every cached prefix that nobody uses. Raises RuntimeLost, BackendError."""
        return self._backend.flush_cache(empty_cache)

    def cache_prefix(self, prefix: str) -> None:
        """Compute the KV of a text ahead of the programs that begin with it. Raises ProgramError, BackendError."""
        self._backend.cache_prefix(prefix)

    def get_model_name(self) -> str:
        return self._backend.get_model_name()

    def get_server_info(self) -> dict[str, Any]:
        """The model and the runtime's counters. Raises RuntimeLost, BackendError."""
        return self._backend.get_server_info()

    def get_tokenizer(self) -> Any:
        """The model's tokenizer, as transformers makes it."""
        return tokenizer_of(self._model_path)

    def generate(
        self, prompt: str | Sequence[str], sampling_params: Mapping[str, Any] | None = None, **logprobs: Any
    ) -> str:
        """What comes after a prompt, as JSON text with text and meta_info; a list of these for several prompts.

        logprobs: return_logprob, logprob_start_len, top_logprobs_num. Raises ProgramError, TypeError, ValueError.
        """
        return json.dumps(prompts.complete(self, prompt, {**(sampling_params or {}), **logprobs}))

    async def async_generate(self, prompt: str, sampling_params: Mapping[str, Any] | None = None) -> AsyncIterator[str]:
        """What comes after a prompt, piece by piece."""
        shown = 0
        async with contextlib.aclosing(prompts.pieces_async(self, prompt, sampling_params)) as pieces:
            async for grown in pieces:
                if len(grown["text"]) > shown:
                    yield grown["text"][shown:]
                shown = len(grown["text"])

    add_request = async_generate

    def encode(self, prompt: str | Sequence[str]) -> str:
        """Raises CapabilityError: there are no embeddings yet."""
        raise CapabilityError(f"the model {self.model.name!r} generates text; there are no embeddings yet")

    def check(self) -> dict[str, Any]:
        """Let the runtime prove its own books; `fault` in the answer says what does not add up."""
        return self._backend.ask("check")

    def shutdown(self) -> None:
        """End the runtime and wait for it; programs that still run on it fail. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


def tokenizer_of(model: str) -> Any:
    """The tokenizer of a directory, a hub name or the shipped model, as transformers makes it. Downloads nothing."""
    from transformers import AutoTokenizer

    found = importlib.util.find_spec(f"branchwork.runtime.{model}") if model == spellings.SHIPPED else None
    folder = found.submodule_search_locations[0] if found and found.submodule_search_locations else model
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _end(parent: int, owned: subprocess.Popen[bytes], link: Link, folder: Path) -> None:
    """Close the connection, then end the runtime. Nothing in a forked child."""
    if os.getpid() == parent:
        link.close_soon()
        process.end(owned)
        shutil.rmtree(folder, ignore_errors=True)


def _print_stage(stage: str, fraction: float) -> None:
    print(f"branchwork: {stage} {fraction:.0%}", file=sys.stderr, flush=True)
