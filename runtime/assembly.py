"""An engine process: the composition root of the brain and the hands, and the entry that runs their loop.

Knows: Config (the only reader below the gateway), every room's constructor. Must not know: text, clients, programs.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from branchwork.runtime import wire
from branchwork.runtime.cache.prefix_cache import PrefixCache
from branchwork.runtime.config import Config, ConfigError, Hardware, ModelSize, cores, on_device, parse, resolve
from branchwork.runtime.engine import Channel, Engine, Hands
from branchwork.runtime.execution import warm as warming
from branchwork.runtime.execution.drafting import DraftModel, same_vocabulary
from branchwork.runtime.execution.encoding import EncodingRunner
from branchwork.runtime.execution.memory import free_memory, working_memory
from branchwork.runtime.execution.runner import Runner, bytes_per_page, kv_dtype, pick_device, set_threads
from branchwork.runtime.execution.threads import pick_threads
from branchwork.runtime.execution.warm import warm
from branchwork.runtime.grammar.compiled import prepare
from branchwork.runtime.grammar.pool import Compiler
from branchwork.runtime.grammar.recipe import Options
from branchwork.runtime.grammar.vocabulary import Vocabulary, encoder
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.loading.pooling import load_pooling
from branchwork.runtime.loading.tokenizer import eos_ids, load_tokenizer, token_bytes
from branchwork.runtime.loading.weights import choose_dtype
from branchwork.runtime.models.bert import parameters as encoder_parameters
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.models.registry import is_encoder, load_encoder, load_model, load_spec
from branchwork.runtime.models.size import in_layers, parameters
from branchwork.runtime.models.spec import ModelSpec
from branchwork.runtime.plan import Plan, Row
from branchwork.runtime.scheduler.encoding import EncodingScheduler
from branchwork.runtime.scheduler.planner import GUESSES
from branchwork.runtime.scheduler.scheduler import Scheduler
from branchwork.runtime.speculative.cost import measured
from branchwork.runtime.speculative.draft_model import ModelDrafter, timed
from branchwork.runtime.speculative.lookup import Lookup
from branchwork.runtime.speculative.speculator import Speculator

PROMPT = 32  # tokens of the step that stands for prompts when numbers of threads are compared


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
    runner.launch(Plan(0, (row,))).sample().collect()


def threads_of(config: Config, forward: Callable[[int], None], most: int, cores: int) -> tuple[int, str]:
    """Settle the number of CPU threads; with a line that says why it is that. forward: a step of so many tokens, at
    most `most`."""
    if config.device != "cpu":
        return config.threads or 1, "threads: not measured, the device computes"
    if config.threads:
        set_threads(config.threads)
        return config.threads, f"threads: {config.threads}, as asked for"
    return pick_threads(cores, min(PROMPT, most), set_threads, forward, time.perf_counter)


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
    """compiled: a descriptor that can be read when constraints have been compiled, -1 for none. notes: what was
    decided, and why."""

    engine: Engine
    ready: wire.Ready
    compiled: int
    notes: list[str]


def build(config: Config, directory: Path, say: Callable[[str, float], None]) -> Built:
    """Everything an engine consists of, from a resolved model directory.

    Raises LoadError and ConfigError. `say(stage, fraction)` hears of progress.
    """
    device = pick_device(config.device)
    config = on_device(config, device)
    say("loading weights", 0.0)
    if is_encoder(directory):
        return build_encoder(config, directory, say)
    aside = ThreadPoolExecutor(2, thread_name_prefix="aside")
    reading = aside.submit(_tokens, directory, load_spec(directory).vocab)  # takes as long as small weights
    compiling = aside.submit(compile_ahead, config, load_spec(directory)) if device != "cpu" else None
    model = load_model(
        directory,
        dtype=config.dtype,
        device=device,
        quantize=config.quantize,
        progress=lambda part: say("loading weights", part),
    )
    spec = model.spec
    tokens, ends, vocabulary = reading.result()
    notes = [] if compiling is None else compiling.result()
    aside.shutdown()
    draft = draft_of(config, directory, tokens, device)
    models = [model] if draft is None else [model, draft]  # the draft's KV lies under the same page numbers
    size = ModelSize(
        context=spec.context,
        page_bytes=sum(
            bytes_per_page(each.spec, config.page_size, kv_dtype(config.kv_dtype, each.dtype, each.device))
            for each in models
        ),
        weight_bytes=sum(each.weight_bytes for each in models),
    )
    graphs = config.graphs == "auto" and device != "cpu"
    memory = free_memory(model.device)
    if device != "cpu":
        draws = config.max_running + (GUESSES if config.guessers else 0)
        memory = max(memory - working_memory(spec, model.dtype, config.budget, draws, graphs), 0)
    hardware = Hardware(device=device, cores=cores(), memory=memory)
    config, decided = resolve(config, hardware, size)
    notes += [*model.notes, *decided]
    least = 0 if device == "cpu" else min(config.pages, -(-config.context // config.page_size))
    runner = Runner.build(
        model,
        pages=config.pages,
        page_size=config.page_size,
        kv=config.kv_dtype,
        least=least,
        graphs=graphs,
        rows=config.max_running,
    )
    notes += runner.notes
    config = msgspec.structs.replace(config, pages=runner.pool.pages)
    if runner.pool.scratch is not None:
        say("compiling kernels", 0.0)
        warm(runner, runner.pool.scratch, config.page_size, config.budget, config.max_running, spec.vocab)
    threads, why = threads_of(config, partial(probe, config, runner), most_tokens(config), hardware.cores)
    notes.append(why)
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
    ready = _ready(config, model, config.pages * size.page_bytes, threads)
    overlap = config.overlap == "on" or (config.overlap == "auto" and device != "cpu")
    return Built(Engine(scheduler, runner, overlap), ready, compiler.fileno(), notes)


def build_encoder(config: Config, directory: Path, say: Callable[[str, float], None]) -> Built:
    """As `build`, of a model that makes vectors alone. config: what depends on the device is filled in."""
    model = load_encoder(
        directory,
        dtype=config.dtype,
        device=config.device,
        quantize=config.quantize,
        progress=lambda part: say("loading weights", part),
    )
    spec, runner = model.spec, EncodingRunner(model)
    longest = min(spec.context, load_pooling(directory).longest or spec.context)
    context = min(config.context or longest, spec.context)

    def forward(tokens: int) -> None:
        runner.launch(Plan(0, (Row(-1, 0, [0] * tokens, (), state="last"),))).sample().collect()

    threads, why = threads_of(config, forward, context, cores())
    scheduler = EncodingScheduler(
        vocab=spec.vocab,
        context=context,
        budget=config.budget,
        max_running=config.max_running,
        queue_limit=config.queue_limit,
    )
    numbers = encoder_parameters(spec)
    ready = wire.Ready(
        pages=0,
        page_size=1,
        context=context,
        device=model.device.type,
        family=spec.family,
        vocab=spec.vocab,
        weight_bytes=model.weight_bytes,
        dtype=str(model.dtype).removeprefix("torch."),
        threads=threads,
        parameters=numbers,
        in_layers=numbers - (spec.vocab + spec.positions + spec.kinds) * spec.hidden,
        read_bytes=model.weight_bytes,
        generates=False,
    )
    return Built(Engine(scheduler, runner), ready, -1, [why])


def compile_ahead(config: Config, spec: ModelSpec) -> list[str]:
    """Compile a GPU's kernels while the weights are read; a note where that cannot be done ahead."""
    device = torch.device(config.device)
    dtype = choose_dtype(config.dtype, spec.stored, device)
    try:
        warming.compile_ahead(spec, dtype, device, config.page_size, kv_dtype(config.kv_dtype, dtype, device))
    except torch.OutOfMemoryError:
        return ["kernels are compiled after the weights are read: there is no memory to do it meanwhile"]
    return []


