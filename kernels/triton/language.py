"""Triton where it is installed, and the reason where it is not; modules of kernels import either way.

Knows: how Triton is imported. Must not know: ops, chips, launch parameters.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def _source(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """Leaves a kernel's source alone: without Triton nobody launches it."""
    return function if function is not None else _source


available = True
why = ""
tl: Any = None
jit: Any = _source

try:
    tl = importlib.import_module("triton.language")
    jit = importlib.import_module("triton").jit
except ImportError as error:
    available, why = False, f"Triton is not installed ({error}): pip install 'branchwork[gpu]'"


def power_of_2(count: int) -> int:
    """The least power of two that is not below `count` (1 for nothing): the width of a block that holds them all."""
    return 1 << max(count - 1, 0).bit_length()


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` cover `count` things."""
    return -(-count // size)
