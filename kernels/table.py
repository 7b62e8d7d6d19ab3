"""Which implementation serves each op on each kind of device: the only file that asks what hardware this is.

Knows: implementations by name, best first, and why one is missing here. Must not know: models, the runtime.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One implementation: `function` of branchwork.kernels.`module`, imported when first needed.

    optional: the module says in `available` and `why` whether it can serve this machine.
    multiple: what the op's last dimension must be a multiple of.
    """

    name: str
    module: str
    function: str
    optional: bool = False
    multiple: int = 1


class Choice(NamedTuple):
    """What serves an op, and each better implementation that is missing with the reason."""

    op: str
    chosen: str
    missing: tuple[tuple[str, str], ...]


def _row(op: str, file: str, *cpu: Entry, gpu: str = "") -> dict[str, tuple[Entry, ...]]:
    """gpu: the module of kernels.triton that serves both vendors' devices; none by default."""
    reference = Entry("reference", f"reference.{file}", op)
    triton = (Entry("triton", f"triton.{gpu}", op, optional=True),) if gpu else ()
    return {"cpu": (*cpu, reference), "cuda": (*triton, reference), "rocm": (*triton, reference)}


def _native(op: str, file: str = "cpu.fused") -> Entry:
    return Entry("native", file, op, optional=True)


def _products(op: str) -> tuple[Entry, Entry, Entry]:
    return (
        _native(op, "cpu.product"),
        Entry("onednn", "cpu.packed_linear", op, optional=True),
        Entry("torch", "cpu.linear", op),
    )


TABLE: dict[str, dict[str, tuple[Entry, ...]]] = {
    "rms_norm": _row("rms_norm", "norm", _native("rms_norm"), gpu="norm"),
    "add_rms_norm": _row("add_rms_norm", "norm", _native("add_rms_norm"), gpu="norm"),
    "layer_norm": _row("layer_norm", "norm"),
    "rope": _row("rope", "rope", _native("rope"), gpu="rope"),
    "silu_mul": _row("silu_mul", "activation", _native("silu_mul"), gpu="activation"),
    "gelu": _row("gelu", "activation", _native("gelu")),
    "gelu_mul": _row("gelu_mul", "activation", gpu="activation"),
    "linear": _row("linear", "linear", *_products("linear"), gpu="linear"),
    "pack_linear": _row("pack_linear", "linear", *_products("pack_linear"), gpu="linear"),
    "quantize": _row("quantize", "quant", _native("quantize", "cpu.product")),
    "embedding": _row("embedding", "linear", gpu="embedding"),
    "route": _row("route", "moe", gpu="moe"),
    "pack_experts": _row("pack_experts", "moe", Entry("grouped", "cpu.moe", "pack_experts"), gpu="moe"),
    "expert_mlp": _row("expert_mlp", "moe", Entry("grouped", "cpu.moe", "expert_mlp"), gpu="moe"),
    "store_kv": _row("store_kv", "kv", _native("store_kv"), Entry("torch", "cpu.kv", "store_kv"), gpu="kv"),
    "rope_store_kv": _row(
        "rope_store_kv", "kv", _native("rope_store_kv"), Entry("torch", "cpu.kv", "rope_store_kv"), gpu="kv"
    ),
    "paged_attention": _row(
        "paged_attention",
        "attention",
        Entry("native", "cpu.attention", "paged_attention", optional=True, multiple=8),
        Entry("torch", "cpu.gathered_attention", "paged_attention"),
        gpu="attention",
    ),
    "ragged_attention": _row("ragged_attention", "ragged"),
    "attention_planner": _row("attention_planner", "planning", gpu="attention_planner"),
    "tree_attention": _row("tree_attention", "attention", gpu="attention"),
    "apply_mask": _row("apply_mask", "sample", gpu="mask"),
    "penalise": _row("penalise", "sample", gpu="sample"),
    "sample": _row("sample", "sample", _native("sample", "cpu.sample"), gpu="sample"),
    "stack": _row("stack", "stack", _native("stack", "cpu.stack")),
}


@cache
def implementation(op: str, device_type: str, dim: int = 0) -> Callable[..., Any]:
    """The function that serves `op` on torch devices of this type; dim: its last dimension, where that decides.

    Raises KeyError for an unknown op or device.
    """
    return load(next(entry for entry in TABLE[op][kind(device_type)] if not why_missing(entry, dim)))


def report(device_type: str = "cpu") -> list[Choice]:
    """Per op, which implementation is chosen on such a device and why each better one is missing."""
    choices: list[Choice] = []
    for op, kinds in TABLE.items():
        missing: list[tuple[str, str]] = []
        for entry in kinds[kind(device_type)]:
            why = why_missing(entry)
            if not why:
                choices.append(Choice(op, entry.name, tuple(missing)))
                break
            missing.append((entry.name, why))
    return choices


def load(entry: Entry) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(_module(entry), entry.function)
    return function


def why_missing(entry: Entry, dim: int = 0) -> str:
    """Why an implementation cannot serve this machine or last dimension; empty when it can."""
    if dim % entry.multiple:
        return f"dimension {dim} is no multiple of {entry.multiple}"
    if not entry.optional:
        return ""
    module = _module(entry)
    return "" if module.available else str(module.why)


def kind(device_type: str) -> str:
    """Device kind of the table: torch calls AMD's devices cuda, too."""
    if device_type != "cuda":
        return device_type
    import torch

    return "rocm" if torch.version.hip else "cuda"


def serves_float8(device_type: str) -> bool:
    """Whether weights, keys and values of e4m3 are read as they are on devices of this type."""
    return kind(device_type) != "cpu"


@cache
def chip(device: Any) -> str:
    """A torch device's chip as tables of launch parameters name it: "sm_90", "gfx942"; "default" for no GPU."""
    if device.type != "cuda":
        return "default"
    import torch

    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName.split(":")[0])
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _module(entry: Entry) -> Any:
    return importlib.import_module(f"branchwork.kernels.{entry.module}")
