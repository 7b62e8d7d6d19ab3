"""What guessing ahead brings and what it costs: the same programs with speculation on and off, side by side in one run.

Knows: the public interface, transformers, the clock. Must not know: runtime internals. Both runtimes run at the same
time and take turns, so what the machine does meanwhile hits both; figures are medians of paired ratios. transformers
is asked for the same extraction, plainly and with its own prompt lookup. With --draft a third runtime takes turns that
has a draft model too.
Usage: python benchmarks/speculative.py [--repeats 7] [--only extraction] [--large] [--draft [MODEL]] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

import branchwork as bw
from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.sapling.corpus import held_out

NAMES = ("Ada", "Boris", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jana", "Kofi", "Lena", "Milo")
PLACES = ("Lisbon", "Osaka", "Quito", "Turin", "Accra", "Bergen", "Cairo", "Delhi", "Izmir", "Lyon", "Porto")
THINGS = ("a red kettle", "two blue chairs", "one old map", "three lamps", "a green door", "a small boat")
ORDER = {
    "type": "object",
    "properties": {
        "customer_identifier": {"type": "integer", "minimum": 1, "maximum": 99999},
        "first_name": {"type": "string", "maxLength": 10},
        "delivery_address": {
            "type": "object",
            "properties": {
                "street_and_number": {"type": "string", "maxLength": 12},
                "country": {"enum": ["Austria", "Belgium", "Denmark", "Finland"]},
            },
            "required": ["street_and_number", "country"],
            "additionalProperties": False,
        },
        "preferred_payment_method": {"enum": ["bank transfer", "credit card", "cash on delivery"]},
        "subscribed_to_newsletter": {"type": "boolean"},
    },
    "required": [
        "customer_identifier",
        "first_name",
        "delivery_address",
        "preferred_payment_method",
        "subscribed_to_newsletter",
    ],
    "additionalProperties": False,
}


# --- programs


@bw.function
def agent(s: Any, task: str) -> None:
    """Four steps of thinking with an observation after each."""
    s += bw.system("You run in a loop of Thought, Action, Observation. Available tool: calculator[expression]")
    s += bw.user(task)
    for step in range(4):
        s += f"Thought {step}:" + bw.gen(f"thought{step}", max_tokens=48, temperature=0, ignore_eos=True)
        s += f"\nObservation: the result of step {step} is {len(task) * (step + 3)}.\n"


@bw.function
def extraction(s: Any, text: str) -> None:
    s += text + bw.gen("copy", max_tokens=160, temperature=0, ignore_eos=True)


@bw.function
def siblings(s: Any, text: str) -> None:
    s += text
    branches = s.fork(8)
    for number, branch in enumerate(branches):
        branch += bw.gen("idea", max_tokens=96, temperature=0.6, seed=number, ignore_eos=True)
    s += "\n".join(branch["idea"] for branch in branches)


@bw.function
def form(s: Any, number: int, jump: str) -> None:
    s += f"The order of customer {number} from the city archive.\n"
    s += bw.gen("form", json_schema=ORDER, temperature=0, max_tokens=200, jump_forward=jump)


@bw.function
def chat(s: Any, text: str, seed: int, tokens: int, temperature: float) -> None:
    s += bw.user(text)
    s += bw.assistant(bw.gen("answer", max_tokens=tokens, temperature=temperature, seed=seed, ignore_eos=True))


Run = Callable[[bw.Runtime], list[str]]


def one_by_one(program: Any, rows: list[dict[str, Any]]) -> Run:
    return lambda runtime: [program.run(backend=runtime, **row).text() for row in rows]


def together(program: Any, rows: list[dict[str, Any]]) -> Run:
    return lambda runtime: [state.text() for state in program.run_batch(rows, backend=runtime)]


def document(seed: int) -> str:
    """A list of deliveries that occurs once, and the beginning of its copy."""
    draw = random.Random(seed)
    lines = [
        f"{draw.choice(NAMES)} from {draw.choice(PLACES)} sent {draw.choice(THINGS)} on day {draw.randint(10, 99)}."
        for _ in range(16)
    ]
    text = " ".join(lines)
    return f"Text: {text}\n\nThe same text again: {text[: len(lines[0])]}"


Workload = tuple[str, Run, float]


def workloads(repeat: int) -> list[Workload]:
    """Name, what is run, the ratio aimed at. All texts but the agent's are new in each repeat."""
    tasks = [{"task": f"{name} walks {3 + n} km a day. How far in {n + 4} days?"} for n, name in enumerate(NAMES[:4])]

    def forms(jump: str) -> list[dict[str, Any]]:
        return [{"number": 40 * repeat + n, "jump": jump} for n in range(3)]

    ideas = f"Propose a plan to paint house number {repeat}.\nPlan:"
    chats = [
        {"text": f"Tell me about {PLACES[n]} in {1900 + repeat}.", "seed": repeat, "tokens": 128, "temperature": 1.5}
        for n in range(2)
    ]
    streams = [
        {"text": f"{THINGS[n % 6]} for {NAMES[n % 13]}, {n}, {repeat}?", "seed": n, "tokens": 64, "temperature": 1.0}
        for n in range(32)
    ]
    return [
        ("agent, run before", one_by_one(agent, tasks), 2.5),
        ("extraction of a quoted text", one_by_one(extraction, [{"text": document(repeat)}]), 2.0),
        ("fork of 8 siblings", together(siblings, [{"text": ideas}]), 1.5),
        ("JSON with a schema, forced text guessed", one_by_one(form, forms("exact")), 2.0),
        ("JSON with a schema, forced text appended", one_by_one(form, forms("on")), 0.97),
        ("free chat, temperature 1.5", one_by_one(chat, chats), 0.97),
        ("32 concurrent streams", together(chat, streams), 0.97),
    ]


