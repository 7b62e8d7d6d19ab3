"""What constrained decoding costs and whether it is right: ours beside llguidance, outlines-core and xgrammar alone.

Run: python benchmarks/constraints.py [--sample N] [--limit S] [tokenizer.json ...]
Claims: compile p50 <= 8 ms, p99 <= 100 ms; mask p50 <= 10 us, p99 <= 0.5 ms, max <= 5 ms (152k tokens). Regexes, and
what a loop has to wait, are in constraint_regexes.py.

Every engine runs in a process of its own, under a time limit for each schema. An instance counts as accepted when each
token's bit is set, the engine takes the token, and the text may end after the last one; as refused, too, when the
grammar says that it is loose and its validation finds the text wrong. Memory is the peak of resident
memory while compiling, above what was there before, the compile workers' with it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import queue
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from branchwork.lang.constraint import JsonSchema
from branchwork.runtime.grammar.pool import Compiler
from branchwork.runtime.grammar.recipe import Options
from branchwork.runtime.grammar.vocabulary import Vocabulary

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared" / "data"
ENGINES = ("ours", "llguidance", "llguidance lenient", "xgrammar", "outlines-core")
SLOW = ("xgrammar", "outlines-core")  # seconds per schema: fewer of them
NOWHERE = Options(folder="")


# --- engines: adapter(schema text, vocabulary) -> (start, reported), start() -> cursor with mask, accept, ends, forced


class Cursor:
    """One text under an engine: row() -> mask words, take(token) -> bool, ends() -> bool, ahead(tail) -> forced ids."""

    def __init__(
        self,
        row: Callable[[], Any],
        take: Callable[[int], bool],
        ends: Callable[[], bool],
        ahead: Callable[[list[int]], list[int]] = lambda tail: [],
    ) -> None:
        self.row, self.take, self.ends, self.ahead = row, take, ends, ahead


Start = Callable[[], Cursor]


def ours(vocabulary: Vocabulary) -> Callable[[str], tuple[Start, bool, Any]]:
    compiler = Compiler(vocabulary, NOWHERE)
    compiler.prepare()
    numbers = count()

    def workers() -> list[int]:
        """New ones, warm: what earlier schemas left in their memory is not to be counted, nor their start."""
        while compiler._pool._idle:
            compiler._pool._idle.pop().end()
        compiler.wait(JsonSchema(f'{{"type":["array","null"],"items":{{"const":{next(numbers)}}}}}'))
        return [process.pid for process in compiler._pool._idle]

    def compile_one(schema: str) -> tuple[Start, bool, Any]:
        grammar = compiler.wait(JsonSchema(schema, whitespace="compact"))

        def start() -> Cursor:
            matcher, words = grammar.start(), np.zeros(vocabulary.words, np.int32)

            def row() -> Any:
                matcher.mask_into(words)
                return words

            return Cursor(row, lambda token: matcher.accept([token]) == 1, lambda: matcher.is_accepting, matcher.jump)

        return start, grammar.report.loose, grammar

    compile_one.workers = workers  # type: ignore[attr-defined]
    return compile_one


def llguidance(vocabulary: Vocabulary, lenient: bool) -> Callable[[str], tuple[Start, bool, Any]]:
    from llguidance import LLMatcher

    from branchwork.runtime.grammar.llg import prepare

    tokenizer = prepare(vocabulary)

    def compile_one(schema: str) -> tuple[Start, bool, Any]:
        given = {"whitespace_flexible": False, "lenient": lenient}
        prototype = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema, defaults=given), log_level=0)
        if prototype.is_error():
            raise ValueError(prototype.get_error()[:200])
        loose = bool(prototype.get_grammar_warnings())

        def start() -> Cursor:
            matcher = prototype.deep_copy()

            def row() -> Any:
                return np.frombuffer(matcher.compute_bitmask(), np.int32)

            return Cursor(
                row, matcher.consume_token, matcher.is_accepting, lambda tail: list(matcher.compute_ff_tokens())
            )

        return start, loose, None

    return compile_one


def xgrammar(vocabulary: Vocabulary) -> Callable[[str], tuple[Start, bool, Any]]:
    import xgrammar as xgr

    info = xgr.TokenizerInfo(
        vocabulary.tokens,
        vocab_type=xgr.VocabType.RAW,
        vocab_size=vocabulary.size,
        stop_token_ids=list(vocabulary.eos),
    )
    compiler = xgr.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile_one(schema: str) -> tuple[Start, bool, Any]:
        compiled = compiler.compile_json_schema(schema, any_whitespace=False, separators=(",", ":"), strict_mode=False)

        def start() -> Cursor:
            matcher = xgr.GrammarMatcher(compiled, terminate_without_stop_token=True)
            words = np.zeros((1, vocabulary.words), np.int32)

            def row() -> Any:
                if matcher.is_terminated():
                    words[:] = 0
                else:
                    matcher.fill_next_token_bitmask(words)
                return words[0]

            return Cursor(
                row, lambda token: not matcher.is_terminated() and matcher.accept_token(token), matcher.is_completed
            )

        return start, False, None

    return compile_one


def outlines(vocabulary: Vocabulary) -> Callable[[str], tuple[Start, bool, Any]]:
    import outlines_core as oc
    from outlines_core import json_schema

    tokens: dict[Any, list[int]] = {}
    for number, token in enumerate(vocabulary.tokens):
        if token:
            tokens.setdefault(token, []).append(number)
    eos = vocabulary.eos[0]
    known = oc.Vocabulary(eos, tokens)

    def compile_one(schema: str) -> tuple[Start, bool, Any]:
        index = oc.Index(json_schema.build_regex_from_schema(schema, whitespace_pattern=""), known)

        def start() -> Cursor:
            guide, words = oc.Guide(index), np.zeros(vocabulary.words, np.int32)

            def row() -> Any:
                guide.write_mask_into(words.ctypes.data, words.size, 4)
                return words

            def take(token: int) -> bool:
                try:
                    guide.advance(token, return_tokens=False)
                except ValueError:
                    return False
                return True

            return Cursor(row, take, lambda: guide.is_finished() or bool(row()[eos // 32] >> (eos % 32) & 1))

        return start, False, None

    return compile_one


def engine(name: str, vocabulary: Vocabulary) -> Callable[[str], tuple[Start, bool, Any]]:
    if name.startswith("llguidance"):
        return llguidance(vocabulary, name.endswith("lenient"))
    return {"ours": ours, "xgrammar": xgrammar, "outlines-core": outlines}[name](vocabulary)


# --- one schema under one engine (in the engine's process)


def peak(pids: list[int], reset: bool) -> int:
    """Peak resident KiB of these processes since the last reset."""
    total = 0
    for pid in pids:
        if reset:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) if found else 0
    return total


def follow(start: Start, ids: list[int], vocabulary: Vocabulary, masks: list[float]) -> tuple[bool, int]:
    """Whether the text is accepted; special tokens that were let in."""
    cursor, leaked = start(), 0
    for token in ids:
        began = time.perf_counter()
        row = cursor.row()
        masks.append(time.perf_counter() - began)
        leaked += bool((row[: vocabulary.words] & vocabulary.specials_mask & ~vocabulary.eos_mask).any())
        if not row[token // 32] >> (token % 32) & 1 or not cursor.take(token):
            return False, leaked
    return cursor.ends(), leaked


def forced(start: Start, ids: list[int]) -> tuple[int, bool]:
    """Tokens of a right text that need not be sampled; whether all of them are the canonical ones."""
    cursor, at, free = start(), 0, 0
    while at < len(ids):
        jump = cursor.ahead(ids[max(0, at - 6) : at])
        if jump and ids[at : at + len(jump)] != jump:
            return free, False
        for token in jump or ids[at : at + 1]:
            cursor.take(token)
        free += len(jump)
        at += len(jump) or 1
    return free, True


def measure(compile_one: Any, case: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    pids = [os.getpid(), *getattr(compile_one, "workers", list)()]
    ctypes.CDLL(None).malloc_trim(0)
    before = peak(pids, True)
    began = time.perf_counter()
    try:
        start, loose, grammar = compile_one(case["schema"])
        start().row()
    except (ValueError, RuntimeError, TypeError) as error:  # each engine refuses in its own way
        return {"refused": f"{type(error).__name__}: {error}"[:200], "compile": time.perf_counter() - began}
    compiled = time.perf_counter() - began
    memory = peak([pid for pid in pids if os.path.exists(f"/proc/{pid}")], False) - before
    result: dict[str, Any] = {"compile": compiled, "memory": max(memory, 0), "loose": loose, "leaked": 0}
    masks: list[float] = []
    counts = dict.fromkeys(
        ("valid", "valid_ok", "invalid", "invalid_ok", "named", "caught", "tokens", "free", "canonical"), 0
    )
    for right in ("valid", "invalid"):
        for text in case[right]:
            ids = vocabulary.encode(text.encode())
            taken, leaked = follow(start, ids, vocabulary, masks)
            result["leaked"] += leaked
            counts[right] += 1
            counts[right + "_ok"] += taken == (right == "valid")
            if taken and right == "invalid" and loose:
                counts["named"] += 1
                counts["caught"] += grammar is not None and bool(grammar.validate_text(text))
            if taken and right == "valid":
                free, canonical = forced(start, ids)
                counts["free"] += free
                counts["tokens"] += len(ids)
                counts["canonical"] += canonical
    return {**result, **counts, "masks": [round(second * 1e6, 1) for second in masks[:600]]}


def serve(name: str, tokenizer: str) -> None:
    """The engine's process: cases on stdin, results on stdout, a JSON line each."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    vocabulary = Vocabulary.from_file(tokenizer)
    compile_one = engine(name, vocabulary)
    print("{}", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(compile_one, json.loads(line), vocabulary)), file=out, flush=True)


