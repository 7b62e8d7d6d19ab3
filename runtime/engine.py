"""An engine process: the composition root of the brain and the hands, and THE loop that joins them.

Knows: Config (the only reader below the gateway), every room's constructor. Must not know: text, clients, programs.
The loop has three beats: plan what one step computes, run it, commit what came of it.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import zmq

from branchwork.runtime import wire
from branchwork.runtime.cache.prefix_cache import PrefixCache
from branchwork.runtime.config import Config, ConfigError, Hardware, ModelSize, cores, parse, resolve
from branchwork.runtime.execution.drafting import DraftModel, same_vocabulary
from branchwork.runtime.execution.memory import free_memory
from branchwork.runtime.execution.runner import Pending, Runner, bytes_per_page, kv_dtype, pick_device, set_threads
from branchwork.runtime.execution.threads import pick_threads
from branchwork.runtime.grammar.compiled import prepare
from branchwork.runtime.grammar.pool import Compiler
from branchwork.runtime.grammar.recipe import Options
from branchwork.runtime.grammar.vocabulary import Vocabulary, encoder
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.loading.tokenizer import eos_ids, load_tokenizer, token_bytes
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.models.registry import load_model, load_spec
from branchwork.runtime.models.size import in_layers, parameters
from branchwork.runtime.plan import Plan, Result, Row
from branchwork.runtime.scheduler.scheduler import Scheduler
from branchwork.runtime.speculative.cost import measured
from branchwork.runtime.speculative.draft_model import ModelDrafter, timed
from branchwork.runtime.speculative.lookup import Lookup
from branchwork.runtime.speculative.speculator import Speculator

PROMPT = 32  # tokens of the step that stands for prompts when numbers of threads are compared
MAX_INBOX = 10_000  # messages taken between two steps: a flood of requests may not starve the running ones


class Hands(Protocol):
    """What the loop needs of execution: start a step; its Pending gives the Result."""

    def launch(self, plan: Plan) -> Pending: ...


class Channel:
    """The engine's end of the pipe to its gateway; also notices when the gateway is gone (end of standard input)."""

    def __init__(self, endpoint: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(sys.stdin.fileno(), zmq.POLLIN)

    def watch(self, descriptor: int) -> None:
        """`receive` returns, with nothing perhaps, when this descriptor can be read."""
        self._poller.register(descriptor, zmq.POLLIN)

    def receive(self, wait: bool) -> list[wire.ToEngine]:
        """All messages that are here; waits for one when `wait`. A gateway that has gone reads as Stop."""
        ready = dict(self._poller.poll(None if wait else 0))
        messages: list[wire.ToEngine] = []
        while len(messages) < MAX_INBOX:
            try:
                messages += wire.decode_to_engine(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            messages.append(wire.Stop())
        return messages

    def send(self, messages: list[wire.FromEngine]) -> None:
        if messages:
            self._socket.send(wire.encode(messages))

    def close(self) -> None:
        self._socket.close()
        zmq.Context.instance().term()


class Engine:
    """THE loop. Nothing that a request asks for may raise in here; a failed step fails its requests and goes on."""

    def __init__(self, scheduler: Scheduler, hands: Hands) -> None:
        self._scheduler = scheduler
        self._hands = hands
        self._filler = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._busy = self._stepping = 0.0  # seconds: of the loop without its waiting, and of the steps in it

    def run(
        self, receive: Callable[[bool], list[wire.ToEngine]], send: Callable[[list[wire.FromEngine]], None]
    ) -> None:
        """Serve until a Stop message. Blocks in `receive` only when there is nothing to compute."""
        while True:
            answers: list[wire.FromEngine] = []
            messages = receive(self._scheduler.idle)
            begun = time.perf_counter()
            for message in messages:
                if isinstance(message, wire.Stop):
                    return
                answers += self._take(message)
            answers += self._scheduler.compiled()
            send(answers)
            plan = self._scheduler.plan()
            if plan is not None:
                send(self._execute(plan))
            self._busy += time.perf_counter() - begun

    def _execute(self, plan: Plan) -> list[wire.FromEngine]:
        begun = time.perf_counter()
        try:
            result = self._step(plan)
        except Exception as error:  # the step's requests end with the cause; the engine and its other requests go on
            traceback.print_exc()
            return [*self._scheduler.fail_all("engine_error", f"{type(error).__name__}: {error}")]
        self._stepping += time.perf_counter() - begun
        return [*self._scheduler.commit(plan, result)]

    def _step(self, plan: Plan) -> Result:
        """Run a plan; the masks of constrained rows are filled while the forward runs, others cost nothing."""
        if not any(row.masked for row in plan.rows):
            return self._hands.launch(plan).collect()
        filling = self._filler.submit(self._scheduler.masks, plan)
        try:
            pending = self._hands.launch(plan)
        finally:
            masks = filling.result()
        return pending.collect() if masks is None else pending.collect(*masks)

    def _take(self, message: wire.ToEngine) -> list[wire.FromEngine]:
        if isinstance(message, (wire.Submit, wire.Score)):
            return [*self._scheduler.add(message)]
        if isinstance(message, wire.Cancel):
            return [*self._scheduler.cancel(message.id)]
        if isinstance(message, wire.Ask):
            return [wire.Answer(message.number, self._answer(message.what))]
        return []

    def _answer(self, what: str) -> dict[str, float | int | str]:
        if what == "flush_cache":
            return {"freed": self._scheduler.flush()}
        if what == "check":
            try:
                self._scheduler.check()
            except AssertionError as error:
                return {"fault": str(error)}
        return {**self._scheduler.stats(), "busy_s": self._busy, "step_s": self._stepping}


def limits_of(config: Config) -> Options:
    """What compiling a constraint may take."""
    return Options(
        backend=config.grammar_backend,
        dfa_seconds=min(Options().dfa_seconds, config.grammar_seconds),
        seconds=config.grammar_seconds,
        memory=int(config.grammar_memory * 2**30),
    )


def draft_of(config: Config, directory: Path, tokens: list[bytes], device: str) -> Decoder | None:
    """The smaller model that guesses for the one in `directory`, if one is asked for.

    Raises LoadError, also for one with another vocabulary than `tokens`.
    """
    if not config.draft_model or "model" not in config.guessers:
        return None
    path = find_model(config.draft_model)
    same_vocabulary(directory, tokens, path, load_spec(path).vocab)
    return load_model(path, dtype=config.dtype, device=device)


def most_tokens(config: Config) -> int:
    """Tokens of the largest step that fits an empty pool."""
    return min(config.pages * config.page_size, config.budget)


def probe(config: Config, runner: Hands, tokens: int, draft: int = 0) -> None:
    """One step of so many tokens of one row, to be timed while no page is anybody's."""
    pages = range(-(-tokens // config.page_size))
    row = Row(-1, 0, [0] * tokens, pages, wire.Shape(temperature=0.0), position=1, draft=draft)
    runner.launch(Plan(0, (row,))).collect()


def threads_of(config: Config, runner: Hands, cores: int) -> tuple[int, str]:
    """Settle the number of CPU threads; with a line that says why it is that."""
    if config.threads:
        set_threads(config.threads)
        return config.threads, f"threads: {config.threads}, as asked for"

    def forward(tokens: int) -> None:
        probe(config, runner, tokens)

    return pick_threads(cores, min(PROMPT, most_tokens(config)), set_threads, forward, time.perf_counter)


def speculator_of(config: Config, runner: Hands, draft: Decoder | None = None, vocab: int = 0) -> Speculator:
    """Who guesses tokens, and what a step costs here: measured now, while no page is anybody's. vocab: of the main
    model, for its draft."""
    if not config.guessers:
        return Speculator(grammar=False)

    def verify(tokens: int) -> None:
        probe(config, runner, tokens, draft=tokens - 1)

    model = None
    if draft is not None:
        small = DraftModel(draft, config.pages, config.page_size, vocab, config.kv_dtype)
        each = timed(small, config.pages, config.page_size)
        model = ModelDrafter(small, config.pages, config.page_size, draft.spec.context, each)
    drafters = (Lookup(),) if "lookup" in config.guessers else ()
    return Speculator(
        drafters, measured(verify, time.perf_counter, most_tokens(config)), "grammar" in config.guessers, model
    )


class Built(NamedTuple):
    """compiled: a descriptor that can be read when constraints have been compiled. notes: what was decided, and why."""

    engine: Engine
    ready: wire.Ready
    compiled: int
    notes: list[str]


def build(config: Config, directory: Path, say: Callable[[str, float], None]) -> Built:
    """Everything an engine consists of, from a resolved model directory.

    Raises LoadError and ConfigError. `say(stage, fraction)` hears of progress.
    """
    device = pick_device(config.device)
    say("loading weights", 0.0)
    model = load_model(
        directory,
        dtype=config.dtype,
        device=device,
        quantize=config.quantize,
        progress=lambda part: say("loading weights", part),
    )
    spec = model.spec
    tokenizer = load_tokenizer(directory)
    tokens = token_bytes(directory, tokenizer)[: spec.vocab]  # ids that the model cannot draw are not its vocabulary
    draft = draft_of(config, directory, tokens, device)
    models = [model] if draft is None else [model, draft]  # the draft's KV lies under the same page numbers
    size = ModelSize(
        context=spec.context,
        page_bytes=sum(
            bytes_per_page(each.spec, config.page_size, kv_dtype(config.kv_dtype, each.dtype)) for each in models
        ),
        weight_bytes=sum(each.weight_bytes for each in models),
    )
    hardware = Hardware(device=device, cores=cores(), memory=free_memory(model.device))
    config, decided = resolve(config, hardware, size)
    notes = [*model.notes, *decided]
    runner = Runner.build(model, pages=config.pages, page_size=config.page_size, kv=config.kv_dtype)
    threads, why = threads_of(config, runner, hardware.cores)
    notes.append(why)
    say("preparing constraints", 0.0)
    ends = eos_ids(directory, tokenizer)
    vocabulary = Vocabulary.of(tokens, ends, encoder(tokenizer))
    prepare(vocabulary)  # seconds for a large one; workers start with the first constraint
    compiler = Compiler(vocabulary, limits_of(config))
    scheduler = Scheduler(
        PrefixCache(config.pages, config.page_size),
        tokens,
        budget=config.budget,
        max_running=config.max_running,
        context=config.context,
        queue_limit=config.queue_limit,
        policy=config.policy,
        grammars=compiler,
        eos=ends,
        speculator=speculator_of(config, runner, draft, spec.vocab),
    )
    ready = wire.Ready(
        pages=config.pages,
        page_size=config.page_size,
        context=config.context,
        device=device,
        family=spec.family,
        vocab=spec.vocab,
        quantization=model.quantization,
        weight_bytes=model.weight_bytes,
        kv_bytes=config.pages * size.page_bytes,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=parameters(spec),
        in_layers=in_layers(spec),
        read_bytes=model.read_bytes,
        threads=threads,
    )
    return Built(Engine(scheduler, runner), ready, compiler.fileno(), notes)


def main() -> None:
    """Entry of the process. The supervisor starts it with the thread environment already set."""
    parser = argparse.ArgumentParser(prog="branchwork.runtime.engine")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--option", action="append", default=[])
    arguments = parser.parse_args()
    channel = Channel(arguments.endpoint)
    try:
        built = build(
            parse(arguments.option),
            arguments.directory,
            lambda stage, fraction: channel.send([wire.Loading(stage, fraction)]),
        )
    except (LoadError, ConfigError) as error:
        channel.send([wire.Broken(getattr(error, "code", "config"), str(error))])
    else:
        for note in built.notes:
            print(f"engine: {note}", file=sys.stderr, flush=True)
        gc.collect()
        gc.freeze()  # what is here stays: collections between steps need not look at it again
        channel.watch(built.compiled)
        channel.send([built.ready])
        built.engine.run(channel.receive, channel.send)
    finally:
        channel.close()


if __name__ == "__main__":
    main()