# --- the run


def timed(run: Run, runtime: bw.Runtime) -> tuple[float, list[str]]:
    began = time.perf_counter()
    texts = run(runtime)
    return time.perf_counter() - began, texts


def compare(model: str, options: dict[str, Any], repeats: int, only: tuple[str, ...]) -> list[dict[str, Any]]:
    """Per workload: median seconds on and off, median of their ratios, tokens guessed and kept per repeat."""
    found: dict[str, list[tuple[float, float, int, int]]] = {}
    aims: dict[str, float] = {}
    with bw.Runtime(model, speculative="off", **options) as off, bw.Runtime(model, **options) as on:
        for repeat in range(repeats + 1):  # the first round warms both up, and is the agent's first run
            for number, (name, run, aim) in enumerate(workloads(repeat)):
                if not name.startswith(only):
                    continue
                before = on.stats()
                order = (off, on) if (repeat + number) % 2 else (on, off)
                took = {runtime is on: timed(run, runtime) for runtime in order}
                if took[True][1] != took[False][1]:
                    raise SystemExit(f"{name}: the answers with and without guesses differ")
                after = on.stats()
                guessed, kept = (int(after[key] - before[key]) for key in ("drafted_tokens", "accepted_tokens"))
                if repeat:
                    found.setdefault(name, []).append((took[False][0], took[True][0], guessed, kept))
                    aims[name] = aim
    rows = []
    for name, runs in found.items():
        plain, fast, guessed, kept = (statistics.median(column) for column in zip(*runs))
        ratio = statistics.median(run[0] / run[1] for run in runs)
        row = {"workload": name, "off_s": plain, "on_s": fast, "ratio": ratio, "aim": aims[name]}
        rows.append({**row, "guessed": guessed, "kept": kept})
    return rows


def asked(skill: str, repeat: int, temperature: float, **rest: Any) -> list[dict[str, Any]]:
    """Four prompts of a skill that sapling has, none of them asked before."""
    cases = held_out(skill, 4, seed=1000 + repeat)
    return [{"prompt": case.prompt, "how": {"temperature": temperature, "seed": repeat, **rest}} for case in cases]


@bw.function
def answered(s: Any, prompt: str, how: dict[str, Any]) -> None:
    s += prompt + bw.gen("answer", max_tokens=96, **how)


def drafted(model: str, draft: str, repeats: int) -> list[dict[str, Any]]:
    """Per workload: seconds without guesses, with all but the draft model, with it too; medians of paired ratios."""
    person = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
        "required": ["name", "age", "city"],
        "additionalProperties": False,
    }
    json_text = "extraction to JSON"
    kinds: dict[str, Callable[[int], Run]] = {
        "chat, greedy: tips": lambda n: one_by_one(answered, asked("tips and their expansion", n, 0.0)),
        "chat, greedy: judging": lambda n: one_by_one(answered, asked("essay judge", n, 0.0)),
        "chat, greedy: facts in the prompt": lambda n: one_by_one(
            answered, asked("facts, given in the prompt, chat", n, 0.0)
        ),
        "JSON, free": lambda n: one_by_one(answered, asked(json_text, n, 0.0)),
        "JSON with a schema": lambda n: one_by_one(answered, asked(json_text, n, 0.0, json_schema=person)),
        "chat, temperature 0.7": lambda n: one_by_one(answered, asked("small talk", n, 0.7)),
        "free chat, temperature 1.5": lambda n: workloads(n)[5][1],
        "32 concurrent streams": lambda n: workloads(n)[6][1],
        "agent, run before": lambda n: workloads(n)[0][1],
    }
    times: dict[str, list[list[float]]] = {name: [] for name in kinds}
    counts: dict[str, list[int]] = {name: [0, 0] for name in kinds}
    with (
        bw.Runtime(model, speculative="off") as off,
        bw.Runtime(model, draft_model="") as on,
        bw.Runtime(model, draft_model=draft) as small,
    ):
        runtimes = [off, on, small]
        for repeat in range(repeats + 1):
            for number, (name, make) in enumerate(kinds.items()):
                run, before = make(repeat), small.stats()
                first = (repeat + number) % 3
                took = {n: timed(run, runtimes[n]) for n in (*range(first, 3), *range(first))}
                if len({tuple(texts) for _, texts in took.values()}) > 1:
                    raise SystemExit(f"{name}: the answers with and without guesses differ")
                if repeat:
                    times[name].append([took[n][0] for n in range(3)])
                    after = small.stats()
                    for n, key in enumerate(("drafted_model", "accepted_model")):
                        counts[name][n] += int(after.get(key, 0)) - int(before.get(key, 0))
    return [
        {
            "workload": name,
            "off_s": statistics.median(run[0] for run in runs),
            "against_off": statistics.median(run[0] / run[2] for run in runs),
            "without_against_off": statistics.median(run[0] / run[1] for run in runs),
            "against_without": statistics.median(run[1] / run[2] for run in runs),
            "guessed": counts[name][0],
            "kept": counts[name][1],
        }
        for name, runs in times.items()
    ]


