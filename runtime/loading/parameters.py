"""Parameters as Modelfiles write them, and what each one is here: a sampling knob, a runtime option, or nothing.

Knows: Ollama's names, this project's names. Must not know: files, models, who asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from branchwork.lang.params import normalise
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.store import Value


class Parameter(NamedTuple):
    """kind: type of the value. knob: a sampling parameter; option: a runtime's; with neither it changes nothing here.

    harmless: the one value that can be had of a parameter whose others would change answers in a way we do not know.
    """

    kind: type
    knob: str = ""
    option: str = ""
    harmless: Value | None = None


PARAMETERS: dict[str, Parameter] = {
    "temperature": Parameter(float, "temperature"),
    "top_k": Parameter(int, "top_k"),
    "top_p": Parameter(float, "top_p"),
    "min_p": Parameter(float, "min_p"),
    "num_predict": Parameter(int, "max_tokens"),
    "seed": Parameter(int, "seed"),
    "stop": Parameter(list, "stop"),
    "repeat_penalty": Parameter(float, "repetition_penalty"),
    "presence_penalty": Parameter(float, "presence_penalty"),
    "frequency_penalty": Parameter(float, "frequency_penalty"),
    "num_ctx": Parameter(int, option="context"),
    "num_thread": Parameter(int, option="threads"),
    "mirostat": Parameter(int, harmless=0),
    "typical_p": Parameter(float, harmless=1.0),
    "tfs_z": Parameter(float, harmless=1.0),
    **dict.fromkeys(("repeat_last_n", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_gqa"), Parameter(int)),
    **dict.fromkeys(("mirostat_eta", "mirostat_tau", "rope_frequency_base", "rope_frequency_scale"), Parameter(float)),
    **dict.fromkeys(("numa", "low_vram", "f16_kv", "vocab_only", "use_mmap", "use_mlock"), Parameter(bool)),
    **dict.fromkeys(("penalize_newline", "logits_all"), Parameter(bool)),
}
_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def read(name: str, text: str) -> Value:
    """The value of parameter `name` as a Modelfile or a person writes it; a list for stop, of one text.

    Raises LoadError (parameter) for an unknown name, a value of another type or out of range, saying what is allowed.
    """
    known = PARAMETERS.get(name)
    if known is None:
        raise LoadError("parameter", f"there is no parameter {name!r}; there are: {', '.join(sorted(PARAMETERS))}")
    try:
        value = _converted(known.kind, text)
    except (ValueError, KeyError):
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        raise LoadError("parameter", f"parameter {name} is {text!r}; it takes {words[known.kind]}") from None
    check({name: value})
    return value


def _converted(kind: type, text: str) -> Value:
    if kind is list:
        return [text]
    if kind is bool:
        return _BOOLS[text.lower()]
    number: int | float = kind(text)
    return number


def check(parameters: Mapping[str, Any]) -> None:
    """Raises LoadError (parameter) for what is unknown, out of range or cannot be done here."""
    for name, value in parameters.items():
        known = PARAMETERS.get(name)
        if known is None:
            raise LoadError("parameter", f"there is no parameter {name!r}; there are: {', '.join(sorted(PARAMETERS))}")
        if known.harmless is not None and value != known.harmless:
            raise LoadError(
                "parameter", f"parameter {name} {value}: this sampler is not in Branchwork; leave the line out"
            )
        if known.option and (not isinstance(value, int) or value < 1):
            raise LoadError("parameter", f"parameter {name} is {value!r}; it takes a whole number from 1")
        try:
            knobs({name: value})
        except (TypeError, ValueError) as error:
            raise LoadError("parameter", f"parameter {name} {value}: {error}") from None


def knobs(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling knobs (lang.params) among parameters. Raises TypeError, ValueError.

    A num_predict below 0 (as long as there is room), a negative seed (any) and a top_k of 0 (all) are the defaults of
    whoever generates.
    """
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        knob = PARAMETERS[name].knob
        if knob == "max_tokens" and value < 0:
            value = 2**31
        if knob == "seed" and value < 0:
            continue
        if knob == "top_k" and value == 0:
            value = -1
        if knob:
            found[knob] = value
    return normalise(found)


def options(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The runtime options (runtime.config) among parameters, as name=value."""
    return tuple(f"{PARAMETERS[name].option}={value}" for name, value in parameters.items() if PARAMETERS[name].option)


def without_effect(parameters: Mapping[str, Any]) -> list[str]:
    """The parameters that are known and change nothing here: they place memory, or are always as they say."""
    return [name for name in parameters if not PARAMETERS[name].knob and not PARAMETERS[name].option]
