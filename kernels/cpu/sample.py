"""Drawing tokens on the CPU: the native library's selection without a full sort, or the reference without it.

Knows: addresses of logits and masks, numbers per row. Must not know: requests, where seeds come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from branchwork.kernels.cpu import native
from branchwork.kernels.reference.sample import Draws

available = native.available
why = native.why


def sample(
    logits: torch.Tensor,
    draws: Draws,
    rows: npt.NDArray[np.int64],
    masks: torch.Tensor | None = None,
    mask_of: npt.NDArray[np.int64] | None = None,
) -> torch.Tensor:
    """As `kernels.reference.sample.sample`, for float32 logits in CPU memory; nothing but `rows` of them is read.

    Weights are float32 exponentials (relative error 3e-7), so a uniform that falls this close to a boundary between
    two tokens may give the other one. Raises ValueError for another type or layout.
    """
    count, vocab = len(rows), logits.shape[1]
    if logits.dtype != torch.float32 or logits.device.type != "cpu" or logits.stride(1) != 1:
        raise ValueError(f"logits must be float32 rows in CPU memory, got {logits.dtype} on {logits.device}")
    addresses = logits.data_ptr() + rows * (4 * logits.stride(0))
    mask_addresses = np.zeros(count, dtype=np.int64)
    if masks is not None and mask_of is not None:
        if (
            masks.dtype != torch.int32
            or masks.device.type != "cpu"
            or masks.stride(1) != 1
            or masks.shape[1] * 32 < vocab
        ):
            raise ValueError(f"masks must be int32 [n, >= {-(-vocab // 32)}] in CPU memory, got {tuple(masks.shape)}")
        mask_addresses = np.where(mask_of >= 0, masks.data_ptr() + mask_of * (4 * masks.stride(0)), 0)
    tokens = np.empty(count, dtype=np.int64)
    pairs: tuple[tuple[npt.NDArray[Any], type[Any]], ...] = (
        (addresses, np.int64),
        (mask_addresses, np.int64),
        (draws.temperature, np.float32),
        (draws.top_p, np.float32),
        (draws.min_p, np.float32),
        (draws.top_k, np.int32),
        (draws.uniform, np.float64),
        (tokens, np.int64),
    )
    for array, dtype in pairs:
        if array.dtype != dtype or array.shape != (count,) or not array.flags.c_contiguous:
            raise ValueError(
                f"draws must be contiguous arrays [{count}] of their types, got {array.dtype} {array.shape}"
            )
    call = native.SAMPLING.pack(*[array.ctypes.data for array, _ in pairs], count, vocab)
    native.check(native.library().bw_sample(call))
    return torch.from_numpy(tokens)