def show_drafted(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=title)
    for column in ("workload", "off s", "without draft", "with draft", "with / without", "guessed", "kept"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for row in rows:
        kept = f"{row['kept'] / row['guessed']:.0%}" if row["guessed"] else "-"
        ratios = [f"{row[key]:.2f}x" for key in ("without_against_off", "against_off", "against_without")]
        table.add_row(row["workload"], f"{row['off_s']:.3f}", *ratios, str(row["guessed"]), kept)
    console.print(table)


def peers(model: str, repeats: int) -> dict[str, float]:
    """transformers on the extraction: median seconds greedily, and with its prompt lookup."""
    directory = find_model(model)
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    network = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    torch.set_num_threads(1)
    spent: dict[str, list[float]] = {"greedy": [], "prompt lookup": []}
    for repeat in range(repeats):
        ids = tokenizer(document(repeat), return_tensors="pt", add_special_tokens=False)
        for name, more in (("greedy", {}), ("prompt lookup", {"prompt_lookup_num_tokens": 10})):
            began = time.perf_counter()
            with torch.inference_mode():
                network.generate(**ids, do_sample=False, min_new_tokens=160, max_new_tokens=160, **more)
            spent[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in spent.items()}


def large(directory: Path) -> str:
    """A Llama of about 100 million random parameters with sapling's tokenizer, written to a directory."""
    source = find_model("sapling")
    shape = transformers.LlamaConfig(
        vocab_size=3072,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=13,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (source / name).exists():
            (directory / name).write_bytes((source / name).read_bytes())
    return str(directory)


def deep(directory: Path, idle: int = 24) -> str:
    """sapling with so many layers behind its own that change nothing: its answers, at the price of a larger model."""
    source = find_model("sapling")
    for path in (*source.glob("*.json"), *source.glob("*.jinja")):
        (directory / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text("utf-8"))
    layers = config["num_hidden_layers"]
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers + idle}), "utf-8")
    weights = load_file(source / "model.safetensors")
    first = {
        name.removeprefix("model.layers.0."): w for name, w in weights.items() if name.startswith("model.layers.0.")
    }
    for layer in range(layers, layers + idle):
        for name, weight in first.items():
            silent = name.startswith(("self_attn.o_proj", "mlp.down_proj"))
            weights[f"model.layers.{layer}.{name}"] = torch.zeros_like(weight) if silent else weight.clone()
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return str(directory)


def show(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=title)
    for column in ("workload", "off s", "on s", "ratio", "aim", "guessed", "kept"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for row in rows:
        kept = f"{row['kept'] / row['guessed']:.0%}" if row["guessed"] else "-"
        figures = f"{row['off_s']:.3f}", f"{row['on_s']:.3f}", f"{row['ratio']:.2f}x", f">= {row['aim']}x"
        table.add_row(row["workload"], *figures, f"{row['guessed']:.0f}", kept)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", default="sapling")
    parser.add_argument("--only", nargs="*", default=[""], help="run the workloads whose names begin with these")
    parser.add_argument("--large", action="store_true", help="also a larger model: random, or with --draft deep")
    parser.add_argument("--draft", nargs="?", const="sapling-draft", help="only: with this draft model and without")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    console = Console(width=110)
    if given.draft:
        rows = drafted(given.model, given.draft, given.repeats)
        show_drafted(f"{given.model} drafted by {given.draft}, medians of {given.repeats} rounds", rows, console)
        if given.large:
            with tempfile.TemporaryDirectory() as directory:
                more = drafted(deep(Path(directory)), given.draft, given.repeats)
            show_drafted("the same with 24 layers more that change nothing", more, console)
            rows += [{**row, "workload": f"{row['workload']}, deep"} for row in more]
        if given.json:
            given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        return
    found: dict[str, Any] = {"rows": compare(given.model, {}, given.repeats, tuple(given.only))}
    show(f"{given.model}, medians of {given.repeats} pairs", found["rows"], console)
    if any(row["workload"].startswith("extraction") for row in found["rows"]):
        found["transformers"] = peers(given.model, given.repeats)
        told = ", ".join(f"{name} {spent:.3f} s" for name, spent in found["transformers"].items())
        console.print(f"transformers, the same extraction: {told}")
    if given.large:
        with tempfile.TemporaryDirectory() as directory:
            rows = compare(large(Path(directory)), {"dtype": "bfloat16"}, given.repeats, ("agent",))
        found["large"] = rows
        show("100 million random parameters", rows, console)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
