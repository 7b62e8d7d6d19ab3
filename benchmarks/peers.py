"""The same weights and workloads through Branchwork, llama.cpp's server and transformers, side by side in one run.

Knows: the public interface, the peers' own programs, the clock. Must not know: runtime internals.
Each peer is a process started and stopped here, with the same threads; they take turns (A B C A B C), never at once.
Usage: python benchmarks/peers.py [--quick] [--model random-450m|sapling|DIRECTORY] [--bits bf16,int8,int4]
       [--only NAMES] [--peers NAMES] [--repeats N] [--llama-server PATH] [--json FILE] [--chart FILE.png]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import peers_chart
import peers_llama
import peers_transformers
from peers_models import BITS, RANDOM, gguf_file, model_directory, read_once
from peers_processes import Missing
from peers_report import Cell, Report
from peers_runs import dry_run, run_program, time_llama, time_ours, time_transformers, try_llama
from peers_workloads import FULL, QUICK, WORKLOADS, Counts, Workload, prose
from tokenizers import Tokenizer

import branchwork as bw

CONTEXT = 2304  # tokens of one sequence: the longest transcript of any workload and some room
QUICK_SECONDS = 420  # after which --quick begins no further round
QUICK_LAST = 600  # seconds, after which --quick leaves out the slowest peer
ONE_THREAD = 32 * 2**20  # bytes of weights
PEERS = ("llama.cpp", "transformers")
_ALWAYS = (
    "tokens/s are generated tokens; of prompts in prefill and select, which generate none",
    "llama.cpp, select: each ending is forced by a grammar of its token ids, n_probs=1 giving each token's probability",
    "transformers: bfloat16 always, sdpa, one left-padded batch a round; select is one forward over all endings",
)
SETTINGS = {
    False: _ALWAYS,
    True: ("Branchwork does not guess ahead here: a random model repeats itself, which would flatter it", *_ALWAYS),
}  # by whether the model is the random one
FEWER = ("stream", "prefill", "streams", "few-shot")  # with int8 and int4, unless --all-bits
FEWER_QUICK = ("stream",)


class Bench:
    """One run of the script: what was asked, the model's files, and what has been measured so far."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self._begun = time.monotonic()
        self.directory = model_directory(given.model)
        self.threads = given.threads or fitting_threads(self.directory)
        self.tokenizer = Tokenizer.from_file(str(self.directory / "tokenizer.json"))
        self.counts = fitted(QUICK if given.quick else FULL, self.tokenizer)
        if given.counts:
            self.counts = self.counts._replace(**dict(given.counts))
        self.repeats = given.repeats or (2 if given.quick else 5)
        self.report = Report(given.model, self.threads, self.repeats)
        for line in SETTINGS[given.model == RANDOM]:
            self.report.note(line)
        self._lanes: dict[tuple[str, int], bool] = {}  # of llama.cpp: (workload, port) -> whether lanes were quicker
        self.found = self._find_llama()

    def _find_llama(self) -> peers_llama.Found | None:
        if "llama.cpp" not in self.given.peers:
            return None
        try:
            found = peers_llama.find_server(self.given.llama_server)
        except Missing as why:
            self.report.note(f"llama.cpp is left out: {why}")
            return None
        self.report.versions.append(peers_llama.version(found))
        if not found.whole:
            self.report.note(
                "llama.cpp runs as llama_cpp.server, which answers one request at a time; the C++ server is "
                f"several times quicker with many: {peers_llama.HOW_TO_GET}"
            )
        return found

    def run(self) -> None:
        for bits in self.given.bits:
            names = self.given.only
            if bits != "bf16" and not self.given.all_bits:
                names = [name for name in names if name in (FEWER_QUICK if self.given.quick else FEWER)]
            chosen = [workload for workload in WORKLOADS if workload.name in names]
            with ExitStack() as stack:
                self._run_bits(stack, bits, chosen)

    def _run_bits(self, stack: ExitStack, bits: str, chosen: list[Workload]) -> None:
        runtime = self._start_ours(stack, bits)
        peers = self._start_peers(stack, bits)
        for repeat in range(self.repeats if runtime or peers else 0):
            if self.given.quick and repeat and time.monotonic() - self._begun > QUICK_SECONDS:
                self.report.note(f"{bits}: only {repeat} of {self.repeats} rounds, to end in time")
                break
            for workload in chosen:
                rows = workload.rows(repeat, self.counts)
                cell = self.report.cell(workload, bits)
                cell.expect(dry_run(workload, rows, self.tokenizer))
                if runtime is not None:
                    time_ours(runtime, workload, rows, cell)
                for peer in peers:
                    if not (peer.name == "transformers" and self._hurried(repeat, workload)):
                        self._run_peer(peer, workload, repeat, cell)
            print(f"{bits}: round {repeat + 1} of {self.repeats} done", file=sys.stderr)

    def _hurried(self, repeat: int, workload: Workload) -> bool:
        """Whether --quick has no time for the slowest peer, which runs once at most."""
        if not self.given.quick:
            return False
        if not repeat and time.monotonic() - self._begun < QUICK_LAST:
            return False
        if not repeat:
            self.report.note(f"transformers does not run {workload.name}: --quick has to end in time")
        return True

    def _run_peer(self, peer: Any, workload: Workload, repeat: int, cell: Cell) -> None:
        if peer.name not in workload.aims:
            return
        rows = workload.rows(repeat, self.counts)
        try:
            if peer.name == "transformers":
                time_transformers(peer, workload, rows, cell)
            elif (workload.name, peer.port) in self._lanes or not workload.forked:
                time_llama(peer, workload, rows, cell, self._lanes.get((workload.name, peer.port), False))
            else:
                others = workload.rows(1000 + repeat, self.counts)
                self._lanes[workload.name, peer.port] = try_llama(peer, workload, rows, others, cell)
        except Missing as why:
            self.report.note(f"{peer.name} does not run {workload.name}: {why}")

    # --- starts

    def _start_ours(self, stack: ExitStack, bits: str) -> bw.Runtime | None:
        options: dict[str, Any] = {"threads": self.threads}
        if self.given.model == RANDOM:
            options["speculative"] = "off"
        path = gguf_file(self.directory, bits)
        tries: list[tuple[Path, dict[str, Any]]] = [(path, options)]
        if bits == "bf16":
            tries.append((self.directory, {**options, "dtype": "bfloat16"}))
        for model, more in tries:
            read_once(model)
            begun = time.perf_counter()
            try:
                runtime = stack.enter_context(bw.Runtime(str(model), **more))
            except bw.BackendError as error:
                said = " ".join(str(error).split()).rpartition("did not start: ")[2]
                self.report.note(f"Branchwork does not run {model.name}: {said[:160]}")
                continue
            run_program(runtime, WORKLOADS[0], [{"text": "The first", "tokens": 1}])
            self.report.started(bits, "Branchwork", time.perf_counter() - begun)
            return runtime
        return None

    def _start_peers(self, stack: ExitStack, bits: str) -> list[Any]:
        peers: list[Any] = []
        if self.found is not None:
            path = gguf_file(self.directory, bits)
            read_once(path)
            begun = time.perf_counter()
            command = peers_llama.arguments(self.found, path, self.threads, CONTEXT) + self.given.llama_args.split()
            self.report.note(f"llama.cpp's settings: {' '.join(command[1:]).replace(str(path), path.name)}")
            served = peers_llama.served(command, self.found.whole, self.tokenizer)
            self._enter(stack, served, "llama.cpp", bits, begun, peers)
        if "transformers" in self.given.peers and bits == "bf16":
            read_once(self.directory)
            begun = time.perf_counter()
            worker = peers_transformers.served(self.directory, self.threads, self.tokenizer)
            self._enter(stack, worker, "transformers", bits, begun, peers)
            self.report.versions.extend(
                f"{name} {number}"
                for peer in peers
                if peer.name == "transformers"
                for name, number in peer.versions.items()
            )
        return peers

    def _enter(self, stack: ExitStack, served: Any, name: str, bits: str, begun: float, peers: list[Any]) -> None:
        try:
            peers.append(stack.enter_context(served))
            self.report.started(bits, name, time.perf_counter() - begun)
        except Missing as why:
            self.report.note(f"{name} is left out: {why}")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises SystemExit naming what is not known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument("--model", default=RANDOM, help=f"{RANDOM} (made here), sapling, or a directory")
    parser.add_argument("--bits", type=_some(BITS), default=list(BITS), help=",".join(BITS))
    parser.add_argument("--all-bits", action="store_true", help="all workloads with int8 and int4 too, not only some")
    parser.add_argument("--only", type=_some(names), default=names, help=",".join(names))
    parser.add_argument("--peers", type=_some(PEERS), default=list(PEERS), help=",".join(PEERS))
    parser.add_argument("--repeats", type=int, default=0, help="rounds; 0: 5, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="smaller counts, fewer rounds: within 15 minutes")
    parser.add_argument(
        "--threads", type=int, default=0, help="of each side; 0: one for each core, one in all for a model under 32 MiB"
    )
    parser.add_argument("--llama-server", default="", metavar="PATH")
    parser.add_argument("--llama-args", default="", metavar="'-kvu ...'", help="more for its command line; they win")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--chart", type=Path, metavar="FILE.png")
    parser.add_argument("--count", dest="counts", type=_count, action="append", metavar="NAME=N", help="for trials")
    given = parser.parse_args(arguments)
    if given.chart and importlib.util.find_spec("matplotlib") is None:
        parser.error("--chart needs matplotlib: pip install matplotlib")  # now, and not after a quarter of an hour
    return given


def _some(known: Iterable[str]) -> Callable[[str], list[str]]:
    known = tuple(known)

    def read(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not one of {', '.join(known)}")
        return text.split(",")

    return read


def _count(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in Counts._fields or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=N with one of {', '.join(Counts._fields)}")
    return name, int(number)


def fitting_threads(directory: Path) -> int:
    """One for each core; one alone for a model so small that all sides lose by waking a second."""
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return 1 if size < ONE_THREAD else len(os.sched_getaffinity(0))


def fitted(counts: Counts, tokenizer: Tokenizer) -> Counts:
    """Lengths of texts from tokens to words of this tokenizer's prose."""
    words = 400
    each = len(tokenizer.encode(prose("measure", words), add_special_tokens=False).ids) / words
    return counts._replace(prompt=int(counts.prompt / each), prefix=int(counts.prefix / each))


def main(arguments: list[str] | None = None) -> None:
    given = parsed(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every process started here is ended
    bench = Bench(given)
    try:
        bench.run()
    except KeyboardInterrupt:
        bench.report.note("interrupted: what follows is what was measured until then")
    bench.report.show()
    if given.json:
        bench.report.write(given.json)
    if given.chart:
        peers_chart.draw(bench.report.rows(), given.chart, bench.report.title)


if __name__ == "__main__":
    main()
