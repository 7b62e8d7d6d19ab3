"""Launch parameters of every kernel by chip (block sizes, warps, stages), read once from the files in tuned/.

Knows: op names, chip names, the files' format. Must not know: tensors, kernels' code, how rows were found.

A file holds {"about": how its rows came to be, "rows": {op: {parameter: number}}}. default.json has a whole row of each
op, which fits the smallest chips; a chip's file says what differs there. An op with several rows names them after a
dot: the key of "attend" is a tile's height and the padded width of a head vector, at least 128; "f" for float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

CHIPS = ("sm_80", "sm_90", "sm_100", "gfx90a", "gfx942", "gfx950", "gfx1100")
FOLDER = Path(__file__).with_name("tuned")

Row = dict[str, int]


class Specimen(NamedTuple):
    """One compiled shape of a kernel, for the compile check.

    signature: a type for each argument that is no constexpr ("*bf16", "fp32", "i32"; ":16" for multiples of 16).
    constexprs: values, or what makes a value of the row.
    spills: chips where it is known to run out of registers: slower there, not refused.
    rows: what to launch it with: (op, key) of the files, or a mapping of chips (or "default") to parameters.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    rows: tuple[str, str] | Mapping[str, Mapping[str, Any]]
    spills: tuple[str, ...] = ()


class TuningError(ValueError):
    """A file of launch parameters that cannot be used; the message says which, where and what is wanted."""


_trials: dict[str, Row] = {}


def launch(op: str, chip: str, key: str | None = None) -> dict[str, Any]:
    """Parameters to launch `op` with on a chip ("sm_90", "gfx942", ...; unknown ones get the default row), a new dict.

    key: which row of an op that has several, such as "few" and "many" rows. Raises KeyError for an unknown op or key,
    TuningError for a damaged file.
    """
    name = f"{op}.{key}" if key else op
    return {**(_trials.get(name) or rows(chip)[name]), "enable_fp_fusion": True}


@cache
def rows(chip: str) -> Mapping[str, Row]:
    """The whole row of every op on a chip. Raises TuningError for a damaged file."""
    whole = read(FOLDER / "default.json")
    file = FOLDER / f"{chip}.json"
    if chip == "default" or not file.is_file():
        return whole
    own = read(file)
    for op, row in own.items():
        if op not in whole:
            raise TuningError(f"{file}: rows has {op!r}, which is no op of default.json")
        if unknown := sorted(set(row) - set(whole[op])):
            raise TuningError(f"{file}: {op} has no parameter {', '.join(unknown)}; it has {', '.join(whole[op])}")
    return {op: {**row, **own.get(op, {})} for op, row in whole.items()}


@cache
def heights(key: str) -> tuple[int, ...]:
    """Heights of the attention tiles that have rows for a width such as "128" or "128f", ascending."""
    pairs = (op.removeprefix("attend.").split("x") for op in rows("default") if op.startswith("attend."))
    return tuple(sorted(int(height) for height, width in pairs if width == key))


def read(file: Path) -> dict[str, Row]:
    """The rows of one file. Raises TuningError where it is not what this module's docstring says."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TuningError(f"{file} cannot be read as launch parameters: {error}") from error
    if not isinstance(said, dict) or set(said) != {"about", "rows"} or not isinstance(said["rows"], dict):
        raise TuningError(f'{file} must hold {{"about": text, "rows": {{op: {{parameter: number}}}}}}')
    for op, row in said["rows"].items():
        if not isinstance(row, dict) or any(type(number) is not int or number < 1 for number in row.values()):
            raise TuningError(f"{file}: rows[{op!r}] must be an object of positive integers, got {row!r}")
    found: dict[str, Row] = said["rows"]
    return found


@contextmanager
def trial(name: str, row: Row) -> Iterator[None]:
    """Within this, every chip launches the op `name` ("sum_splits", "attend.16x128") with `row`: how rows are compared.

    Of one thread; raises KeyError for an op that has no default row.
    """
    _trials[name] = {**rows("default")[name], **row}
    try:
        yield
    finally:
        del _trials[name]