def _tokens(model: Path, vocab: int) -> tuple[list[bytes], tuple[int, ...], Vocabulary]:
    """The tokens' bytes, the ids that end an answer, and the vocabulary ready for constraints, whose workers start with
    the first one. Ids that the model cannot draw, from `vocab` on, are not its vocabulary."""
    tokenizer = load_tokenizer(model)
    tokens, ends = token_bytes(model, tokenizer)[:vocab], eos_ids(model, tokenizer)
    vocabulary = Vocabulary.of(tokens, ends, encoder(tokenizer))
    prepare(vocabulary)  # seconds for a large one
    return tokens, ends, vocabulary


def _ready(config: Config, model: Decoder, kv_bytes: int, threads: int) -> wire.Ready:
    spec = model.spec
    return wire.Ready(
        pages=config.pages,
        page_size=config.page_size,
        context=config.context,
        device=model.device.type,
        family=spec.family,
        vocab=spec.vocab,
        quantization=model.quantization,
        weight_bytes=model.weight_bytes,
        kv_bytes=kv_bytes,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=parameters(spec),
        in_layers=in_layers(spec),
        read_bytes=model.read_bytes,
        threads=threads,
    )


def main() -> None:
    """Entry of the process. The supervisor starts it with the thread environment already set."""
    parser = argparse.ArgumentParser(prog="branchwork.runtime.assembly")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--option", action="append", default=[])
    arguments = parser.parse_args()
    for name in (signal.SIGINT, signal.SIGTERM):  # the gateway ends this process, after what is under way
        signal.signal(name, signal.SIG_IGN)
    channel = Channel(arguments.endpoint)
    gc.disable()  # what is made now stays
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
        gc.freeze()  # collections between steps need not look at what is here
        gc.enable()
        if built.compiled >= 0:
            channel.watch(built.compiled)
        channel.send([built.ready])
        built.engine.run(channel.receive, channel.send)
    finally:
        channel.close()


if __name__ == "__main__":
    main()