# --- the parent


class Served:
    """An engine's process, started again after each schema that took too long."""

    def __init__(self, name: str, tokenizer: Path) -> None:
        self.command = [sys.executable, __file__, "--serve", name, str(tokenizer)]
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def _begin(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.lines = lines = queue.SimpleQueue()

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put("")

        threading.Thread(target=listen, daemon=True).start()
        if not self.lines.get(timeout=120):
            raise SystemExit(f"{self.command} does not start")
        return process

    def ask(self, case: dict[str, Any], limit: float) -> dict[str, Any]:
        self.process = self.process or self._begin()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=limit)
        except queue.Empty:
            line = ""
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self.end()
        return {"refused": "time", "compile": limit}

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def spell(value: Any, schema: Any) -> str:
    """Compact JSON, keys that the schema names first and in its order."""

    def order(value: Any, schema: Any) -> Any:
        named = schema.get("properties", {}) if isinstance(schema, dict) else {}
        if isinstance(value, dict) and isinstance(named, dict):
            keys = [key for key in named if key in value] + [key for key in value if key not in named]
            return {key: order(value[key], named.get(key)) for key in keys}
        return value

    return json.dumps(order(value, schema), separators=(",", ":"), ensure_ascii=False)


def own_cases() -> list[dict[str, Any]]:
    cases = []
    for path in sorted((HERE / "schemas").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        texts = {right: [spell(value, found["schema"]) for value in found[right]] for right in ("valid", "invalid")}
        cases.append({"name": path.stem, "schema": json.dumps(found["schema"]), **texts})
    return cases


def suite_cases(folder: Path) -> list[dict[str, Any]]:
    cases = []
    for path in sorted(folder.rglob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            texts: dict[str, list[str]] = {"valid": [], "invalid": []}
            for test in group["tests"]:
                texts["valid" if test["valid"] else "invalid"].append(spell(test["data"], group["schema"]))
            name = f"{path.stem}: {group['description']}"
            cases.append({"name": name, "schema": json.dumps(group["schema"]), **texts})
    return cases


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}" if whole else "-"


def spread(values: list[float], digits: int = 0) -> str:
    """p50 / p99 / max."""
    if not values:
        return "-"
    ordered = sorted(values)
    at = (ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], ordered[-1])
    return " / ".join(f"{value:,.{digits}f}" for value in at)


