"""The public surface of Branchwork, loaded name by name: importing this module imports nothing heavy.

Knows: where each public name lives. Must not know: anything else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "branchwork.lang.asked": ("tag",),
    "branchwork.lang.backend": ("LocalBackend", "ScriptedBackend"),
    "branchwork.lang.backends.runtime": ("Runtime", "RuntimeBackend", "connect"),
    "branchwork.lang.choices": (
        "greedy_token_selection",
        "token_length_normalized",
        "unconditional_likelihood_normalized",
    ),
    "branchwork.lang.constraint": (
        "Choice",
        "ConstraintError",
        "Grammar",
        "Invalid",
        "JsonSchema",
        "Regex",
        "TooBig",
        "Unsupported",
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
        "gen_int",
        "gen_string",
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
    "branchwork.lang.turn": ("optional", "repeat", "turn"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from branchwork.lang.asked import tag
    from branchwork.lang.backend import LocalBackend, ScriptedBackend
    from branchwork.lang.backends.runtime import Runtime, RuntimeBackend, connect
    from branchwork.lang.choices import (
        greedy_token_selection,
        token_length_normalized,
        unconditional_likelihood_normalized,
    )
    from branchwork.lang.constraint import (
        Choice,
        ConstraintError,
        Grammar,
        Invalid,
        JsonSchema,
        Regex,
        TooBig,
        Unsupported,
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
        gen_int,
        gen_string,
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
    from branchwork.lang.turn import optional, repeat, turn

__all__ = [
    "BackendError",
    "BranchworkError",
    "Choice",
    "ConstraintError",
    "ForkGroup",
    "Function",
    "Grammar",
    "Invalid",
    "JsonSchema",
    "LocalBackend",
    "ProgramError",
    "ProgramState",
    "Refused",
    "Regex",
    "Runtime",
    "RuntimeBackend",
    "RuntimeLost",
    "RuntimeStartError",
    "RuntimeUnavailable",
    "SamplingParams",
    "ScriptedBackend",
    "TooBig",
    "Unsupported",
    "__version__",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "connect",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "greedy_token_selection",
    "optional",
    "repeat",
    "select",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "tag",
    "token_length_normalized",
    "turn",
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
