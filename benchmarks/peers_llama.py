"""llama.cpp for benchmarks/peers.py: finding or building its server, and its side of the workloads over HTTP.

Knows: llama-server's command line and its /completion. Must not know: workloads, the other peers.
The server inside the llama-cpp-python package answers one request at a time, so the real one is built from the C++
sources in that package's source archive; only where that cannot be done is the package's own used, and said so.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from peers_http import Client, HttpError
from peers_models import CACHE
from peers_processes import Missing, child, free_port
from tokenizers import Tokenizer

SLOTS = 16
HOW_TO_GET = "give --llama-server PATH, or install cmake and a C++ compiler, or pip install 'llama-cpp-python[server]'"
_ANSWER = ["content", "tokens", "timings", "tokens_cached", "tokens_evaluated", "completion_probabilities"]


class Found(NamedTuple):
    """A server's command without its arguments. whole: whether it is the C++ server."""

    command: list[str]
    whole: bool


def find_server(given: str) -> Found:
    """The server at `given`, on PATH, built earlier, or built now. Raises Missing saying what to do."""
    if given:
        if not os.access(given, os.X_OK):
            raise Missing(f"--llama-server {given} is no program that can be run")
        return Found([given], True)
    built = CACHE / "llama.cpp" / "build" / "bin" / "llama-server"
    for path in (shutil.which("llama-server"), str(built)):
        if path and os.access(path, os.X_OK):
            return Found([path], True)
    if shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        _build(built)
        return Found([str(built)], True)
    if importlib.util.find_spec("llama_cpp") is not None:
        return Found([sys.executable, "-m", "llama_cpp.server"], False)
    raise Missing(f"no llama-server; {HOW_TO_GET}")


def _build(goal: Path) -> None:
    """llama-server, Release, for this machine's own processor. Raises Missing with the end of the log."""
    home = goal.parents[2]
    home.mkdir(parents=True, exist_ok=True)
    print(f"building llama-server in {home} (a few minutes, once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=home) as sources:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
        _step([*pip, "-d", sources, "llama-cpp-python"], home / "download.log")
        archive = next(Path(sources).glob("*.tar.gz"))
        with tarfile.open(archive) as packed:
            packed.extractall(sources, filter="data")
        tree = next(Path(sources).glob("*/vendor/llama.cpp"))
        off = ("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL")
        flags = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *(f"-D{name}=OFF" for name in off)]
        configure = ["cmake", "-S", str(tree), "-B", str(home / "build"), "-DBUILD_SHARED_LIBS=OFF", *flags]
        _step(configure, home / "configure.log")
        jobs = str(os.cpu_count() or 1)
        _step(["cmake", "--build", str(home / "build"), "--target", "llama-server", "-j", jobs], home / "build.log")
    if not goal.is_file():
        raise Missing(f"the build left no {goal}; see {home}/build.log; {HOW_TO_GET}")


