"""Regexes and the loop: what a compile costs and whether it is right, how long an engine's loop is kept, walks.

Run: python benchmarks/constraint_regexes.py [--parts regexes,stall] [--walk N] [tokenizer.json ...]
Claims: each listed regex right against re.fullmatch or a typed error, within 2 s, median <= 5 ms; a loop that asks for
new schemas never waits for a compile; random walks of the DFA's and llguidance's masks agree.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from constraints import NOWHERE, SHARED, own_cases, spread
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from branchwork.lang.constraint import ConstraintError, JsonSchema, Regex
from branchwork.runtime.grammar.leaves import byte_vocabulary
from branchwork.runtime.grammar.matcher import Grammar, Matcher
from branchwork.runtime.grammar.pool import Compiler
from branchwork.runtime.grammar.recipe import Options
from branchwork.runtime.grammar.vocabulary import Vocabulary, unpack

REGEXES = [
    *(
        r"\(\d{3}\) \d{3}-\d{4}",
        r"\([0-9]{3}\) [0-9]{3}-[0-9]{4}",
        r"\d{4}-\d{2}-\d{2}",
        r"[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}",
    ),
    r"((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)",
    r"https?://[a-z0-9.-]+(:\d+)?(/[^\s?#]*)?(\?[^\s#]*)?",
    *(
        r"(Dr\. )?[A-Z][a-z]+( [A-Z]\.)?( [A-Z][a-z]+)?",
        "[a-z]{1,200}",
        "[a-z]{0,5000}",
        r'"[^"\\]{0,1000}"',
        r"\w{1,50}",
    ),
    *(
        "[\u4e00-\u9fff]{1,20}",
        "(北京|上海|广州|深圳)",
        "cat|category",
        "a+?",
        "a||b",
        r"[0-9]+(\.[0-9]+)?",
        "(ab){2,3}",
    ),
    r'\{"name": "[\w\d\s]{1,32}", "population": \d{1,9}, "country": "[\w\d\s]{1,32}"\}',
    *("|".join(f"option{number}" for number in range(1000)), r"(\w+ ){5}\w+", "(a|b)*a(a|b){12}", "(a|b)*a(a|b){16}"),
    *("(a|b)*a(a|b){20}", "((a{0,100}){0,100}){0,100}", "([a-z]{0,300}[0-9]{0,300}){0,300}"),
    *(r"(?=.*\d)[a-z0-9]{4,8}", r"(?!admin)[a-z]{3,10}", r"(?i)yes|no", r"(?<=a)b", r"(a)\1", r"\bword\b"),
]


# --- regexes


def sample(matcher: Matcher, dice: random.Random, longest: int = 60) -> str | None:
    """A text by random choice of bytes, None when it does not end in time."""
    written, row = bytearray(), np.zeros(9, np.int32)
    for _ in range(longest):
        if matcher.is_accepting and dice.random() < 0.2:
            break
        matcher.mask_into(row)
        allowed = [int(token) for token in unpack(row) if token < 256]
        if not allowed:
            break
        byte = dice.choice([token for token in allowed if token < 128] or allowed)
        matcher.accept([byte])
        written.append(byte)
    try:
        return written.decode() if matcher.is_accepting else None
    except UnicodeDecodeError:
        return None


def mutants(text: str, dice: random.Random) -> Iterator[str]:
    for _ in range(6):
        at = dice.randrange(len(text) + 1)
        yield text[:at] + dice.choice(["", "a", "0", " ", "Z", "é", "."]) + text[at + dice.randrange(2) :]


def compare(pattern: str, grammar: Grammar) -> tuple[int, int]:
    """Texts on which a grammar over single bytes and re.fullmatch differ; texts tried."""
    if pattern.startswith(("((a{", "([a-z]{0,300}")):  # re itself does not end on these
        return 0, 0
    dice, exact, wrong, tried = random.Random(1), re.compile(pattern, re.ASCII), 0, 0
    for _ in range(40):
        text = sample(grammar.start(), dice, 150)
        for candidate in () if text is None else (text, *mutants(text, dice)):
            matcher, data = grammar.start(), candidate.encode()
            taken = matcher.accept(list(data)) == len(data) and matcher.is_accepting
            wrong += taken != (exact.fullmatch(candidate) is not None)
            tried += 1
    return wrong, tried


def regexes(console: Console, tokenizer: Path) -> None:
    vocabulary = Vocabulary.from_file(tokenizer)
    real, small = Compiler(vocabulary, NOWHERE), Compiler(byte_vocabulary(), NOWHERE)
    real.prepare()
    real.wait(Regex("warm"))
    table = Table(title=f"regexes, {tokenizer.name}", title_justify="left")
    for column in ("regex", "ms with first mask", "backend", "states", "wrong / tried against re.fullmatch"):
        table.add_column(column, justify="left" if column == "regex" else "right", no_wrap=True)
    times, row = [], np.zeros(vocabulary.words, np.int32)
    for pattern in REGEXES:
        began, said = time.perf_counter(), ["", "", ""]
        try:
            grammar = real.wait(Regex(pattern))
            grammar.start().mask_into(row)
        except ConstraintError as error:
            said = [f"{type(error).__name__}: {error}"[:50], "", ""]
        times.append((time.perf_counter() - began) * 1e3)
        if not said[0]:
            wrong, tried = compare(pattern, small.wait(Regex(pattern)))
            said = [grammar.report.backend, str(grammar.report.states or ""), f"{wrong} / {tried}"]
        table.add_row(escape(pattern[:60]), f"{times[-1]:,.1f}", *said)
    console.print(table, f"compile with first mask, ms p50 / p99 / max: {spread(times, 1)}")
    real.close()
    small.close()


# --- the loop


def stall(console: Console, tokenizer: Path, cases: list[dict[str, Any]]) -> None:
    """A loop as an engine's: it asks for new schemas, polls, fills a mask; how long it is kept from its next round."""
    vocabulary = Vocabulary.from_file(tokenizer)
    compiler = Compiler(vocabulary, NOWHERE)
    compiler.prepare()
    cached = compiler.wait(JsonSchema('{"type":"array","items":{"type":"string"}}'))
    row = np.zeros(vocabulary.words, np.int32)
    asking: list[float] = []
    rounds: dict[bool, list[float]] = {True: [], False: []}  # while something compiles, and not
    waiting, under_way, last = [case["schema"] for case in cases], 0, time.perf_counter()
    while waiting or under_way or len(rounds[False]) < 500:
        busy = bool(waiting or under_way)
        while waiting and under_way < 8:
            began = time.perf_counter()
            under_way += compiler.get(JsonSchema(waiting.pop())) is None
            asking.append((time.perf_counter() - began) * 1e6)
        under_way -= len(compiler.poll())
        cached.start().mask_into(row)
        time.sleep(0.001)
        now = time.perf_counter()
        rounds[busy].append((now - last) * 1e3)
        last = now
    compiler.close()
    console.print(
        f"{tokenizer.name}: {len(asking)} schemas asked for by a loop that sleeps 1 ms a round",
        f"  get(), us p50 / p99 / max: {spread(asking)}",
        f"  a round while they compile, ms p50 / p99 / max: {spread(rounds[True], 2)}",
        f"  a round while none does: {spread(rounds[False], 2)}",
        sep="\n",
    )