def row_of(name: str, results: list[dict[str, Any]], base: list[dict[str, Any]]) -> list[str]:
    done = [result for result in results if "refused" not in result]
    total = {
        key: sum(result[key] for result in done) for key in ("valid", "valid_ok", "invalid", "invalid_ok", "named")
    }
    right = [r for r in done if r["valid_ok"] == r["valid"] and r["invalid_ok"] + r["caught"] == r["invalid"]]
    under = total["invalid"] - total["invalid_ok"]
    masks = [mask for result in done for mask in result["masks"]]
    tokens, free = (sum(result[key] for result in done) for key in ("tokens", "free"))
    canonical, texts = sum(r["canonical"] for r in done), total["valid_ok"]
    both = [(a["compile"], b["compile"]) for a, b in zip(results, base) if "refused" not in a and "refused" not in b]
    ratio = f"{statistics.median(a / b for a, b in both):.1f}x" if both else "-"
    return [
        name,
        str(len(results)),
        share(len(done), len(results)),
        spread([result["compile"] * 1e3 for result in done], 1),
        ratio,
        spread(masks),
        spread([result["memory"] / 1024 for result in done]),
        share(free, tokens) + (f" ({share(canonical, texts)})" if free else ""),
        f"{total['valid_ok']}/{total['valid']}",
        f"{total['invalid_ok']}/{total['invalid']}",
        share(len(right), len(results)),
        f"{total['named']}/{under - total['named']}",
        str(sum(result["leaked"] for result in done)),
    ]


