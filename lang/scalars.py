"""Values that are one text each, by type: dates, times, decimals, UUIDs, the pattern of their text and how it is read.

Knows: regular expressions, the standard library's types. Must not know: JSON, constraints, types made of others.
Each pattern takes only texts that are a value: a 30th of February, or a 29th in a common year, matches none.
"""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

_FOURTH = "(0[48]|[2468][048]|[13579][26])"  # 04 08 12 ... 96
_YEAR = "(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"  # as far as Python's dates go
_LONG = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
_SHORT = "(0[469]|11)-(0[1-9]|[12][0-9]|30)"
_FEBRUARY = "02-(0[1-9]|1[0-9]|2[0-8])"
DATE = f"({_YEAR}-({_LONG}|{_SHORT}|{_FEBRUARY})|([0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29)"
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{3}([0-9]{3})?)?"
OFFSET = "(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])"  # what clocks on earth have


class Scalar(NamedTuple):
    """read: of a text that matches the whole pattern. format: its name in JSON Schema where that means the same."""

    pattern: str
    read: Callable[[str], Any]
    format: str = ""


def _moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not read the Z


SCALARS: dict[Any, Scalar] = {
    datetime.date: Scalar(DATE, datetime.date.fromisoformat, "date"),
    datetime.datetime: Scalar(f"{DATE}T{TIME}{OFFSET}?", _moment),
    datetime.time: Scalar(TIME, datetime.time.fromisoformat),
    decimal.Decimal: Scalar(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,20})?", decimal.Decimal),
    uuid.UUID: Scalar("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid.UUID, "uuid"),
}
# by format of JSON Schema, what engines and readers agree on: no days that are in no calendar, no leap seconds
FORMATS = {"date": DATE, "date-time": f"{DATE}T{TIME}{OFFSET}", "time": f"{TIME}{OFFSET}"}


def reader(kind: Any) -> Callable[[str], Any]:
    """Reads a text of one of SCALARS. Raises ValueError for any other text."""
    pattern, read, _ = SCALARS[kind]

    def checked(text: str) -> Any:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"{text!r} is no {kind.__name__} as it is written here, such as {_EXAMPLES[kind]}")
        return read(text)

    return checked


_EXAMPLES = {
    datetime.date: "2024-02-29",
    datetime.datetime: "2024-02-29T08:30:00 or 2024-02-29T08:30:00+01:00",
    datetime.time: "08:30:00",
    decimal.Decimal: "12.50",
    uuid.UUID: "123e4567-e89b-12d3-a456-426614174000",
}
