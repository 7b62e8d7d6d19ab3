"""The runtime's options: declared once, resolved once by a pure function.

Knows: option names, defaults, what hardware and model imply. Must not know: torch, sockets, any room's insides.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

GUESSERS = ("lookup", "grammar", "model")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of one runtime. 0 and "auto" mean: decided by `resolve` from the machine and the model.

    model: packaged name, directory, GGUF file or hub name. quantize: "" (as the files are) | int8 | int4 | fp8 (on
    GPUs), for a model's matrices while they are loaded. dtype: auto | float32 | bfloat16. device: auto | cpu | cuda.
    memory: GiB of KV cache. pages: KV pages (wins over memory). page_size: tokens of one page, 0 for what suits the
    device. kv_dtype: what KV is kept in, auto (as the model computes) | float32 | bfloat16 | int8 (little over half of
    bfloat16) | float8 (half of it, e4m3; on GPUs).
    budget: tokens computed in one step. max_running: requests that hold KV at once. queue_limit: requests that wait.
    context: longest transcript in tokens (at most the model's own). policy: order of waiting requests, lpm | fcfs.
    threads: CPU threads of the engine, 0 for what is fastest at the start. window: nodes a client may have under way.
    max_branches: branches of one program. restarts: engine restarts before the gateway gives up.
    grammar_backend: auto | dfa | llguidance | xgrammar for all constraints. grammar_seconds, grammar_memory: what
    compiling one may take, in seconds (a DFA gets one at most, then llguidance takes over) and in GiB.
    speculative: who guesses tokens ahead, lookup (text already seen) | grammar (forced text) | model (draft_model),
    several with commas; auto (whoever there is, where it pays) | off. Answers do not depend on it.
    draft_model: a smaller model with the same vocabulary, as in `model`; sapling-draft for sapling; "" for none.
    overlap: a step is launched before the one before is committed, auto (where the device computes by itself) | on |
    off. graphs: decoding steps are captured once and replayed, auto (on GPUs) | off. Answers depend on neither.
    """

    model: str = "sapling"
    quantize: str = ""
    dtype: str = "auto"
    device: str = "auto"
    memory: float = 0.0
    kv_dtype: str = "auto"
    pages: int = 0
    page_size: int = 0
    budget: int = 0
    max_running: int = 256
    queue_limit: int = 100_000
    context: int = 0
    policy: str = "lpm"
    threads: int = 0
    window: int = 8192
    max_branches: int = 4096
    restarts: int = 3
    grammar_backend: str = "auto"
    grammar_seconds: float = 10.0
    grammar_memory: float = 1.0
    speculative: str = "auto"
    draft_model: str = ""
    overlap: str = "auto"
    graphs: str = "auto"

    @property
    def guessers(self) -> frozenset[str]:
        """Who may guess tokens ahead: some of GUESSERS."""
        if self.speculative == "auto":
            return frozenset(GUESSERS)
        return frozenset(self.speculative.split(",")) - {"off"}


class ConfigError(ValueError):
    """An option that does not exist or whose value cannot be used; the message says which and what is allowed."""


class Hardware(msgspec.Struct, frozen=True):
    """What `resolve` needs to know of a machine. cores: as of `cores`. memory: free bytes on `device`."""

    device: str
    cores: int
    memory: int


class ModelSize(msgspec.Struct, frozen=True):
    """What `resolve` needs to know of a model. Bytes are those of its chosen dtype."""

    context: int  # tokens
    page_bytes: int  # KV of one page, all layers
    weight_bytes: int


_AT_LEAST = {
    "pages": 0,
    "page_size": 0,
    "budget": 0,
    "max_running": 1,
    "queue_limit": 1,
    "context": 0,
    "threads": 0,
    "window": 1,
    "max_branches": 1,
    "restarts": 0,
    "memory": 0,
    "grammar_seconds": 0.01,
    "grammar_memory": 0.05,
}
_ONE_OF = {
    "dtype": ("auto", "float32", "bfloat16"),
    "kv_dtype": ("auto", "float32", "bfloat16", "int8", "float8"),
    "device": ("auto", "cpu", "cuda"),
    "policy": ("lpm", "fcfs"),
    "quantize": ("", "int8", "int4", "fp8"),
    "grammar_backend": ("auto", "dfa", "llguidance", "xgrammar"),
    "overlap": ("auto", "on", "off"),
    "graphs": ("auto", "off"),
}
_CPU_SHARE = 0.25  # of the memory that is free, for the KV cache; a laptop has other things to do
_CPU_MOST = 0.5  # of it, where one request of the full context needs that much
_GPU_SHARE = 0.95  # of what is left beside the weights and what steps need
_CPU_BUDGET, _GPU_BUDGET = 1024, 8192  # tokens of a step
_GPU_PAGE = 16  # tokens: lists of pages that are short, and still little that is not shared
_UNBOUNDED = 2**16  # cores
_KV_CEILING = 4 * 2**30  # bytes on a CPU, unless one full context needs more or `memory` or `pages` says so


