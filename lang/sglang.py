"""Names that exist for the sake of programs written for SGLang: global_config, flush_cache, get_server_info.

Knows: the default backend, states. Must not know: sockets, processes, which backends there are.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from branchwork.lang import default, function
from branchwork.lang.backend import Backend
from branchwork.lang.errors import CapabilityError
from branchwork.lang.state import ProgramState


@runtime_checkable
class Serving(Protocol):
    """A backend with a cache of its own, and something to say about itself."""

    def flush_cache(self) -> dict[str, Any]: ...

    def get_server_info(self) -> dict[str, Any]: ...


# settings of SGLang's engine and tracer: they can be set and read back, and nothing here depends on them
_WITHOUT_EFFECT: dict[str, Any] = {
    "default_init_new_token_ratio": 0.7,
    "default_min_new_token_ratio_factor": 0.14,
    "default_new_token_ratio_decay_steps": 600.0,
    "retract_decode_steps": 20,
    "flashinfer_workspace_size": 384 * 1024 * 1024,
    "skip_special_tokens_in_output": True,
    "spaces_between_special_tokens_in_out": True,
    "enable_precache_with_tracing": True,
    "enable_parallel_encoding": True,
}


class GlobalConfig:
    """Settings of this process. A name that SGLang does not know either raises AttributeError.

    verbosity: from 2 on, the text of every run is printed when it is done. default_backend: as set_default_backend.
    """

    def __init__(self) -> None:
        self.__dict__.update(_WITHOUT_EFFECT)
        self.__dict__["_verbosity"] = 0

    @property
    def verbosity(self) -> int:
        return int(self.__dict__["_verbosity"])

    @verbosity.setter
    def verbosity(self, level: int) -> None:
        self.__dict__["_verbosity"] = level
        function.when_done = _print_text if level >= 2 else None

    @property
    def default_backend(self) -> Backend | None:
        return default.chosen()

    @default_backend.setter
    def default_backend(self, backend: Backend | None) -> None:
        default.set_default_backend(backend)

    def __setattr__(self, name: str, value: Any) -> None:
        known = {*_WITHOUT_EFFECT, "verbosity", "default_backend"}
        if name not in known:
            raise AttributeError(f"global_config has no {name!r}; it has {', '.join(sorted(known))}")
        super().__setattr__(name, value)


def _print_text(state: ProgramState) -> None:
    print(state)


global_config = GlobalConfig()


def flush_cache(backend: Backend | None = None, empty_cache: bool = True) -> bool:
    """Drop every cached prefix that nobody uses, of a backend or of the default one; False when neither is there.

    empty_cache: SGLang's, without effect. Raises CapabilityError for a backend without a cache, BackendError.
    """
    chosen = backend or global_config.default_backend
    if chosen is None:
        return False
    _serving(chosen, "flush_cache").flush_cache()
    return True


def get_server_info(backend: Backend | None = None) -> dict[str, Any] | None:
    """What a backend, or the default one, says of its model and its counters; None when neither is there.

    Raises CapabilityError for a backend that serves nothing itself, BackendError.
    """
    chosen = backend or global_config.default_backend
    return None if chosen is None else _serving(chosen, "get_server_info").get_server_info()


def _serving(backend: Backend, asked: str) -> Serving:
    if isinstance(backend, Serving):
        return backend
    name = getattr(backend.model, "name", backend.model)
    raise CapabilityError(f"{type(backend).__name__} ({name}) is no runtime, so it cannot answer {asked}")
