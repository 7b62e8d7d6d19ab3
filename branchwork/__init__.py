"""The public surface of Branchwork, loaded name by name: importing this module imports nothing heavy.

Knows: where each public name lives. Must not know: anything else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "branchwork.lang.backend": ("LocalBackend", "ScriptedBackend"),
    "branchwork.lang.backends.runtime": ("Runtime", "RuntimeBackend", "connect"),
    "branchwork.lang.choices": (
        "greedy_token_selection",
        "token_length_normalized",
        "unconditional_likelihood_normalized",
    ),
    "branchwork.lang.errors": (
        "BackendError",
        "BranchworkError",
        "ProgramError",
        "Refused",
        "RuntimeLost",
        "RuntimeStartError",
        "RuntimeUnavailable",
    ),
    "branchwork.lang.expr": (
        "assistant",
        "assistant_begin",
        "assistant_end",
        "gen",
        "select",
        "system",
        "system_begin",
        "system_end",
        "user",
        "user_begin",
        "user_end",
    ),
    "branchwork.lang.function": ("Function", "function", "set_default_backend"),
    "branchwork.lang.params": ("SamplingParams",),
    "branchwork.lang.state": ("ForkGroup", "ProgramState"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from branchwork.lang.backend import LocalBackend, ScriptedBackend
    from branchwork.lang.backends.runtime import Runtime, RuntimeBackend, connect
    from branchwork.lang.choices import (
        greedy_token_selection,
        token_length_normalized,
        unconditional_likelihood_normalized,
    )
    from branchwork.lang.errors import (
        BackendError,
        BranchworkError,
        ProgramError,
        Refused,
        RuntimeLost,
        RuntimeStartError,
        RuntimeUnavailable,
    )
    from branchwork.lang.expr import (
        assistant,
        assistant_begin,
        assistant_end,
        gen,
        select,
        system,
        system_begin,
        system_end,
        user,
        user_begin,
        user_end,
    )
    from branchwork.lang.function import Function, function, set_default_backend
    from branchwork.lang.params import SamplingParams
    from branchwork.lang.state import ForkGroup, ProgramState

__all__ = [
    "BackendError",
    "BranchworkError",
    "ForkGroup",
    "Function",
    "LocalBackend",
    "ProgramError",
    "ProgramState",
    "Refused",
    "Runtime",
    "RuntimeBackend",
    "RuntimeLost",
    "RuntimeStartError",
    "RuntimeUnavailable",
    "SamplingParams",
    "ScriptedBackend",
    "__version__",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "connect",
    "function",
    "gen",
    "greedy_token_selection",
    "select",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'branchwork' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
