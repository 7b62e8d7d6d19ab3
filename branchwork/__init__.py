"""The public surface of Branchwork, loaded name by name: importing this module imports nothing heavy.

Knows: where each public name lives. Must not know: anything else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "branchwork.lang.agent": (
        "Agent",
        "AgentResult",
        "agent",
    ),
    "branchwork.lang.asked": ("tag",),
    "branchwork.lang.backend": (
        "LocalBackend",
        "ScriptedBackend",
    ),
    "branchwork.lang.backends.anthropic": ("Anthropic",),
    "branchwork.lang.backends.compatible": (
        "LiteLLM",
        "VertexAI",
    ),
    "branchwork.lang.backends.engine": ("Engine",),
    "branchwork.lang.backends.openai": ("OpenAI",),
    "branchwork.lang.backends.runtime": (
        "Runtime",
        "RuntimeBackend",
        "RuntimeEndpoint",
        "connect",
    ),
    "branchwork.lang.calling": (
        "ToolCall",
        "ToolResult",
        "ToolTurn",
        "tool_results",
        "tool_system",
        "tools",
    ),
    "branchwork.lang.choices": (
        "greedy_token_selection",
        "token_length_normalized",
        "unconditional_likelihood_normalized",
    ),
    "branchwork.lang.compile": ("Compiled",),
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
    "branchwork.lang.default": ("set_default_backend",),
    "branchwork.lang.errors": (
        "BackendError",
        "BranchworkError",
        "CapabilityError",
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
    "branchwork.lang.forks": ("ForkGroup",),
    "branchwork.lang.function": (
        "Function",
        "function",
    ),
    "branchwork.lang.mcp": (
        "McpServer",
        "mcp",
    ),
    "branchwork.lang.media": (
        "image",
        "video",
    ),
    "branchwork.lang.params": ("SamplingParams",),
    "branchwork.lang.protocol": (
        "Budget",
        "ChatFrames",
    ),
    "branchwork.lang.reasoning": ("separate_reasoning",),
    "branchwork.lang.recording": ("RecordingError",),
    "branchwork.lang.replay": ("replay",),
    "branchwork.lang.sglang": (
        "flush_cache",
        "get_server_info",
        "global_config",
    ),
    "branchwork.lang.state": (
        "ProgramState",
        "show",
    ),
    "branchwork.lang.tools": (
        "Tool",
        "ToolError",
        "tool",
    ),
    "branchwork.lang.turn": (
        "optional",
        "repeat",
        "turn",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from branchwork.lang.agent import Agent, AgentResult, agent
    from branchwork.lang.asked import tag
    from branchwork.lang.backend import LocalBackend, ScriptedBackend
    from branchwork.lang.backends.anthropic import Anthropic
    from branchwork.lang.backends.compatible import LiteLLM, VertexAI
    from branchwork.lang.backends.engine import Engine
    from branchwork.lang.backends.openai import OpenAI
    from branchwork.lang.backends.runtime import Runtime, RuntimeBackend, RuntimeEndpoint, connect
    from branchwork.lang.calling import ToolCall, ToolResult, ToolTurn, tool_results, tool_system, tools
    from branchwork.lang.choices import (
        greedy_token_selection,
        token_length_normalized,
        unconditional_likelihood_normalized,
    )
    from branchwork.lang.compile import Compiled
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
    from branchwork.lang.default import set_default_backend
    from branchwork.lang.errors import (
        BackendError,
        BranchworkError,
        CapabilityError,
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
    from branchwork.lang.forks import ForkGroup
    from branchwork.lang.function import Function, function
    from branchwork.lang.mcp import McpServer, mcp
    from branchwork.lang.media import image, video
    from branchwork.lang.params import SamplingParams
    from branchwork.lang.protocol import Budget, ChatFrames
    from branchwork.lang.reasoning import separate_reasoning
    from branchwork.lang.recording import RecordingError
    from branchwork.lang.replay import replay
    from branchwork.lang.sglang import flush_cache, get_server_info, global_config
    from branchwork.lang.state import ProgramState, show
    from branchwork.lang.tools import Tool, ToolError, tool
    from branchwork.lang.turn import optional, repeat, turn

__all__ = [
    "Agent",
    "AgentResult",
    "Anthropic",
    "BackendError",
    "BranchworkError",
    "Budget",
    "CapabilityError",
    "ChatFrames",
    "Choice",
    "Compiled",
    "ConstraintError",
    "Engine",
    "ForkGroup",
    "Function",
    "Grammar",
    "Invalid",
    "JsonSchema",
    "LiteLLM",
    "LocalBackend",
    "McpServer",
    "OpenAI",
    "ProgramError",
    "ProgramState",
    "RecordingError",
    "Refused",
    "Regex",
    "Runtime",
    "RuntimeBackend",
    "RuntimeEndpoint",
    "RuntimeLost",
    "RuntimeStartError",
    "RuntimeUnavailable",
    "SamplingParams",
    "ScriptedBackend",
    "TooBig",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolResult",
    "ToolTurn",
    "Unsupported",
    "VertexAI",
    "__version__",
    "agent",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "connect",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "global_config",
    "greedy_token_selection",
    "image",
    "mcp",
    "optional",
    "repeat",
    "replay",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "show",
    "system",
    "system_begin",
    "system_end",
    "tag",
    "token_length_normalized",
    "tool",
    "tool_results",
    "tool_system",
    "tools",
    "turn",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "video",
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
