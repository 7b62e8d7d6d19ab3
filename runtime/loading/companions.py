"""The JSON files beside a model's weights, as objects; a GGUF file gives the same ones from its metadata.

Knows: where they lie. Must not know: what their fields mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_config import config_of, tokenizer_config_of
from branchwork.runtime.loading.gguf_file import is_gguf, open_gguf

_WRITTEN = {"config.json": config_of, "tokenizer_config.json": tokenizer_config_of}


def companion(model: Path, name: str) -> dict[str, Any]:
    """The object in a model's file `name`; {} where there is none. Raises LoadError (tokenizer, or those of a GGUF)."""
    if is_gguf(model):
        written = _WRITTEN.get(name)
        return written(open_gguf(model)) if written else {}
    path = model / name
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LoadError("tokenizer", f"{path} cannot be read as JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def stored_bytes(model: Path) -> int:
    """Bytes of a model's weight files."""
    files = [model] if is_gguf(model) else list(model.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)
