"""`branchwork doctor`: what this machine has, which kernels would be chosen, what is missing and why.

Knows: where to ask. Must not know: how to print (the command line does).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
import zmq

from branchwork.kernels import table
from branchwork.kernels.cpu import native
from branchwork.runtime.config import cores, free_memory
from branchwork.runtime.grammar import walk
from branchwork.runtime.grammar.store import default_folder
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.models.registry import FAMILIES, load_spec


def examine() -> list[tuple[str, list[tuple[str, ...]]]]:
    """Titled tables of (what, finding, hint) rows."""
    choices = table.report("cuda" if torch.cuda.is_available() else "cpu")
    return [
        ("machine", _machine()),
        ("kernels", [(c.op, c.chosen, "; ".join(f"{name}: {why}" for name, why in c.missing)) for c in choices]),
        ("constraints", _constraints()),
        ("models", _models()),
    ]


def _machine() -> list[tuple[str, ...]]:
    gpu = "none that torch can see; the CPU kernels serve"
    if torch.cuda.is_available():
        gpu = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", sys.executable),
        ("cpu", f"{cores()} cores, best vector set {torch.backends.cpu.get_cpu_capability()}", ""),
        ("memory", f"{free_memory() / 2**30:.1f} GiB free", ""),
        ("gpu", gpu, f"torch {torch.__version__}"),
        ("sockets", "ipc" if zmq.has("ipc") else "loopback TCP", f"zmq {zmq.zmq_version()}"),
        ("C compiler", shutil.which("cc") or "none", "" if native.available else f"native kernels: {native.why}"),
        ("CURVE keys", "available" if zmq.has("curve") else "not in this zmq: no serving to other machines", ""),
        ("threads", os.environ.get("OMP_NUM_THREADS", "chosen by the runtime"), ""),
    ]


def _constraints() -> list[tuple[str, ...]]:
    walking, hint = ("native code", "") if walk.available else ("numpy", "no C compiler at install time: slower masks")
    rows: list[tuple[str, ...]] = [
        ("byte automata", f"outlines-core {version('outlines-core')}, masks by {walking}", hint),
        ("schemas, grammars", f"llguidance {version('llguidance')}", ""),
    ]
    try:
        rows.append(("last fallback", f"xgrammar {version('xgrammar')}", "what it enforces is checked afterwards"))
    except PackageNotFoundError:
        rows.append(("last fallback", "none", "pip install 'branchwork[xgrammar]' adds one"))
    return [*rows, ("compiled grammars", str(default_folder()), "may be deleted at any time")]


def _models() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("families", ", ".join(FAMILIES), "")]
    try:
        directory = find_model("sapling")
        spec = load_spec(directory)
        rows.append(("sapling", f"context {spec.context}, vocabulary {spec.vocab}", str(directory)))
    except LoadError as error:
        rows.append(("sapling", "missing", str(error)))
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    rows.append(("hub", "offline (HF_HUB_OFFLINE=1)" if offline else "used for names like owner/name", ""))
    return rows
