"""Measures what constraints cost a batch, and that what they promise holds: throughput, jump-forward, validity.

`python benchmarks/constrained.py`: constrained against unconstrained generation at 32 running requests, in turns in one
run; then many generations from random schemas at temperature 1.5, every one parsed and validated.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

from jsonschema import Draft202012Validator
from rich.console import Console
from rich.progress import track
from rich.table import Table

import branchwork as bw

WIDTH = 32  # requests that run at the same time
FORM = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 16},
        "last_name": {"type": "string", "maxLength": 16},
        "date_of_birth": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "favourite_colour": {"enum": ["red", "green", "blue", "yellow"]},
        "subscribed": {"type": "boolean"},
    },
    "required": ["first_name", "last_name", "date_of_birth", "favourite_colour", "subscribed"],
    "additionalProperties": False,
}
PROMPT = "Fill in the form for customer {number}.\n"


@bw.function
def filled(s: Any, number: int, knobs: dict[str, Any]) -> None:
    s += PROMPT.format(number=number) + bw.gen("form", seed=number, **knobs)


def throughput(runtime: bw.Runtime, rounds: int, console: Console) -> None:
    """Seconds per sampled and per emitted token: free text of the same length, and the form in each jump mode."""
    modes: dict[str, dict[str, Any]] = {
        "constrained, jump off": {"json_schema": FORM, "jump_forward": "off", "max_tokens": 200},
        "constrained, jump exact": {"json_schema": FORM, "jump_forward": "exact", "max_tokens": 200},
        "constrained, jump on": {"json_schema": FORM, "jump_forward": "on", "max_tokens": 200},
    }
    length = _round(runtime, modes["constrained, jump off"], 0)[1] // WIDTH  # also warms everything up
    modes = {"free text": {"max_tokens": length, "ignore_eos": True}, **modes}
    seconds: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    shares: dict[str, list[float]] = {mode: [] for mode in modes}
    for number in track(range(1, rounds + 1), description="throughput", console=console):
        for mode, knobs in modes.items():
            spent, emitted, forced = _round(runtime, knobs, number)
            seconds[mode].append((spent / (emitted - forced), spent / emitted))
            shares[mode].append(forced / emitted)
    base = [statistics.median(pair[i] for pair in seconds["free text"]) for i in (0, 1)]
    table = Table(title=f"{WIDTH} running, medians of {rounds} rounds in turns, about {length} tokens each")
    for column in ("", "us / sampled token", "against free", "us / emitted token", "against free", "not sampled"):
        table.add_column(column, justify="left" if not column else "right")
    for mode, pairs in seconds.items():
        sampled, emitted_us = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        share = statistics.median(shares[mode])
        ratios = f"{sampled / base[0]:.2f}", f"{emitted_us / base[1]:.2f}"
        table.add_row(mode, f"{sampled * 1e6:.0f}", ratios[0], f"{emitted_us * 1e6:.0f}", ratios[1], f"{share:.0%}")
    console.print(table)


def _round(runtime: bw.Runtime, knobs: dict[str, Any], number: int) -> tuple[float, int, int]:
    """Seconds, emitted tokens and forced tokens of one batch."""
    rows = [{"number": number * WIDTH + n, "knobs": {"temperature": 1.0, **knobs}} for n in range(WIDTH)]
    began = time.perf_counter()
    states = filled.run_batch(rows, backend=runtime)
    spent = time.perf_counter() - began
    metas = [state.get_meta_info("form") for state in states]
    forced = sum(meta["constraint"]["forced_tokens"] for meta in metas if "constraint" in meta)
    return spent, sum(meta["completion_tokens"] for meta in metas), forced


def random_schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose values are short: objects, arrays, strings with lengths and patterns, numbers, enums, unions."""
    kinds = ["string", "pattern", "integer", "boolean", "null", "enum", "const", "format"]
    kind = "object" if depth == 0 else draw.choice(kinds + (["object", "array", "anyOf"] if depth < 2 else []))
    match kind:
        case "object":
            names = draw.sample(
                ["id", "name", "tags", "size", "owner", "état", "a b", 'q"t', "next", "kind"], draw.randint(1, 5)
            )
            required = [name for name in names if draw.random() < 0.7]
            properties = {name: random_schema(draw, depth + 1) for name in names}
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        case "array":
            least = draw.randint(0, 2)
            items = random_schema(draw, depth + 1)
            return {"type": "array", "items": items, "minItems": least, "maxItems": least + draw.randint(0, 2)}
        case "anyOf":
            return {"anyOf": [random_schema(draw, depth + 1) for _ in range(draw.randint(2, 3))]}
        case "string":
            least = draw.randint(0, 4)
            return {"type": "string", "minLength": least, "maxLength": least + draw.randint(0, 8)}
        case "pattern":
            return {"type": "string", "pattern": draw.choice(["^[a-z]{2,5}$", "^(x|yy)-[0-9]{1,6}z$", "^[A-F0-9]{4}$"])}
        case "integer":
            low = draw.randint(-1000, 1000)
            return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 5000)}
        case "enum":
            return {
                "enum": draw.sample(
                    ["red", "green", 3, 4.5, None, True, ["x"], {"k": 1}, "", "é\n"], draw.randint(1, 4)
                )
            }
        case "const":
            return {"const": draw.choice(["fixed", 17, [1, 2], {"a": {"b": None}}])}
        case "format":
            return {"type": "string", "format": draw.choice(["date", "uuid", "ipv4"])}
    return {"type": kind}


@bw.function
def invented(s: Any, schema: dict[str, Any], seed: int) -> None:
    s += "A value:\n" + bw.gen("value", json_schema=schema, temperature=1.5, seed=seed, max_tokens=1900)


def validity(runtime: bw.Runtime, count: int, console: Console, seed: int = 0) -> dict[str, int]:
    """Generate `count` values from random schemas, 40 from each; how many were what."""
    draw = random.Random(seed)
    found = dict.fromkeys(("generated", "complete", "valid", "cut off", "said to be approximate", "refused"), 0)
    for number in track(range(0, count, 200), description="validity", console=console):
        schemas = [random_schema(draw) for _ in range(5)]
        rows = [{"schema": schemas[n % 5], "seed": number + n} for n in range(min(200, count - number))]
        for row, state in zip(rows, invented.run_batch(rows, backend=runtime)):
            found["generated"] += 1
            try:
                text, meta = state["value"], state.get_meta_info("value")
            except bw.ProgramError as error:
                found["refused"] += 1
                console.print(f"{error.code}: {error.message}", json.dumps(row["schema"]), markup=False)
                continue
            found["said to be approximate"] += bool(meta["constraint"]["approximations"])
            if not meta["constraint"]["complete"]:
                found["cut off"] += 1
                continue
            found["complete"] += 1
            wrong = next(Draft202012Validator(row["schema"]).iter_errors(json.loads(text)), None)
            found["valid"] += wrong is None
            if wrong is not None:
                console.print(f"invalid: {text!r}: {wrong.message}", json.dumps(row["schema"]), markup=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=10_000, help="generations from random schemas")
    given = parser.parse_args()
    console = Console()
    with bw.Runtime("sapling") as runtime:
        if given.rounds:
            throughput(runtime, given.rounds, console)
        if given.count:
            began = time.perf_counter()
            found = validity(runtime, given.count, console)
            spent = time.perf_counter() - began
            console.print(", ".join(f"{name} {value:,}" for name, value in found.items()), f"in {spent:.0f} s")


if __name__ == "__main__":
    main()