# --- two engines, one language


def walk(console: Console, tokenizer: Path, walks: int) -> None:
    """Random walks of the DFA's and llguidance's masks side by side. Where only one way is left llguidance allows its
    one canonical token, which the DFA must allow too."""
    vocabulary = Vocabulary.from_file(tokenizer)
    sides = [Compiler(vocabulary, Options(folder="", backend=name)) for name in ("dfa", "llguidance")]
    rows, dice, steps, differ, skipped = np.zeros((2, vocabulary.words), np.int32), random.Random(2), 0, 0, 0
    for pattern in REGEXES:
        try:
            grammars = [side.wait(Regex(pattern)) for side in sides]
        except ConstraintError:
            skipped += 1
            continue
        for _ in range(walks):
            matchers = [grammar.start() for grammar in grammars]
            for _ in range(20):
                for matcher, row in zip(matchers, rows):
                    matcher.mask_into(row)
                only = matchers[0].forced()
                differ += not all(only.startswith(vocabulary.tokens[token]) for token in unpack(rows[0] ^ rows[1]))
                steps += 1
                both = [int(token) for token in unpack(rows[0] & rows[1]) if token not in vocabulary.eos]
                if not both:
                    break
                token = dice.choice(both)
                assert all(matcher.accept([token]) == 1 for matcher in matchers)
    for side in sides:
        side.close()
    console.print(f"{tokenizer.name}: {steps} masks of both engines, {differ} differ; {skipped} regexes not in both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", nargs="*", type=Path, default=sorted((SHARED / "tokenizers").glob("*.json")))
    parser.add_argument("--parts", default="regexes,stall")
    parser.add_argument("--walk", type=int, default=0, metavar="N", help="also N random walks per regex")
    options, console = parser.parse_args(), Console(width=200)
    for tokenizer in options.tokenizers:
        if "regexes" in options.parts:
            regexes(console, tokenizer)
        if "stall" in options.parts:
            stall(console, tokenizer, own_cases())
        if options.walk:
            walk(console, tokenizer, options.walk)


if __name__ == "__main__":
    main()
