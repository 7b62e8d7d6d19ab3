"""transformers as a process of its own for benchmarks/peers.py: JSON lines in, JSON lines out.

Knows: transformers' generate and forward. Must not know: workloads, the other peers.
Every question is one batch: rows of token ids, padded on the left for generate and on the right for scoring.
Usage: python benchmarks/peers_worker.py DIRECTORY THREADS, questions on standard input.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers


class Worker:
    """bfloat16 weights, torch's own attention kernel, one batch per question."""

    def __init__(self, directory: str, threads: int) -> None:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        self._pad = self._model.config.pad_token_id or 0

    def answer(self, question: dict[str, Any]) -> Any:
        """Raises KeyError for a question that is neither `generate` nor `score`."""
        with torch.inference_mode():
            if "generate" in question:
                return self._generate(question["generate"], question["tokens"])
            return self._score(question["score"])

    def _generate(self, rows: list[list[int]], tokens: int) -> list[list[int]]:
        """`tokens` greedy token ids after each row."""
        width = max(map(len, rows))
        ids = torch.tensor([[self._pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=self._pad,
        )
        found: list[list[int]] = out[:, width:].tolist()
        return found

    def _score(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        """The mean log-probability of each row's second part after its first, all rows in one forward."""
        width = max(len(context) + len(ending) for context, ending in rows)
        ids = torch.tensor([[*c, *e, *[self._pad] * (width - len(c) - len(e))] for c, e in rows])
        states = self._model.model(input_ids=ids, use_cache=False).last_hidden_state
        scores = []
        for number, (context, ending) in enumerate(rows):
            logits = self._model.lm_head(states[number, len(context) - 1 : len(context) + len(ending) - 1])
            logs = torch.log_softmax(logits.float(), dim=-1)
            scores.append(logs.gather(1, torch.tensor(ending)[:, None]).mean().item())
        return scores


def main() -> None:
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
