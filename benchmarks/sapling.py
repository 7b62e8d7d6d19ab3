"""Measures what sapling can do: the share of right answers per skill, on names and phrasings held out of its training.

Knows: the held-out cases of the corpus and how to ask a model directory for greedy answers.
Must not know: how sapling was trained."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import branchwork as bw
from branchwork.runtime.sapling.corpus import SKILLS, Case, held_out
from branchwork.runtime.sapling.sample import STOP

# prompts, the most new tokens, the text to stop at -> the answers, cut before that text
Answer = Callable[[Sequence[str], int, str], list[str]]
MODEL = Path(__file__).resolve().parents[1] / "runtime" / "sapling"


@bw.function
def _continued(s: Any, text: str, tokens: int, stop: tuple[str, ...]) -> None:
    s += text + bw.gen("answer", max_tokens=tokens, stop=stop, temperature=0)


def branchwork_answer(runtime: bw.Runtime) -> Answer:
    """Greedy answers by this project's own runtime; end tokens end an answer, other texts are stop strings."""

    def answer(prompts: Sequence[str], max_tokens: int, stop: str) -> list[str]:
        stops = () if stop == STOP else (stop,)
        rows = [{"text": prompt, "tokens": max_tokens, "stop": stops} for prompt in prompts]
        return [str(state["answer"]) for state in _continued.run_batch(rows, backend=runtime)]

    return answer


def transformers_answer(model_dir: Path, batch: int = 50) -> Answer:
    """Greedy answers by transformers, in left-padded batches."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    def answer(prompts: Sequence[str], max_tokens: int, stop: str) -> list[str]:
        found: list[str] = []
        for at in range(0, len(prompts), batch):
            inputs = tokenizer(
                list(prompts[at : at + batch]), return_tensors="pt", padding=True, add_special_tokens=False
            )
            start = inputs["input_ids"].shape[1]

            def finished(ids: torch.Tensor, _scores: torch.Tensor, start: int = start) -> torch.Tensor:
                return torch.tensor([stop in text for text in tokenizer.batch_decode(ids[:, start:])])

            with torch.inference_mode():
                out = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    stopping_criteria=[finished],
                )
            found += [text.split(stop)[0] for text in tokenizer.batch_decode(out[:, start:])]
        return found

    return answer


def score(answer: Answer, cases: list[Case]) -> tuple[int, list[tuple[Case, str]]]:
    """How many cases are right, and the wrong ones with the answer given."""
    wrong: list[tuple[Case, str]] = []
    for stop in sorted({case.stop for case in cases}):
        # Like lengths together: less padding, and a batch ends with its slowest row.
        group = sorted((case for case in cases if case.stop == stop), key=lambda case: len(case.expected))
        for at in range(0, len(group), 50):
            part = group[at : at + 50]
            longest = max(len(case.expected) for case in part)
            given = answer([case.prompt for case in part], longest // 2 + 8, stop)
            wrong += [(case, text) for case, text in zip(part, given, strict=True) if not case.accepts(text)]
    return len(cases) - len(wrong), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="a model directory (default: the one that ships)")
    parser.add_argument("--cases", type=int, default=200, help="held-out cases per skill")
    parser.add_argument("--engine", choices=("branchwork", "transformers"), default="branchwork")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--show", type=int, default=0, help="print this many wrong answers per skill")
    given = parser.parse_args()

    with contextlib.ExitStack() as stack:
        if given.engine == "transformers":
            answer = transformers_answer(given.model)
        else:
            answer = branchwork_answer(stack.enter_context(bw.Runtime(str(given.model))))
        figures = measure(answer, given.cases, given.show)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def measure(answer: Answer, cases: int, show: int) -> dict[str, dict[str, float]]:
    """Ask every held-out case, print the table; right, cases and accuracy by skill."""
    console = Console()
    table = Table("skill", "right", "cases", "accuracy", "seconds", title="sapling, held-out names and phrasings")
    figures: dict[str, dict[str, float]] = {}
    for skill in SKILLS:
        begun = time.perf_counter()
        right, wrong = score(answer, held_out(skill, cases))
        spent = time.perf_counter() - begun
        figures[skill] = {"right": right, "cases": cases, "accuracy": right / cases}
        table.add_row(skill, str(right), str(cases), f"{right / cases:.1%}", f"{spent:.1f}")
        for case, text in wrong[:show]:
            console.print(
                f"[{skill}] ...{case.prompt[-300:]!r}\n  wanted {case.expected!r}\n  got    {text!r}", markup=False
            )
    console.print(table)
    return figures


if __name__ == "__main__":
    main()