def _step(command: list[str], log: Path) -> None:
    """Run to the end, the last percentage of its output shown on standard error. Raises Missing."""
    with log.open("w", encoding="utf-8") as kept, child(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            share = re.match(r"\[\s*(\d+%|\d+/\d+)", line)
            if share:
                print(f"\r{log.stem} {share[1]}   ", end="", file=sys.stderr, flush=True)
        code = process.wait()
    print(f"\r{log.stem} {'done' if code == 0 else 'failed'}      ", file=sys.stderr)
    if code != 0:
        tail = log.read_text(encoding="utf-8")[-600:]
        raise Missing(f"{' '.join(command[:3])} failed; the end of {log}:\n{tail}\n{HOW_TO_GET}")


def version(found: Found) -> str:
    if not found.whole:
        return "llama_cpp.server (one request at a time)"
    said = subprocess.run([*found.command, "--version"], capture_output=True, text=True, check=False)
    line = re.search(r"version: (.+)", said.stdout + said.stderr)
    return f"llama-server {line[1] if line else '(version unknown)'}"


def arguments(found: Found, model: Path, threads: int, context: int) -> list[str]:
    """The server's command line but for where it listens. context: tokens of one sequence.

    A KV buffer for each slot, not one for all: with one, each token's attention runs over the positions of all slots.
    What is not said stays at its default: prompts of slots are also kept in host memory, nothing is guessed ahead.
    """
    if not found.whole:
        own = ["--model", str(model), "--n_ctx", str(context), "--n_threads", str(threads), "--cache", "true"]
        return [*found.command, *own]
    own = ["-m", str(model), "-t", str(threads), "-tb", str(threads), "-np", str(SLOTS), "-c", str(SLOTS * context)]
    kept = ["--no-kv-unified", "--cache-prompt", "-cb", "-fa", "auto", "--threads-http", str(SLOTS + 4), "--no-webui"]
    return [*found.command, *own, *kept]


class Llama:
    """The peer as the workloads see it. `lanes` False: each request goes to the server at once, which picks a slot.

    lanes True: requests of one lane (one shared prefix) go one after another to a slot of their own, so that each
    finds the prefix of the one before; lanes run side by side.
    """

    name = "llama.cpp"

    def __init__(self, port: int, tokenizer: Tokenizer, whole: bool) -> None:
        self.port, self._tokenizer, self._whole = port, tokenizer, whole
        self._end = tokenizer.token_to_id("<|im_end|>") or 0
        self._client = Client(port)
        self._queues: dict[str, asyncio.Lock] = {}
        self.lanes = False
        self.reused = self.prompt = self.made = 0  # tokens: of prompts found in a cache, of prompts, of JSON

    async def ready(self, alive: Any, seconds: float = 120.0) -> None:
        """Wait until it answers. alive: raises when the process has ended. Raises Missing on timeout."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            alive()
            try:
                await self._client.get("/health" if self._whole else "/v1/models")
                return
            except (HttpError, OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.01)
        raise Missing(f"llama.cpp's server did not answer within {seconds:g} s")

    def begin(self, lanes: bool) -> None:
        """Before one run of a workload: a new event loop, so new connections, and counters at 0."""
        self._client = Client(self.port)
        self._queues = {}
        self.lanes = lanes
        self.reused = self.prompt = self.made = 0

    async def end(self) -> None:
        await self._client.__aexit__(None, None, None)

    async def ask(self, prompt: tuple[Any, ...], tokens: int, lane: str) -> tuple[int, ...]:
        """Exactly `tokens` greedy token ids after a prompt of texts and ids."""
        if not self._whole:
            return await self._ask_package(prompt, tokens)
        said = await self._complete(prompt, lane, n_predict=tokens, ignore_eos=True)
        return tuple(said["tokens"])

    async def _ask_package(self, prompt: tuple[Any, ...], tokens: int) -> tuple[int, ...]:
        """The package's own server: text in, text out, the end token forbidden by a bias."""
        text = "".join(part if isinstance(part, str) else self._tokenizer.decode(list(part)) for part in prompt)
        bias = {str(self._end): -100.0}
        body = {"prompt": text, "max_tokens": tokens, "temperature": 0, "logit_bias": bias}
        said = await self._client.post("/v1/completions", body)
        return tuple(self._tokenizer.encode(said["choices"][0]["text"], add_special_tokens=False).ids)

    async def json(self, prompt: tuple[Any, ...], grammar: str, tokens: int, lane: str) -> tuple[int, ...]:
        """A JSON text by a GBNF grammar, at most `tokens` long. Raises ValueError when it is none."""
        said = await self._complete(prompt, lane, n_predict=tokens, grammar=grammar)
        json.loads(said["content"])
        self.made += len(said["tokens"])
        return tuple(said["tokens"])

    async def choose(self, prompt: tuple[Any, ...], endings: tuple[str, ...], lane: str) -> int:
        """The ending with the best mean log-probability.

        /completion gives no probabilities of prompt tokens. What is cheapest there: a grammar of one ending's exact
        token ids, with n_probs=1, which reports each token's probability before the grammar took the others away.
        """

        async def score(ending: str) -> float:
            ids = self._tokenizer.encode(ending, add_special_tokens=False).ids
            grammar = "root ::= " + " ".join(f"<[{token}]>" for token in ids)
            said = await self._complete(prompt, lane, n_predict=len(ids), n_probs=1, grammar=grammar)
            steps = said["completion_probabilities"]
            if [step["id"] for step in steps] != ids:
                raise HttpError(f"llama.cpp spelled the ending {ending!r} otherwise than asked: {said['content']!r}")
            return sum(step["logprob"] for step in steps) / len(ids)

        scores = await asyncio.gather(*map(score, endings))
        return max(range(len(endings)), key=scores.__getitem__)

    async def _complete(self, prompt: tuple[Any, ...], lane: str, **more: Any) -> dict[str, Any]:
        if not self._whole:
            raise Missing("llama_cpp.server has no /completion of token ids; only the C++ server runs this workload")
        pieces: list[Any] = []
        for part in prompt:
            if isinstance(part, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += part  # an array of texts alone would be several prompts
            else:
                pieces.extend([part] if isinstance(part, str) else part)
        body = {
            "prompt": pieces if len(pieces) > 1 else pieces[0],
            "cache_prompt": True,
            "temperature": 0,
            "samplers": ["top_k"],
            "top_k": 1,
            "return_tokens": True,
            "response_fields": _ANSWER,
            **more,
        }
        if not self.lanes:
            said = await self._client.post("/completion", body)
        else:
            queue = self._queues.setdefault(lane, asyncio.Lock())
            slot = list(self._queues).index(lane) % SLOTS
            async with queue:
                said = await self._client.post("/completion", {**body, "id_slot": slot})
        timings = said["timings"]
        self.reused += timings["cache_n"]
        self.prompt += timings["cache_n"] + timings["prompt_n"]
        return dict(said)


@contextmanager
def served(command: list[str], whole: bool, tokenizer: Tokenizer) -> Iterator[Llama]:
    """A running server, with its first token already out. whole: as in Found. Raises Missing with its last words."""
    port = free_port()
    with tempfile.TemporaryFile("w+") as log:
        place = ["--host", "127.0.0.1", "--port", str(port)]
        with child([*command, *place], stdout=log, stderr=subprocess.STDOUT) as process:

            def alive() -> None:
                if process.poll() is not None:
                    log.seek(0)
                    raise Missing(f"llama.cpp's server ended with {process.returncode}: ...{log.read()[-600:]}")

            peer = Llama(port, tokenizer, whole)

            async def first() -> None:
                peer.begin(lanes=False)
                await peer.ready(alive)
                await peer.ask(("The first",), 1, "start")
                await peer.end()

            asyncio.run(first())
            yield peer
