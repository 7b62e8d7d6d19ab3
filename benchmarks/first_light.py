"""The same sapling workloads through Branchwork and through transformers' generate, side by side in one run.

Knows: both public interfaces, the clock. Must not know: runtime internals. Every answer has a fixed number of tokens
on both sides, greedy, same dtype, same thread count; transformers gets each round as one left-padded batch.
Usage: python benchmarks/first_light.py [--repeats 3] [--dtype float32] [--only chat] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers
from rich.console import Console
from rich.table import Table

import branchwork as bw
from branchwork.runtime.loading.hub import find_model

COUNTRIES = (
    *("France", "Japan", "Norway", "Kenya", "Peru", "Italy", "Egypt", "Cuba"),
    *("Spain", "Chile", "Ghana", "India", "Nepal", "Qatar", "Malta", "Oman"),
)
ASPECTS = ("capital", "currency", "language", "continent")
KNOWN = {
    "France": ("Paris", "euro", "French", "Europe"),
    "Japan": ("Tokyo", "yen", "Japanese", "Asia"),
    "Norway": ("Oslo", "krone", "Norwegian", "Europe"),
    "Kenya": ("Nairobi", "shilling", "Swahili", "Africa"),
}
TURNS = ("What is the capital of {0}?", "And its currency?", "And its language?", "And its continent?")
ESSAY = (
    "First, a garden teaches patience, because seeds take time. According to a study of {0}, 40 percent of people who "
    "garden sleep better. Therefore every street should have one. In the end it is like a quiet room with a green door."
)
DIMENSIONS = ("clarity", "evidence", "originality", "imagery")
TASKS = ("clean the kitchen", "plan a trip", "learn a song", "paint a wall", "write a letter", "fix a bike")
WORDS = ESSAY.replace(",", "").replace(".", "").split()


def few_shot_prefix() -> str:
    """About 800 tokens of examples."""
    lines = []
    for round_ in range(5):
        for country, facts in KNOWN.items():
            aspect = ASPECTS[round_ % 4]
            lines.append(f"Q: What is the {aspect} of {country}?\nA: {facts[round_ % 4]}\n")
    return "".join(lines * 2)


# --- Branchwork


@bw.function
def complete(s: Any, text: str, tokens: int) -> None:
    s += text + bw.gen("answer", max_tokens=tokens, ignore_eos=True)


@bw.function
def chat(s: Any, country: str) -> None:
    for turn in range(8):
        s += bw.user(TURNS[turn % 4].format(country))
        s += bw.assistant(bw.gen(f"answer{turn}", max_tokens=16, ignore_eos=True))


@bw.function
def judge(s: Any, subject: str) -> None:
    s += bw.user("Please carefully read this essay:\n\n" + ESSAY.format(subject))
    s += bw.assistant(bw.gen("read", max_tokens=8, ignore_eos=True))
    forks = s.fork(len(DIMENSIONS))
    for branch, dimension in zip(forks, DIMENSIONS):
        branch += bw.user(f"Evaluate based on the following dimension: {dimension}.")
        branch += bw.assistant(bw.gen("judgment", max_tokens=32, ignore_eos=True))


@bw.function
def tree(s: Any, task: str) -> None:
    forks = s.fork(4)
    for number, branch in enumerate(forks):
        branch += bw.user(f"Propose a plan to {task}. Idea {number + 1}.")
        branch += bw.assistant(bw.gen("plan", max_tokens=32, ignore_eos=True))
        for leaf in branch.fork(4):
            leaf += bw.user("Execute the plan.")
            leaf += bw.assistant(bw.gen("work", max_tokens=32, ignore_eos=True))
            leaf += bw.user("Reflect on your solution.")
            leaf += bw.assistant(bw.gen("reflection", max_tokens=16, ignore_eos=True))


def ours(runtime: bw.Runtime, program: Any, rows: list[dict[str, Any]]) -> None:
    for state in program.run_batch(rows, backend=runtime, temperature=0):
        state.sync()


# --- transformers


class Generator:
    """transformers' generate with left padding, the whole round as one batch."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory, padding_side="left")
        self._model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()

    def __call__(self, prompts: list[str], tokens: int) -> list[str]:
        batch = self._tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = self._model.generate(**batch, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
        new = out[:, batch["input_ids"].shape[1] :]
        return [self._tokenizer.decode(row, skip_special_tokens=True) for row in new]


def turn(text: str, user: str) -> str:
    return f"{text}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def closed(prompts: list[str], answers: list[str]) -> list[str]:
    return [f"{prompt}{answer}<|im_end|>\n" for prompt, answer in zip(prompts, answers)]


def their_chats(generate: Generator, rows: list[dict[str, Any]]) -> None:
    texts = [""] * len(rows)
    for number in range(8):
        prompts = [turn(text, TURNS[number % 4].format(row["country"])) for text, row in zip(texts, rows)]
        texts = closed(prompts, generate(prompts, 16))


def their_judges(generate: Generator, rows: list[dict[str, Any]]) -> None:
    prompts = [turn("", "Please carefully read this essay:\n\n" + ESSAY.format(row["subject"])) for row in rows]
    texts = closed(prompts, generate(prompts, 8))
    asked = "Evaluate based on the following dimension: {}."
    generate([turn(text, asked.format(dimension)) for text in texts for dimension in DIMENSIONS], 32)


def their_trees(generate: Generator, rows: list[dict[str, Any]]) -> None:
    prompts = [turn("", f"Propose a plan to {row['task']}. Idea {i + 1}.") for row in rows for i in range(4)]
    plans = [text for text in closed(prompts, generate(prompts, 32)) for _ in range(4)]
    prompts = [turn(text, "Execute the plan.") for text in plans]
    prompts = [turn(text, "Reflect on your solution.") for text in closed(prompts, generate(prompts, 32))]
    generate(prompts, 16)


def their_completions(generate: Generator, rows: list[dict[str, Any]]) -> None:
    generate([row["text"] for row in rows], rows[0]["tokens"])


# --- the run

Workload = tuple[str, Any, list[dict[str, Any]], Callable[[Generator, list[dict[str, Any]]], None], float]


def scrambled(seed: int) -> str:
    return " ".join(WORDS[(seed * 7 + j * (seed + 3)) % len(WORDS)] for j in range(64))


def workloads(repeat: int) -> list[Workload]:
    """name, our program, its rows, their form, the aim. Rows differ from repeat to repeat: no run helps the next."""
    mark = f"Set {repeat}.\n"
    questions = [f"Q: What is the {a} of {c}?\nA:" for c in COUNTRIES for a in ASPECTS]
    prefix = mark + few_shot_prefix()
    few_shot = [{"text": prefix + question, "tokens": 8} for question in questions]
    apart = [{"text": f"{i + 100 * repeat} {scrambled(i)}", "tokens": 32} for i in range(32)]
    chats = [{"country": f"{country} ({repeat})"} for country in COUNTRIES]
    essays = [{"subject": f"{country} {repeat}"} for country in COUNTRIES[:12]]
    trees = [{"task": f"{task} {repeat}"} for task in TASKS]
    return [
        ("few-shot: 64 questions, one prefix", complete, few_shot, their_completions, 5.0),
        ("tree of thought: 6 tasks x 4 x 4", tree, trees, their_trees, 5.0),
        ("chat: 16 sessions x 8 turns", chat, chats, their_chats, 5.0),
        ("judge: 12 essays x 4 dimensions", judge, essays, their_judges, 5.0),
        ("nothing shared: 32 prompts", complete, apart, their_completions, 1.5),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--model", default="sapling")
    parser.add_argument("--only", nargs="*", default=[""], help="run the workloads whose names begin with these")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    generate = Generator(find_model(given.model), getattr(torch, given.dtype))
    generate(["warm up"], 4)
    found: dict[str, list[tuple[float, float, float]]] = {}
    aims: dict[str, float] = {}
    with bw.Runtime(given.model, dtype=given.dtype) as runtime:
        ours(runtime, complete, [{"text": "warm up", "tokens": 4}])
        for repeat in range(given.repeats):
            for name, program, rows, theirs, aim in workloads(repeat):
                if not name.startswith(tuple(given.only)):
                    continue
                before = runtime.stats()
                begun = time.perf_counter()
                ours(runtime, program, rows)
                middle = time.perf_counter()
                after = runtime.stats()
                theirs(generate, rows)
                ended = time.perf_counter()
                prompt = after["prompt_tokens"] - before["prompt_tokens"]
                reused = after["reused_tokens"] - before["reused_tokens"]
                found.setdefault(name, []).append((middle - begun, ended - middle, reused / prompt))
                aims[name] = aim
    report(found, aims, given)


def report(found: dict[str, list[tuple[float, float, float]]], aims: dict[str, float], given: Any) -> None:
    table = Table(title=f"{given.model}, {given.dtype}, medians of {given.repeats}")
    for title in ("workload", "Branchwork s", "transformers s", "ratio", "aim", "hit rate"):
        table.add_column(title, justify="left" if title == "workload" else "right")
    rows = []
    for name, runs in found.items():
        own, their, hit = (statistics.median(column) for column in zip(*runs))
        rows.append({"workload": name, "branchwork_s": own, "transformers_s": their, "ratio": their / own, "hit": hit})
        table.add_row(name, f"{own:.2f}", f"{their:.2f}", f"{their / own:.1f}x", f">= {aims[name]}x", f"{hit:.0%}")
    Console(width=110).print(table)
    if given.json:
        given.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
