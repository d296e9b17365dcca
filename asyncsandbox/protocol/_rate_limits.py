"""What is left of a rate limit, as the headers of every answer tell it (contract 1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

__all__ = ["RateLimit", "decode_rate_limit", "encode_rate_limit"]

_LIMIT: Final = "X-RateLimit-Limit"
_REMAINING: Final = "X-RateLimit-Remaining"
_RESET: Final = "X-RateLimit-Reset"

_LONGEST: Final = 15
"""Digits of a number that means something."""

_LATEST: Final = 253_402_300_799
"""The last second that a calendar has (the end of the year 9999); what is later is no time."""


@attrs.frozen(kw_only=True)
class RateLimit:
    """What a server says that is left to us.

    Attributes:
        limit: requests in one window.
        remaining: of them, how many may still be made.
        reset: when the next window begins, Unix time by the server's clock; None when it does not say.
    """

    limit: int
    remaining: int
    reset: int | None = None


def encode_rate_limit(rate_limit: RateLimit) -> dict[str, str]:
    """Return the headers that tell of a limit (D)."""
    headers = {_LIMIT: str(rate_limit.limit), _REMAINING: str(rate_limit.remaining)}
    return headers if rate_limit.reset is None else {**headers, _RESET: str(rate_limit.reset)}


def decode_rate_limit(headers: Mapping[str, str]) -> RateLimit | None:
    """Read what the headers of an answer tell of a limit (D).

    Args:
        headers: with names in lower case, as a `Reply` has them.

    Returns:
        None where a count is missing or is no whole number: half a hint is none. Only `reset` may be missing.
    """
    limit, remaining = _count(headers, _LIMIT), _count(headers, _REMAINING)
    if limit is None or remaining is None:
        return None
    reset = _count(headers, _RESET)
    if reset is not None and reset > _LATEST:
        reset = None
    return RateLimit(limit=limit, remaining=remaining, reset=reset)


def _count(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name.lower(), "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _LONGEST else None
