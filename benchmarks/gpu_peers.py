"""The suite's part of peers: transformers' generate (static cache, compiled) and its continuous batching.

Knows: transformers, the workloads of the engine part and what it found. Must not know: our runtime.
The same folders of random weights, the same random prompts, greedy, ends ignored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_driver import prompt
from gpu_engine import FULL, TINY, models
from gpu_models import SIZES, written
from gpu_report import Figure
from gpu_setting import Item, Setting, tidy

GAIN = 5.0  # times the offline throughput of continuous batching, for an 8B model


class _Loaded:
    """One model as transformers runs it, loaded when first needed."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name, self.setting = name, setting
        self.load = TINY if setting.tiny else FULL
        self.vocab = SIZES[name].vocab
        self._model: Any = None

    @property
    def model(self) -> Any:
        if self._model is None:
            from transformers import AutoModelForCausalLM
            from transformers.utils import logging

            logging.set_verbosity_error()
            folder = written(self.name, self.setting.scratch)
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
            self._model = loaded.to(self.setting.where).eval()
        return self._model

    def close(self) -> None:
        """Give its memory back: the next model wants nearly all."""
        self._model = None
        tidy(self.setting)

    def figure(self, what: str, ours: str, found: float, note: str, aim: float | None = None) -> list[Figure]:
        """Their tokens/s, and ours as a multiple of it where ours was measured."""
        known = self.setting.known.get(f"{self.name}: {ours}")
        name = f"{self.name}: {what}"
        figures = [Figure("peers", name, found, "tokens/s", note=note)]
        if known is not None:
            return [*figures, Figure("peers", f"{name}: ours over theirs", known / found, "x", aim)]
        missing = f"the engine part gave no figure of {ours}"
        return [*figures, Figure("peers", f"{name}: ours over theirs", None, "x", aim, note=missing)]


def peers(setting: Setting) -> Iterator[Item]:
    for name in models(setting.tiny):
        loaded = _Loaded(name, setting)
        yield Item(f"{name}: continuous batching", partial(_batched, loaded))
        yield Item(f"{name}: generate", partial(_single, loaded))
        loaded.close()


def _settings(tokens: int) -> Any:
    from transformers import GenerationConfig

    ends: dict[str, Any] = {"eos_token_id": -1, "pad_token_id": 0}  # -1: no token ends an answer
    return GenerationConfig(max_new_tokens=tokens, do_sample=False, use_cache=True, **ends)


@torch.inference_mode()
def _single(loaded: _Loaded) -> list[Figure]:
    """Compiled where transformers compiles, which it does for a static cache on a GPU. The rate is that of the tokens
    between a short answer and a long one, so that the prompt does not count."""
    count = loaded.load.single
    given = prompt("single", 128 if count > 20 else 8, loaded.vocab)
    ids = torch.tensor([given], device=loaded.setting.where)

    def seconds(tokens: int) -> float:
        config = _settings(tokens)
        config.cache_implementation = "static"
        config.max_length = None
        begun = time.perf_counter()
        out = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        found = len(out[0].tolist()) - len(given)  # waits for the device
        if found != tokens:
            raise RuntimeError(f"generate gave {found} tokens instead of {tokens}")
        return time.perf_counter() - begun

    for tokens in (count, count // 4):  # compiles, and captures what it captures, for both sizes of cache
        seconds(tokens)
        seconds(tokens)
    long, short = seconds(count), seconds(count // 4)
    rate = (count - count // 4) / max(long - short, 1e-9)
    return loaded.figure("generate, static cache", "single stream", rate, f"{count} tokens in {long:.2f} s")


def _batched(loaded: _Loaded) -> list[Figure]:
    """From the first request's arrival to the last one's end: without its start, where it captures its graphs."""
    rows, given, wanted = loaded.load.offline
    prompts = [prompt(f"offline False {r}", given, loaded.vocab) for r in range(rows)]
    small: dict[str, Any] = {}
    if loaded.setting.tiny:  # its cache would take nearly all of the memory that is free
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        small["continuous_batching_config"] = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
    begun = time.perf_counter()
    answers = loaded.model.generate_batch(prompts, generation_config=_settings(wanted), **small).values()
    whole = time.perf_counter() - begun
    tokens = sum(len(answer.generated_tokens) for answer in answers)
    if tokens != rows * wanted:
        faults = {str(answer.error) for answer in answers if answer.error}
        raise RuntimeError(f"continuous batching gave {tokens} tokens instead of {rows * wanted} {faults or ''}")
    seconds = max(answer.lifespan[1] for answer in answers) - min(answer.created_time for answer in answers)
    note = f"{rows} requests of {given} in and {wanted} out, {seconds:.1f} s, {whole:.1f} s with its start"
    aim = GAIN if loaded.name == "8B" else None
    return loaded.figure("continuous batching", "offline", tokens / seconds, note, aim)
