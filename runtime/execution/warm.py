"""Steps that make a GPU's kernels ready before anybody waits for them: each sort once, on the scratch page.

Knows: plans, a Runner, a model's sizes. Must not know: which kernels there are, requests, weights' values.
Triton compiles a kernel when it is first launched with arguments of a new kind, and keeps what it has compiled on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import numpy as np
import torch
from torch import Tensor

from branchwork import kernels
from branchwork.runtime.execution.forward import Forward
from branchwork.runtime.execution.memory import allocate, free_memory, working_memory
from branchwork.runtime.execution.runner import Runner
from branchwork.runtime.models.decoder import Decoder
from branchwork.runtime.models.layers import Rotary
from branchwork.runtime.models.size import parameters
from branchwork.runtime.models.spec import ModelSpec
from branchwork.runtime.plan import Plan, Row
from branchwork.runtime.sampling.sampler import Sampler
from branchwork.runtime.wire import Shape

_GREEDY = Shape(temperature=0.0)
_DRAWN = Shape(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05)
_PENALIZED = Shape(temperature=0.0, frequency_penalty=0.1, presence_penalty=0.1, repetition_penalty=1.1)
_LONG = 2048  # positions of a row that is cut, so that all processors have work
_WARM_BUDGET, _WARM_ROWS = 1024, 64  # of the steps that a stand-in computes
_COMMON = 512  # positions that rows share, enough to be read together


def plans(page: int, page_size: int, budget: int, rows: int) -> Iterator[Plan]:
    """Steps of each sort that a runtime computes: decoding alone and in small and large batches, over rows long enough
    to be cut and over a common prefix, drafts, prompts whole, resumed and scored, and everything in one step.

    page: that all of them read and write, whose numbers are nobody's. budget, rows: tokens and rows of the largest step
    that may be.
    """

    def row(number: int, start: int, count: int, shape: Shape | None = _GREEDY, draft: int = 0) -> Row:
        count = min(count, budget)
        pages = [page] * -(-(start + count) // page_size)
        position = start + count
        heard = (1, 2, 3) if shape is _PENALIZED else ()
        return Row(number, start, [0] * count, pages, shape, position, heard, heard[:1], draft=min(draft, count - 1))

    batches = [
        [row(0, 0, 1)],
        [row(0, _LONG, 1, _DRAWN), row(1, _LONG, 1, _PENALIZED), row(2, _LONG, 1)],
        [row(n, _COMMON + n, 1, _DRAWN) for n in range(48)],
        [row(n, 5, 1) for n in range(16)],
        [row(0, 9, 5, draft=4)],
        [msgspec.structs.replace(row(0, 0, 40), score_from=1)],
        [row(0, _COMMON, 512), row(1, 0, 3, None), row(2, _LONG, 1)],
    ]
    for step, batch in enumerate(batches):
        fitting = batch[: min(rows, budget)]
        if sum(len(one.ids) for one in fitting) <= budget:
            yield Plan(step, tuple(fitting))


def warm(runner: Runner, page: int, page_size: int, budget: int, rows: int, vocab: int) -> None:
    """Run each sort of step, see `plans`, twice: what the first compiles the second may record, and draws under masks
    that allow every token. vocab: as the Runner's sampler has it."""
    for plan in plans(page, page_size, budget, rows):
        runner.launch(plan).sample().collect()
        draws = sum(row.draft + 1 for row in plan.rows if row.shape is not None)
        runner.launch(plan).sample(np.full((draws, -(-vocab // 32)), -1, np.int32)).collect()


def compile_ahead(spec: ModelSpec, dtype: torch.dtype, device: torch.device, page_size: int, kv: torch.dtype) -> None:
    """Compile what the dense parts of such a model need, with a stand-in: one layer of zeros for each window.

    To be called in a thread when the real weights begin to be read. Takes an embedding and a layer of memory, and gives
    them back. Raises torch.OutOfMemoryError where that is not there beside all of the weights.
    """
    a, c = spec.attention, spec.hidden
    windows = len(set(a.windows))
    layer = c * ((2 * a.heads + 2 * a.kv_heads) * a.head_dim + 3 * spec.ffn)
    needed = (windows * layer + spec.vocab * c + parameters(spec)) * dtype.itemsize
    needed += working_memory(spec, dtype, _WARM_BUDGET, _WARM_ROWS)
    if device.type == "cuda" and free_memory(device) < needed:
        raise torch.OutOfMemoryError(f"{needed / 2**30:.1f} GiB are needed for the weights and a stand-in")
    model = stand_in(spec, dtype, device)
    pool = allocate(model.spec, 1, page_size, kv, device, scratch=True)
    assert pool.scratch is not None
    warm(
        Runner(Forward(model, pool), Sampler(spec.vocab)), pool.scratch, page_size, _WARM_BUDGET, _WARM_ROWS, spec.vocab
    )


def stand_in(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Decoder:
    """A model of this spec's sizes whose weights are zero, with one layer for each of its windows."""
    a, c = spec.attention, spec.hidden
    windows = tuple(dict.fromkeys(a.windows))

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def affine(rows: int, columns: int, bias: bool) -> kernels.Affine:
        return kernels.Affine(zeros(rows, columns), zeros(rows) if bias else None)

    q = a.heads * a.head_dim
    norm, head = zeros(c), zeros(spec.vocab, c)
    layer = kernels.LayerParts(
        norm=norm,
        qkv=affine(q + 2 * a.kv_heads * a.head_dim, c, a.qkv_bias),
        qk_norm=(zeros(a.head_dim), zeros(a.head_dim)) if a.qk_norm else None,
        out=affine(c, q, a.out_bias),
        post_norm=norm,
        mlp=kernels.Gated(
            affine(spec.ffn, c, spec.mlp_bias), affine(spec.ffn, c, spec.mlp_bias), affine(c, spec.ffn, spec.mlp_bias)
        ),
        window=0,
    )
    parts = kernels.StackParts(
        embed=head,
        norm=norm,
        head=head,
        layer=lambda i: layer._replace(window=windows[i]),
        angles=Rotary(spec.rope, a.head_dim, device),
        layers=len(windows),
        heads=a.heads,
        kv_heads=a.kv_heads,
        dim=a.head_dim,
        ffn=spec.ffn,
        eps=spec.eps,
        bytes=head.nbytes,
    )
    return Decoder(replace(spec, experts=None, layers=len(windows), attention=replace(a, windows=windows)), parts)
