"""What every part of the GPU suite is told, and what it gives: a Setting, Items.

Knows: names. Must not know: any part, how items are run. Torch is imported only when a device is asked for.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpu_report import Figure

if TYPE_CHECKING:
    import torch

COPY, MATMUL = "copy bandwidth", "bf16 matmul rate"  # figures of the environment that the other parts need


class Setting(NamedTuple):
    """What a part is told. known: values of earlier parts by name. each: seconds of one timing. scratch: a folder for
    what is made at run time."""

    device: str
    tiny: bool
    known: Mapping[str, float]
    each: float
    scratch: Path

    @property
    def where(self) -> torch.device:
        import torch

        return torch.device(self.device)


class Item(NamedTuple):
    name: str
    run: Callable[[], list[Figure]]


def tidy(setting: Setting) -> None:
    """Give back what an item left, so that the next one finds the device empty."""
    gc.collect()
    if setting.device != "cpu":
        import torch

        torch.cuda.empty_cache()
