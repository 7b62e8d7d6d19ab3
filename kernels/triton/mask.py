"""Grammar bitmasks on logits, for GPUs: applied in place, and read by the kernels that draw.

Knows: Triton, masks of 32 tokens a word. Must not know: grammars, which chip this is.
"""

from __future__ import annotations

from torch import Tensor

from branchwork.kernels.table import chip
from branchwork.kernels.triton.language import available, blocks, jit, tl, why
from branchwork.kernels.triton.tuning import Specimen, launch

__all__ = ["SPECIMENS", "apply_mask", "available", "bits", "why"]


@jit
def bits(words, token, live):
    """Whether tokens are allowed by the mask at `words`: bit i % 32 of word i // 32 stands for token i."""
    word = tl.load(words + token // 32, mask=live, other=0)
    return ((word >> (token % 32)) & 1) != 0


@jit
def mask_kernel(logits, masks, mask_of, row_stride, mask_stride, vocab, BLOCK: tl.constexpr):
    """Forbidden tokens of one row become -inf; allowed ones are not even read."""
    row = tl.program_id(0).to(tl.int64)
    which = tl.load(mask_of + row).to(tl.int64)
    if which >= 0:
        token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        live = token < vocab
        forbidden = live & (bits(masks + which * mask_stride, token, live) == 0)
        gone = tl.full([BLOCK], float("-inf"), tl.float32)
        tl.store(logits + row * row_stride + token, gone.to(logits.dtype.element_ty), mask=forbidden)


def apply_mask(logits: Tensor, masks: Tensor, mask_of: Tensor) -> None:
    """As `kernels.apply_mask`."""
    rows, vocab = logits.shape
    if rows and vocab:
        row = launch("mask", chip(logits.device))
        grid = (rows, blocks(vocab, row["BLOCK"]))
        mask_kernel[grid](logits, masks, mask_of, logits.stride(0), masks.stride(0), vocab, **row)


SPECIMENS = [
    Specimen(
        "apply_mask",
        mask_kernel,
        {"logits": "*fp32", "masks": "*i32", "mask_of": "*i64"}
        | {"row_stride": "i32:16", "mask_stride": "i32", "vocab": "i32:16"},
        {},
        ("mask", ""),
    )
]
