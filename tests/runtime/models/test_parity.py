"""Every family computes what transformers computes, however the work is cut into steps and pages."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from branchwork.kernels.cpu import attention, packed_linear
from branchwork.runtime.cache.kv_pool import KVPool
from branchwork.runtime.execution.inputs import Inputs
from branchwork.runtime.execution.runner import Runner
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.models.registry import load_model
from branchwork.runtime.plan import Plan, Row
from branchwork.runtime.wire import Shape
from tests.checkpoints import CHECKPOINTS, VOCAB, checkpoint, reference

GREEDY = Shape(temperature=0.0)
PAGES = 160


def shuffled_pages(count: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(PAGES), count)


def prompt(length: int, seed: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(3, VOCAB) for _ in range(length)]


def chunks(length: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, size):
        yield start, min(start + size, length)


def all_logits(model: Decoder, ids: Sequence[int], page_size: int, chunk: int) -> torch.Tensor:
    """Logits after every id, computed `chunk` tokens a step over shuffled pages. [len(ids), V]."""
    a = model.spec.attention
    pool = KVPool(model.spec.layers, PAGES, a.kv_heads, page_size, a.head_dim, model.dtype, model.device)
    for layer in (*pool.k, *pool.v):
        layer.fill_(torch.nan)  # whatever is read before it is written shows
    inputs = Inputs(page_size, model.device)
    pages = shuffled_pages(-(-len(ids) // page_size), seed=1)
    parts = []
    for start, end in chunks(len(ids), chunk):
        row = Row(0, start, ids[start:end], pages[: -(-end // page_size)], score_from=1, score_next=(0,))
        step, _ = inputs.build(Plan(0, (row,)))
        parts.append(model.forward(step, pool))
    return torch.cat(parts)


def expected_logits(name: str, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = reference(name)(torch.tensor([list(ids)])).logits[0]
    return logits


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_equal_transformers_for_every_chunk_and_page_size(name: str) -> None:
    model, ids = load_model(checkpoint(name), dtype="float32"), prompt(41, seed=3)
    expected = expected_logits(name, ids)
    scale = expected.abs().max()
    for page_size in (1, 4, 16):
        for chunk in (1, 3, 7, len(ids)):
            found = all_logits(model, ids, page_size, chunk)
            error = ((found - expected).abs().max() / scale).item()
            assert error < 1e-4, f"page size {page_size}, chunks of {chunk}: relative error {error:.1e}"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_greedy_ids_equal_transformers_generate(name: str) -> None:
    ids = prompt(23, seed=5)
    expected = (
        reference(name)
        .generate(
            torch.tensor([ids]),
            max_new_tokens=20,
            min_new_tokens=20,
            do_sample=False,
            pad_token_id=1,
            eos_token_id=None,
        )[0, len(ids) :]
        .tolist()
    )
    model = load_model(checkpoint(name), dtype="float32")
    for page_size, chunk in ((1, 7), (4, 1), (16, 23), (4, 3)):
        runner = Runner.build(model, pages=PAGES, page_size=page_size)
        assert generate(runner, [ids], 20, page_size, chunk) == [expected], f"page size {page_size}, chunk {chunk}"


def test_rows_of_one_batch_do_not_disturb_each_other() -> None:
    """Prefill rows of different progress beside decode rows give what each row gives alone."""
    model = load_model(checkpoint("llama"), dtype="float32")
    prompts = [prompt(length, seed=length) for length in (2, 9, 17, 30)]
    alone = [generate(Runner.build(model, pages=PAGES, page_size=4), [ids], 12, 4, 5)[0] for ids in prompts]
    assert generate(Runner.build(model, pages=PAGES, page_size=4), prompts, 12, 4, 5) == alone


def test_rows_may_read_pages_that_another_row_of_the_same_step_writes() -> None:
    """The in-flight sharing of a prefix: one row computes it, another starts behind it in the same step."""
    model, ids = load_model(checkpoint("qwen2"), dtype="float32"), prompt(24, seed=8)
    runner = Runner.build(model, pages=PAGES, page_size=4)
    shared, tail = [7, 3, 9, 1], [5, 11]
    first = Row(0, 0, ids[:16], shared)
    second = Row(1, 16, ids[16:], [*shared, *tail], shape=GREEDY, position=24)
    together = runner.launch(Plan(0, (first, second))).sample().collect().rows[1].tokens[0]
    assert together == expected_logits("qwen2", ids)[-1].argmax().item()


@pytest.mark.skipif(not (attention.available and packed_linear.available), reason="needs the native kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "mixtral", "qwen2-moe", "qwen3-moe"])
def test_logits_are_the_same_to_the_bit_however_the_work_is_cut(name: str, dtype: str) -> None:
    """What was cached, batched or split must not show in the output."""
    model, ids = load_model(checkpoint(name), dtype=dtype), prompt(41, seed=3)
    whole = all_logits(model, ids, 1, len(ids))
    for page_size, chunk in ((1, 1), (1, 7), (4, 3), (16, 5)):
        assert torch.equal(all_logits(model, ids, page_size, chunk), whole), f"page size {page_size}, chunks of {chunk}"


def test_bfloat16_weights_stay_near_float32() -> None:
    ids = prompt(30, seed=2)
    found = all_logits(load_model(checkpoint("llama"), dtype="bfloat16"), ids, 4, 7)
    expected = expected_logits("llama", ids)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.99


def generate(runner: Runner, prompts: list[list[int]], count: int, page_size: int, chunk: int) -> list[list[int]]:
    """Greedy answers of `count` tokens; prompts are computed `chunk` tokens a step, all of them side by side."""
    known = [list(ids) for ids in prompts]
    done = [0] * len(prompts)
    ends = [len(ids) + count for ids in prompts]
    stock: list[int] = shuffled_pages(PAGES, seed=4)
    pages: list[list[int]] = [[] for _ in prompts]
    step = 0
    while any(len(ids) < end for ids, end in zip(known, ends)):
        rows: list[Any] = []
        for i, ids in enumerate(known):
            if len(ids) == ends[i]:
                continue
            upto = min(len(ids), done[i] + chunk)
            while len(pages[i]) * page_size < upto:
                pages[i].append(stock.pop())
            last = upto == len(ids)
            shape = GREEDY if last else None
            rows.append(Row(i, done[i], ids[done[i] : upto], pages[i], shape=shape, position=len(ids)))
            done[i] = upto
        result = runner.launch(Plan(step, tuple(rows))).sample().collect()
        assert result.step == step
        for row, drawn in zip(rows, result.rows):
            assert bool(drawn.tokens) == (row.shape is not None)
            if drawn.tokens:
                known[row.request].append(drawn.tokens[0])
        step += 1
    return [ids[len(own) :] for ids, own in zip(known, prompts)]
