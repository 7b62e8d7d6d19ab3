"""How a model's states become a text's vector, as sentence-transformers' files beside it say.

Knows: modules.json and the files that it names. Must not know: tensors, requests, tokenizers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from branchwork.runtime.loading.companions import companion
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_file import is_gguf

Kind = Literal["first", "last", "mean"]
_KINDS: dict[str, Kind] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
}
_BY_NAME: dict[str, Kind] = {"cls": "first", "lasttoken": "last", "mean": "mean"}
_SERVED = ("Transformer", "Pooling", "Normalize")


class Pooling(NamedTuple):
    """kind, normalize: as in wire.Embed. longest: tokens of the longest text that it was made for, 0 where nobody
    says. said: the model's files say so, so its tokenizer writes texts as it was trained on them."""

    kind: Kind = "mean"
    normalize: bool = True
    longest: int = 0
    said: bool = False


def load_pooling(model: Path) -> Pooling:
    """Of a model directory or GGUF file; the mean, scaled to length 1, where nothing is said.

    Raises LoadError (unsupported) for modules and poolings that are not served.
    """
    if is_gguf(model) or not (model / "modules.json").is_file():
        return Pooling()
    modules = _modules(model / "modules.json")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    other = next((kind for kind in kinds if kind not in _SERVED), None)
    if other is not None:
        served = ", ".join(_SERVED)
        raise LoadError("unsupported", f"{model / 'modules.json'}: module {other!r} is not supported; only {served}")
    said = companion(model, "sentence_bert_config.json").get("max_seq_length")
    longest = said if isinstance(said, int) else 0
    where = next((str(module.get("path", "")) for module, kind in zip(modules, kinds) if kind == "Pooling"), None)
    kind = "mean" if where is None else _kind(model / where)
    return Pooling(kind, "Normalize" in kinds, longest, True)


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError("config", f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise LoadError("config", f"{path} holds no list of modules")
    return modules


def _kind(folder: Path) -> Kind:
    said = companion(folder, "config.json")
    name = said.get("pooling_mode")  # newer files
    if name in _BY_NAME:
        return _BY_NAME[name]
    modes = [mode for mode, value in said.items() if mode.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in _KINDS:
        names = ", ".join(modes) or str(name)
        known = ", ".join(_KINDS)
        raise LoadError("unsupported", f"{folder / 'config.json'}: pooling by {names} is not supported; one of {known}")
    return _KINDS[modes[0]]
