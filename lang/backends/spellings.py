"""How programs written for SGLang name a runtime: its options, and the address of one that serves.

Knows: both spellings. Must not know: processes, sockets, what an option does.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

SHIPPED = "sapling"  # the model inside the package, and the default
PORTS = 40000  # where the search for a free port ends
FIRST_PORT = 30000
_RENAMED = {
    "context_length": "context",
    "max_running_requests": "max_running",
    "max_queued_requests": "queue_limit",
    "chunked_prefill_size": "budget",
    "schedule_policy": "policy",
}
_VALUES = {("dtype", "float"): "float32", ("grammar_backend", "outlines"): "dfa"}
_LOG = frozenset({"log_level", "log_level_http", "log_requests", "show_time_cost", "enable_metrics"})
_MOOT = _LOG | {"trust_remote_code", "tokenizer_mode", "skip_server_warmup"}  # no code of a model is ever run
# what only makes another engine faster, with what to use instead
_TUNING = {
    "mem_fraction_static": "memory= is the KV cache in GiB",
    "cuda_graph_max_bs": "",
    "disable_cuda_graph": "",
    "disable_overlap_schedule": "",
    "attention_backend": "",
    "sampling_backend": "",
    "enable_torch_compile": "",
    "enable_mixed_chunk": "prompts and generation always share steps here",
    "max_prefill_tokens": "budget= is the tokens of one step",
    "schedule_conservativeness": "",
    "stream_interval": "",
    "random_seed": "seed= of a gen or of run() fixes its draws",
    "watchdog_timeout": "",
}
_DEVICES = frozenset(
    {"tp_size", "tensor_parallel_size", "dp_size", "data_parallel_size", "pp_size", "nnodes", "ep_size"}
)
_NEVER = {
    "disable_radix_cache": "the radix cache is how this runtime works",
    "skip_tokenizer_init": "programs are text here",
    "is_embedding": "there are no embeddings yet",
    "chat_template": "the model's own chat template is used",
    "tokenizer_path": "the tokenizer is the model's own",
    "lora_paths": "there are no adapters yet",
    "quantization": "weights are used as they are",
}


class Asked(NamedTuple):
    """A runtime as it was asked for. endpoint, token: "" where nothing was said. timeout: seconds, or None likewise."""

    model: str
    endpoint: str
    token: str
    timeout: float | None
    options: dict[str, Any]


def asked(model: str, endpoint: str, options: Mapping[str, Any]) -> Asked:
    """SGLang's options in this runtime's spelling; all others as they are, for the runtime to know or to refuse.

    What would only have tuned the other engine is left out with a warning. Raises TypeError for a thing said twice,
    ValueError for what this runtime cannot do.
    """
    left = {name: value for name, value in options.items() if value is not None and name not in _MOOT}
    for name in [name for name in left if name in _TUNING]:
        left.pop(name)
        hint = f": {_TUNING[name]}" if _TUNING[name] else ""
        warnings.warn(f"{name} tunes another engine and is left out{hint}", stacklevel=3)
    for name in [name for name in left if name in _DEVICES]:
        if left.pop(name) != 1:
            raise ValueError(f"{name}={options[name]!r}: a runtime uses one device; give 1, or leave it out")
    for name in [name for name in left if name in _NEVER]:
        if left.pop(name):
            raise ValueError(f"{name}={options[name]!r} cannot be had: {_NEVER[name]}; leave it out")
    path = left.pop("model_path", None)
    if path is not None and model not in (SHIPPED, path):
        raise TypeError(f"model={model!r} and model_path={path!r} are the same option; give one of them")
    host, port = left.pop("host", "127.0.0.1"), left.pop("port", None)
    if port is not None:
        if endpoint:
            raise TypeError(f"endpoint={endpoint!r} and port={port!r} are the same option; give one of them")
        endpoint = f"tcp://{host}:{free_port(host, port)}"
    token = str(left.pop("api_key", ""))
    timeout = left.pop("launch_timeout", None)
    return Asked(str(path or model), endpoint, token, timeout, _renamed(left))


def _renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    ours: dict[str, Any] = {}
    for name, value in options.items():
        name_here = _RENAMED.get(name, name)
        if name_here in ours:
            raise TypeError(f"{name} and {name_here} are the same option; give one of them")
        ours[name_here] = _VALUES.get((name_here, value), value) if isinstance(value, str) else value
    tokens = ours.pop("max_total_tokens", None)
    if tokens is not None:
        if "pages" in ours:
            raise TypeError("max_total_tokens and pages say the same; give one of them")
        ours["pages"] = max(1, int(tokens) // int(ours.setdefault("page_size", 1)))
    return ours


def free_port(host: str, first: int) -> int:
    """The first port from `first` on that nobody uses. Raises ValueError when there is none up to PORTS."""
    for port in range(first, max(PORTS, first + 1)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise ValueError(f"no port from {first} to {PORTS} is free on {host}")


def address(url: str) -> str:
    """The endpoint that a base_url means: http://host:port is tcp://host:port; ipc:// and tcp:// stay as they are.

    Raises ValueError for anything else.
    """
    parts = urlsplit(url)
    if parts.scheme in ("ipc", "tcp"):
        return url
    if parts.scheme != "http" or not parts.hostname:
        hint = "; for TLS use connect(endpoint, curve_keys=...)" if parts.scheme == "https" else ""
        raise ValueError(
            f"{url!r} is no address of a runtime; give http://host:port, tcp://host:port or ipc://path{hint}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"tcp://{host}:{parts.port or FIRST_PORT}"
