"""Drawing tokens on GPUs: two launches, no sort, and what the definition draws but for roundings of float32 sums.

Knows: Triton; sample_kernels.py says how a row is drawn. Must not know: requests, seeds' origin, which chip this is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from branchwork.kernels.reference.sample import Draws
from branchwork.kernels.table import chip
from branchwork.kernels.triton.language import available, blocks, why
from branchwork.kernels.triton.sample_kernels import (
    CAPACITY,
    SUMMARY,
    draw_kernel,
    head_kernel,
    penalty_kernel,
)
from branchwork.kernels.triton.tuning import Specimen, launch

__all__ = ["SPECIMENS", "available", "draw_tokens", "packed_draws", "penalise", "sample", "sent", "why"]


def sample(
    logits: Tensor,
    draws: Draws,
    rows: npt.NDArray[np.int64],
    masks: Tensor | None = None,
    mask_of: npt.NDArray[np.int64] | None = None,
) -> Tensor:
    """As `kernels.sample`."""
    if masks is None or mask_of is None:
        masks, mask_of = None, np.full(len(rows), -1, dtype=np.int64)
    packed = sent(packed_draws(draws, rows, mask_of), logits.device)
    return draw_tokens(logits, packed, None if masks is None else sent(masks, logits.device))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; one of the host's goes there through pinned memory, so that nobody waits for the copy."""
    if tensor.device == device:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def packed_draws(draws: Draws, rows: npt.NDArray[np.int64], mask_of: npt.NDArray[np.int64]) -> Tensor:
    """What draw_tokens wants of each draw, int32 [7, N] on the CPU: one copy brings it to the device.

    Uniforms are rounded down to float32, so that none becomes 1.
    """
    uniform = draws.uniform.astype(np.float32)
    uniform = np.where(uniform > draws.uniform, np.nextafter(uniform, np.float32(0)), uniform)
    floats = np.stack([draws.temperature, draws.top_p, draws.min_p, uniform]).astype(np.float32)
    whole = np.stack([rows, mask_of, draws.top_k]).astype(np.int32)
    return torch.from_numpy(np.concatenate([whole, floats.view(np.int32)]))


def draw_tokens(logits: Tensor, packed: Tensor, masks: Tensor | None) -> Tensor:
    """int64 [N] on the device: a token, NOT_FINITE or ALL_MASKED for each draw that packed_draws describes.

    logits [M, V] float32, any row stride; masks int32 [n, >= ceil(V / 32)] or None. V is at most 2**24.
    """
    count, vocab = packed.shape[1], logits.shape[1]
    device = logits.device
    tokens = torch.empty(count, dtype=torch.int64, device=device)
    if not count:
        return tokens
    summary = torch.empty((count, SUMMARY), dtype=torch.float32, device=device)
    values = torch.empty((count, CAPACITY), dtype=torch.float32, device=device)
    ids = torch.empty((count, CAPACITY), dtype=torch.int32, device=device)
    words = packed if masks is None else masks
    shared: tuple[Any, ...] = (logits, words, packed, packed.view(torch.float32), summary, values, ids, tokens)
    sizes = (logits.stride(0), 0 if masks is None else words.stride(0), count, vocab)
    masked = {"MASKED": masks is not None, "CAP": CAPACITY}
    name = chip(device)
    head_kernel[(count,)](*shared, *sizes, **masked, **launch("sample", name, "head"))
    draw_kernel[(count,)](*shared, *sizes, **masked, **launch("sample", name, "draw"))
    return tokens


def penalise(
    logits: Tensor,
    answer: Sequence[int],
    prompt: Sequence[int],
    frequency: float,
    presence: float,
    repetition: float,
) -> None:
    """As `kernels.penalise`: every token that occurred is read and written once."""
    said, counts = np.unique(np.asarray(answer, dtype=np.int64), return_counts=True)
    heard = np.setdiff1d(np.asarray(prompt, dtype=np.int64), said)
    ids = np.concatenate((said, heard))
    known = np.concatenate((counts, np.zeros_like(heard)))
    inside = ids < logits.shape[0]
    packed = sent(torch.from_numpy(np.stack((ids[inside], known[inside])).astype(np.int32)), logits.device)
    size = packed.shape[1]
    if size:
        row = launch("penalise", chip(logits.device))
        grid = (blocks(size, row["BLOCK"]),)
        penalty_kernel[grid](logits, packed, size, frequency, presence, repetition, **row)


_POINTERS = {"logits": "*fp32", "masks": "*i32", "whole": "*i32", "floats": "*fp32", "summary": "*fp32"}
_POINTERS |= {"values": "*fp32", "ids": "*i32", "tokens": "*i64"}
_SIZES = {"row_stride": "i32:16", "mask_stride": "i32", "count": "i32", "vocab": "i32:16"}
SPECIMENS = [
    *(
        Specimen(
            f"sample {key}{' masked' if masked else ''}",
            kernel,
            _POINTERS | _SIZES,
            {"MASKED": masked, "CAP": CAPACITY},
            ("sample", key),
        )
        for key, kernel in (("head", head_kernel), ("draw", draw_kernel))
        for masked in (False, True)
    ),
    Specimen(
        "penalise",
        penalty_kernel,
        {"logits": "*fp32", "packed": "*i32", "size": "i32", "frequency": "fp32", "presence": "fp32"}
        | {"repetition": "fp32"},
        {},
        ("penalise", ""),
    ),
]
