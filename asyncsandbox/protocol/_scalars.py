"""Small readers and writers of JSON values: lenient, because servers differ; none of them raises."""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

__all__ = [
    "as_integer",
    "as_number",
    "as_seconds",
    "as_text",
    "first_of",
    "from_base64",
    "timestamp",
    "unix_time",
]


def timestamp(unix: float | None) -> str | None:
    """Return Unix time as RFC 3339 in UTC, microseconds kept. V: clients need the offset."""
    if unix is None:
        return None
    return dt.datetime.fromtimestamp(unix, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def unix_time(value: object) -> float | None:
    """Return RFC 3339 text or a number as Unix time; None for anything else. Naive times count as UTC.

    Times before 1970 are None: Go's zero time, for one, means that there is none.
    """
    seconds = as_number(value)
    if isinstance(value, str):
        try:
            moment = dt.datetime.fromisoformat(value)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return seconds if seconds is not None and seconds >= 0 else None


def as_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def as_integer(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def as_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON has integers of any length
        return None


def first_of(row: Mapping[str, Any], *names: str) -> Any:
    """Return the first of several spellings that is there. D and O disagree on most of them (contract 2b)."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    return None


def as_seconds(value: float) -> int | float:
    """Return seconds as the contract writes them: whole where they are whole."""
    return int(value) if value == int(value) else value


def from_base64(value: object) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        return None