COLUMNS = (
    *("engine", "n", "compiled %", "compile+mask ms p50/p99/max", "ratio", "mask us p50/p99/max", "MB p50/p99/max"),
    *("forced % (canonical %)", "valid taken", "invalid refused", "fully right %", "wrong taken: named/silent"),
    "specials",
)


def schemas(console: Console, tokenizer: Path, sets: dict[str, list[dict[str, Any]]], options: Any) -> None:
    for title, cases in sets.items():
        table = Table(title=f"{title}, {tokenizer.name}", title_justify="left")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "engine" else "right")
        base: list[dict[str, Any]] = []
        with Progress(console=console, transient=True) as progress:
            for name in options.engines.split(","):
                chosen = cases[: options.slow_sample] if name in SLOW else cases
                served = Served(name, tokenizer)
                results = [
                    served.ask(case, options.limit) for case in progress.track(chosen, description=f"{title}: {name}")
                ]
                served.end()
                base = base or results
                table.add_row(*row_of(name, results, base))
                if options.verbose:
                    complain(console, name, chosen, results)
        console.print(table)


def complain(console: Console, name: str, cases: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    """Name each schema that is not fully right."""
    for case, result in zip(cases, results):
        if "refused" in result:
            console.print(f"  {name}: {case['name']}: {result['refused']}", markup=False, highlight=False)
        elif result["valid_ok"] + result["invalid_ok"] + result["caught"] < result["valid"] + result["invalid"]:
            said = {key: value for key, value in result.items() if key != "masks"}
            console.print(f"  {name}: {case['name']}: {said}", markup=False, highlight=False)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        return serve(*sys.argv[2:4])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", nargs="*", type=Path, default=sorted((SHARED / "tokenizers").glob("*.json")))
    parser.add_argument("--suite", type=Path, default=SHARED / "json-schema-test-suite" / "tests")
    parser.add_argument("--sets", default="own,suite")
    parser.add_argument("--sample", type=int, default=60, help="schemas of a set, at random")
    parser.add_argument("--slow-sample", type=int, default=8, help="of these, for " + " and ".join(SLOW))
    parser.add_argument("--limit", type=float, default=5.0, help="seconds for a schema with all its instances")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--verbose", action="store_true", help="name each schema that is not fully right")
    options = parser.parse_args()
    console = Console(width=200)
    sets = {"own": own_cases(), "suite": suite_cases(options.suite)}
    chosen = {name: cases for name, cases in sets.items() if name in options.sets.split(",") and cases}
    for cases in chosen.values():
        random.Random(0).shuffle(cases)
        del cases[options.sample :]
    if not options.tokenizers:
        raise SystemExit("no tokenizer.json given")
    for tokenizer in options.tokenizers:
        schemas(console, tokenizer, chosen, options)


if __name__ == "__main__":
    main()
