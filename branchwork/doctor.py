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

from branchwork import doctor_model
from branchwork.doctor_model import Rows
from branchwork.kernels import table
from branchwork.kernels.cpu import native
from branchwork.runtime.config import cores, free_memory
from branchwork.runtime.grammar import walk
from branchwork.runtime.grammar.store import default_folder
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.models.registry import FAMILIES


def examine(model: str = "") -> list[tuple[str, Rows]]:
    """Titled tables of (what, finding, hint) rows. model: a name, directory or file to look at as well.

    Raises LoadError for a model that cannot be served.
    """
    choices = table.report("cuda" if torch.cuda.is_available() else "cpu")
    tables: list[tuple[str, Rows]] = [
        ("machine", _machine()),
        ("kernels", [(c.op, c.chosen, "; ".join(f"{name}: {why}" for name, why in c.missing)) for c in choices]),
        ("products", _products({choice.op: choice.chosen for choice in choices}["linear"])),
        ("constraints", _constraints()),
        ("models", _models()),
    ]
    return [*tables, (model, doctor_model.examine(model))] if model else tables


def _machine() -> Rows:
    gpu = "none that torch can see; the CPU kernels serve"
    if torch.cuda.is_available():
        gpu = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", sys.executable),
        ("cpu", f"{cores()} cores, best vector set {torch.backends.cpu.get_cpu_capability()}", ""),
        ("memory", f"{free_memory() / 2**30:.1f} GiB free", ""),
        ("gpu", gpu, f"torch {torch.__version__}"),
        ("sockets", "ipc" if zmq.has("ipc") else "loopback TCP", f"zmq {zmq.zmq_version()}"),
        ("C compiler", shutil.which("cc") or "none", "" if native.available else _without_compiler()),
        ("CURVE keys", "available" if zmq.has("curve") else "not in this zmq: no serving to other machines", ""),
        ("threads", *_threads()),
    ]


def _threads() -> tuple[str, str]:
    given = os.environ.get("OMP_NUM_THREADS")
    if given is not None:
        return f"OMP_NUM_THREADS={given} here", "runtimes choose their own: threads=N"
    return f"chosen when a runtime starts, at most {cores()}", "threads=N sets them"


def _without_compiler() -> str:
    return (
        "the native kernels are missing: a small model generates at a third of the speed or less, attention over long "
        f"contexts takes longer, and quantized weights are kept as floats in memory ({native.why})"
    )


def _products(linear: str) -> Rows:
    """What multiplies weights of each kind, and with which instructions."""
    if linear != "native":
        floats = "torch" if linear == "reference" else linear
        whole = "made floats when they are loaded: neither smaller nor faster than those"
        return [("float32, bfloat16", floats, ""), ("int8, int4", floats, whole)]
    here = native.features()
    width = f"native, vectors of {native.vector_width()} floats"
    pairs = next((name for name in here if name == "AVX512-BF16"), "")
    dots = next((name for name in here if name in ("AVX512-VNNI", "AVX-VNNI", "NEON dot products")), "")
    slower = "exact all the same; this processor has no instruction for it"
    return [
        ("float32", width, ""),
        ("bfloat16", f"{width}, {pairs or 'widened to float32'}", "" if pairs else slower),
        ("int8, int4", f"{width}, {dots or 'sums in floats'}", "" if dots else slower),
    ]


def _constraints() -> Rows:
    walking, hint = ("native code", "") if walk.available else ("numpy", "no C compiler at install time: slower masks")
    rows: Rows = [
        ("byte automata", f"outlines-core {version('outlines-core')}, masks by {walking}", hint),
        ("schemas, grammars", f"llguidance {version('llguidance')}", ""),
    ]
    try:
        rows.append(("last fallback", f"xgrammar {version('xgrammar')}", "what it enforces is checked afterwards"))
    except PackageNotFoundError:
        rows.append(("last fallback", "none", "pip install 'branchwork[xgrammar]' adds one"))
    return [*rows, ("compiled grammars", str(default_folder()), "may be deleted at any time")]


def _models() -> Rows:
    rows: Rows = [("families", ", ".join(FAMILIES), "")]
    try:
        rows.append(("sapling", doctor_model.summary(find_model("sapling")), "ships with Branchwork"))
    except LoadError as error:
        rows.append(("sapling", "missing", str(error)))
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    rows.append(("hub", "offline (HF_HUB_OFFLINE=1)" if offline else "used for names like owner/name", ""))
    return rows