def parse(options: Iterable[str]) -> Config:
    """Config from "name=value" strings. Raises ConfigError naming the option, its value and what is allowed."""
    values: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or name not in Config.__struct_fields__:
            known = ", ".join(Config.__struct_fields__)
            raise ConfigError(f"unknown runtime option {option!r}; options are name=value with one of: {known}")
        values[name] = value
    try:
        config = msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"bad runtime option: {error}; got {values}") from None
    for name, low in _AT_LEAST.items():
        if getattr(config, name) < low:
            raise ConfigError(f"runtime option {name}={getattr(config, name)} must be at least {low}")
    for name, allowed in _ONE_OF.items():
        if getattr(config, name) not in allowed:
            known = ", ".join(filter(None, allowed))
            raise ConfigError(f"runtime option {name}={getattr(config, name)!r} must be one of {known}")
    _check_guessers(config)
    return config


def _check_guessers(config: Config) -> None:
    if config.speculative not in ("auto", "off") and not config.guessers <= set(GUESSERS):
        allowed = ", ".join(("auto", "off", *GUESSERS))
        raise ConfigError(
            f"runtime option speculative={config.speculative!r} must be one of {allowed}, or several of "
            f"{', '.join(GUESSERS)} with commas between them"
        )
    if config.speculative != "auto" and "model" in config.guessers and not config.draft_model:
        raise ConfigError(
            f"runtime option speculative={config.speculative!r} needs draft_model=, a smaller model with the same "
            "vocabulary (sapling-draft for sapling)"
        )
    if config.draft_model and "model" not in config.guessers:
        raise ConfigError(
            f"runtime option draft_model={config.draft_model!r} is never asked with "
            f"speculative={config.speculative!r}; give speculative=model or auto, or no draft_model"
        )


def on_device(config: Config, device: str) -> Config:
    """What depends on the device alone, filled in: device, page_size, budget."""
    page_size = config.page_size or (1 if device == "cpu" else _GPU_PAGE)
    budget = config.budget or (_CPU_BUDGET if device == "cpu" else _GPU_BUDGET)
    return msgspec.structs.replace(config, device=device, page_size=page_size, budget=budget)


def resolve(config: Config, hardware: Hardware, model: ModelSize) -> tuple[Config, list[str]]:
    """Fill in everything left open but `threads`, which takes measuring. Pure. The notes say what was decided and why,
    a line each.

    Raises ConfigError when not even one full context of KV fits.
    """
    config = on_device(config, hardware.device)
    notes: list[str] = []
    context = min(config.context or model.context, model.context)
    if config.context > model.context:
        notes.append(f"context {config.context} is more than the model's {model.context}; using {model.context}")
    pages = config.pages
    if not pages:
        pages = _pages(config, hardware, model, context)
        notes.append(
            f"KV cache: {pages} pages of {config.page_size} tokens, {pages * model.page_bytes / 2**20:.0f} MiB of the "
            f"{hardware.memory / 2**20:.0f} that are free; memory= (GiB) or pages= change that"
        )
        if pages * config.page_size < context:
            notes.append(
                f"the KV cache holds {pages * config.page_size} tokens, less than one context of {context}; "
                "give memory= in GiB, or kv_dtype=int8 for more tokens in the same memory"
            )
    least = -(-2 // config.page_size) + 1
    if pages < least:
        raise ConfigError(
            f"{pages} KV pages of {config.page_size} tokens cannot hold any request; "
            f"give pages={least} or more, or memory= in GiB ({model.page_bytes} bytes a page)"
        )
    return msgspec.structs.replace(config, context=context, pages=pages), notes


def _pages(config: Config, hardware: Hardware, model: ModelSize, context: int) -> int:
    """KV pages that the memory allows, and no more than every running request could use."""
    contexts = -(-context // config.page_size)
    room = int(config.memory * 2**30)
    if not room and hardware.device == "cpu":
        one = contexts * model.page_bytes
        room = max(min(int(hardware.memory * _CPU_SHARE), _KV_CEILING), min(one, int(hardware.memory * _CPU_MOST)))
    elif not room:
        room = int(hardware.memory * _GPU_SHARE)
    return min(room // model.page_bytes, config.max_running * contexts)


def cores() -> int:
    """CPU cores this process may use: hardware threads of one core count once; the affinity mask, a container's quota
    and OMP_NUM_THREADS are upper bounds."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    most = int(limit) if limit.isdecimal() else _UNBOUNDED
    return max(1, min(len({_siblings(cpu) for cpu in allowed}), _quota(), most))


def _siblings(cpu: int) -> str:
    """The hardware threads of this one's core, as the system writes them."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return str(cpu)


def _quota() -> int:
    """Cores that the control group's quota amounts to."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except OSError:
        return _UNBOUNDED
    return _UNBOUNDED if limit == "max" else max(1, int(limit) // int(period))


def resident() -> int:
    """Bytes of main memory that this process holds; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as line:
            return int(line.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def free_memory() -> int:
    """Bytes of main memory that can be taken without swapping; a guess of 2 GiB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 2 * 2**30
