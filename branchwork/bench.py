"""`branchwork bench`: tokens per second of prompts, of generation, of batches, and of batches that share a prompt.

Knows: the language's public surface, the model's tokenizer, the clock. Must not know: how rows are printed, the engine.
"""

from __future__ import annotations

import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import branchwork as bw
from branchwork import bench_machine
from branchwork.bench_machine import Rates
from branchwork.runtime.gateway.text import Texts

START = 4  # tokens of a prompt that is only there to be gone on from, and of what follows a shared one
COMMON = 512  # tokens of a shared prompt where no prompt's length is given
_WORDS = 2000  # different words at most; a prompt that begins with another word reuses nothing
_TRIES = 100


@bw.function
def _complete(s: Any, text: str, tokens: int) -> None:
    s += text + bw.gen("out", max_tokens=tokens, temperature=0, ignore_eos=True)


class Workload(NamedTuple):
    """`streams` prompts of `prompt` tokens at once, each continued by `generate` tokens; shared: they differ only in
    START tokens after those. Without generate the prompt's tokens are what counts, otherwise the generated ones."""

    name: str
    prompt: int
    generate: int
    streams: int = 1
    shared: bool = False


class Row(NamedTuple):
    """What one workload came to. Rates are tokens a second over the repeats: mean, standard deviation, extremes.

    bandwidth: share of the measured read bandwidth that weights and KV were read at. matrix: share of the measured
    matrix rate that the prompt's products ran at. None where a workload is not of that kind.
    """

    model: str
    size: int  # bytes of weights
    parameters: int
    type: str
    device: str
    threads: int
    test: str
    rate: float
    deviation: float
    low: float
    high: float
    bandwidth: float | None
    matrix: float | None
    prompt_tokens: int  # of one stream
    generated_tokens: int  # of one stream
    streams: int
    reused: float  # share of the prompt tokens that was in the cache
    forwards: int  # of the engine, for one round
    samples: tuple[float, ...]


def workloads(
    prompts: Sequence[int], generate: Sequence[int], batches: Sequence[int], shared: Sequence[int]
) -> list[Workload]:
    """Every prompt and generation of these lengths; batches and shared prompts of the longest ones. 0 leaves out, and
    without tokens to generate there are no batches either.

    Raises ValueError when nothing is left to measure.
    """
    longest, most = max(prompts, default=0), max(generate, default=0)
    if not most:
        batches = shared = ()
    found = [Workload(f"pp{n}", n, 0) for n in prompts if n]
    found += [Workload(f"tg{n}", START, n) for n in generate if n]
    found += [Workload(f"tg{most} x{n}", START, most, n) for n in batches if n]
    common = longest or COMMON
    found += [Workload(f"shared pp{common} tg{most} x{n}", common, most, n, shared=True) for n in shared if n]
    if not found:
        raise ValueError("nothing to measure; give lengths to --prompt, --generate, --batch or --shared")
    return found


class Prompts:
    """Texts of an exact number of tokens that no run has seen before: random words of the model's own vocabulary."""

    def __init__(self, model: Path, seed: int = 0) -> None:
        self._texts = Texts(model)
        self._draw = random.Random(seed)
        spelled = {token.decode() for token in self._texts.token_bytes if re.fullmatch(rb" [a-z]{2,10}", token)}
        known = sorted(spelled)
        self._draw.shuffle(known)
        self._words = [word for word in known[:_WORDS] if self.count(f" a{word}") == self.count(" a") + 1]
        if len(self._words) < 50:  # a vocabulary of letters
            self._words = list("abcdefghijklmnopqrstuvwxyz")

    def count(self, text: str) -> int:
        """Tokens of a whole prompt, with the start token that the model expects."""
        return len(self._texts.begin(self._texts.encode([_Piece(text)])))

    def exactly(self, tokens: int) -> str:
        """Raises ValueError for a vocabulary in which no words add up to it."""
        words = self._draw.choices(self._words, k=tokens)
        for _ in range(_TRIES):
            lacking = tokens - self.count("".join(words))
            if not lacking:
                return "".join(words)
            words = words + self._draw.choices(self._words, k=lacking) if lacking > 0 else words[: lacking or None]
        raise ValueError(f"no text of exactly {tokens} tokens was found for this tokenizer")


class _Piece(NamedTuple):
    text: str
    special: bool = False
    ids: bytes = b""


class Round(NamedTuple):
    """One run of a workload, summed over its streams but for `forwards`, which they share."""

    seconds: float
    prompt: int
    reused: int
    made: int
    forwards: int


def measure(
    runtime: bw.Runtime,
    model: Path,
    wanted: Sequence[Workload],
    repeats: int,
    progress: Callable[[str, float], None],
) -> tuple[list[Row], Rates]:
    """Run every workload once to warm up and then `repeats` times, taking turns. progress hears (what, fraction).

    model: the directory or file whose tokenizer the runtime uses. Raises ValueError for a workload that is longer
    than the model's context; ProgramError.
    """
    for work in wanted:
        total = work.prompt + work.generate + START * work.shared
        if total > runtime.model.context:
            raise ValueError(f"{work.name} takes {total} tokens, and the context has {runtime.model.context}")
    facts = runtime.stats()
    progress("the machine", 0.0)
    rates = bench_machine.measure(facts["threads"], facts["read_bytes"], facts["dtype"])
    prompts = Prompts(model)
    rounds: list[list[Round]] = [[] for _ in wanted]
    for turn in range(repeats + 1):
        for number, work in enumerate(wanted):
            progress(work.name, (turn * len(wanted) + number) / ((repeats + 1) * len(wanted)))
            done = _round(runtime, _prompts(prompts, work), max(1, work.generate))
            if turn:
                rounds[number].append(done)
    progress("done", 1.0)
    return [_row(facts, rates, work, done) for work, done in zip(wanted, rounds)], rates


def _prompts(prompts: Prompts, work: Workload) -> list[str]:
    if not work.shared:
        return [prompts.exactly(work.prompt) for _ in range(work.streams)]
    common = prompts.exactly(work.prompt)
    return [common + prompts.exactly(START) for _ in range(work.streams)]


def _round(runtime: bw.Runtime, texts: list[str], generate: int) -> Round:
    begun = time.perf_counter()
    states = _complete.run_batch([{"text": text, "tokens": generate} for text in texts], backend=runtime)
    metas = [state.meta("out") for state in states]
    seconds = time.perf_counter() - begun
    prompt, reused, made = (
        sum(meta[key] for meta in metas) for key in ("prompt_tokens", "cached_tokens", "completion_tokens")
    )
    return Round(seconds, prompt, reused, made, max(meta["forwards"] for meta in metas))


def _row(facts: dict[str, Any], rates: Rates, work: Workload, rounds: Sequence[Round]) -> Row:
    speeds = [(done.made if work.generate else done.prompt) / done.seconds for done in rounds]
    read = statistics.mean(_bytes_read(facts, work, done) / done.seconds for done in rounds) / rates.read
    products = 2 * facts["in_layers"] * statistics.mean(speeds) / rates.matrix
    first = rounds[0]
    return Row(
        model=facts["model"],
        size=facts["weight_bytes"],
        parameters=facts["parameters"],
        type=facts["weights"],
        device=facts["device"],
        threads=facts["threads"],
        test=work.name,
        rate=statistics.mean(speeds),
        deviation=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        low=min(speeds),
        high=max(speeds),
        bandwidth=read if work.generate and not work.shared else None,
        matrix=products if not work.generate else None,
        prompt_tokens=first.prompt // work.streams,
        generated_tokens=work.generate,
        streams=work.streams,
        reused=sum(done.reused for done in rounds) / sum(done.prompt for done in rounds),
        forwards=first.forwards,
        samples=tuple(speeds),
    )


def _bytes_read(facts: dict[str, Any], work: Workload, done: Round) -> float:
    """By the forwards of a generation: all weights, and the KV of every stream, which grows to prompt + generate."""
    token: float = facts["kv_bytes"] / (facts["pages"] * facts["page_size"])
    context = work.prompt + work.generate / 2
    weights: int = facts["read_bytes"]
    return done.forwards * (weights + work.streams * context * token)
