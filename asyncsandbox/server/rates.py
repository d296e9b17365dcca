"""How many requests a caller may make in a while. Pure: told who asks and what time it is.

A *window* of a caller begins with its first request and lasts as long as the rate says; the count begins anew
with the first request after that. What is refused does not count. Scopes and numbers: contract 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, cast, get_args

import attrs

__all__ = ["CONTRACT", "Quota", "Rate", "RateWindows", "Scope", "parse_rates"]

Scope = Literal["agent", "control", "create"]
"""What is limited: each sandbox's agent; the control plane, for each API key; creates, a part of that."""

_SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

_CONTRACT_WORD: Final = "contract"

_RULE: Final = re.compile(r"(?P<scope>[a-z]+)=(?P<requests>[0-9]{1,9})/(?P<unit>[a-z]+)")

_UNITS: Final = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}

_SWEEP_AT: Final = 1024
"""So many windows are kept before those that are over are looked for."""


@attrs.frozen
class Rate:
    """At most so many requests in so many seconds."""

    requests: int
    seconds: float


CONTRACT: Final[Mapping[Scope, Rate]] = {
    "agent": Rate(300, 60.0),
    "control": Rate(100, 60.0),
    "create": Rate(20, 60.0),
}
"""What the hosted service documents."""


def parse_rates(text: str) -> dict[Scope, Rate]:
    """Read limits as a command line gives them: ``agent=300/min,control=100/min,create=20/min``.

    Args:
        text: rules divided by commas, units ``s``, ``min`` and ``h``; or ``contract`` for the documented
            numbers.

    Raises:
        ValueError: it is something else; the message says what, for people.
    """
    if text.strip() == _CONTRACT_WORD:
        return dict(CONTRACT)
    rates: dict[Scope, Rate] = {}
    for rule in text.split(","):
        scope, rate = _parse_rule(rule.strip())
        if scope in rates:
            raise ValueError(f"{scope} is limited twice")
        rates[scope] = rate
    return rates


def _parse_rule(rule: str) -> tuple[Scope, Rate]:
    found = _RULE.fullmatch(rule)
    if found is None:
        raise ValueError(f"{rule!r} is no limit; write for example agent=300/min, or {_CONTRACT_WORD}")
    if found["scope"] not in _SCOPES:
        raise ValueError(f"{found['scope']!r} cannot be limited; there are: {', '.join(_SCOPES)}")
    if found["unit"] not in _UNITS:
        raise ValueError(f"{found['unit']!r} is no unit of time; there are: {', '.join(_UNITS)}")
    if int(found["requests"]) == 0:
        raise ValueError(f"{rule!r} would refuse everything; allow at least 1")
    return cast("Scope", found["scope"]), Rate(int(found["requests"]), _UNITS[found["unit"]])


@attrs.frozen(kw_only=True)
class Quota:
    """What is left to a caller.

    Attributes:
        allowed: whether the request that was asked for may be made.
        scope: which limit this tells of.
        limit: requests in one window.
        remaining: of them, how many may still be made after this one.
        reset_after: seconds until the window is over.
    """

    allowed: bool
    scope: Scope
    limit: int
    remaining: int
    reset_after: float


class _Window:
    __slots__ = ("end", "used")

    def __init__(self, end: float) -> None:
        self.end = end
        self.used = 0


class RateWindows:
    """Who has asked how often.

    Args:
        rates: the limits; a scope without one is not limited.
    """

    def __init__(self, rates: Mapping[Scope, Rate]) -> None:
        self._rates = dict(rates)
        self._windows: dict[tuple[Scope, str], _Window] = {}
        self._sweep_at = _SWEEP_AT

    def __repr__(self) -> str:
        return f"<RateWindows {', '.join(self._rates) or 'off'} windows={len(self._windows)}>"

    def take(self, callers: Mapping[Scope, str], now: float) -> Quota | None:
        """Count a request in all its scopes, or in none if one of them has nothing left.

        Args:
            callers: who asks, for each scope that the request falls into.
            now: the time in seconds, by a clock that never goes back.

        Returns:
            The tightest of its limits, or the one that refuses it for longest; None when none applies.
        """
        windows = {
            scope: self._window(scope, callers[scope], now) for scope in callers if scope in self._rates
        }
        if not windows:
            return None
        full = [scope for scope, window in windows.items() if window.used >= self._rates[scope].requests]
        if full:
            last = max(full, key=lambda scope: windows[scope].end)
            return self._quota(last, windows[last], now, allowed=False)
        for window in windows.values():
            window.used += 1
        quotas = [self._quota(scope, window, now, allowed=True) for scope, window in windows.items()]
        return min(quotas, key=lambda quota: (quota.remaining, -quota.reset_after))

    def _quota(self, scope: Scope, window: _Window, now: float, *, allowed: bool) -> Quota:
        limit = self._rates[scope].requests
        return Quota(
            allowed=allowed,
            scope=scope,
            limit=limit,
            remaining=limit - window.used,
            reset_after=window.end - now,
        )

    def _window(self, scope: Scope, caller: str, now: float) -> _Window:
        window = self._windows.get((scope, caller))
        if window is None or window.end <= now:
            if len(self._windows) >= self._sweep_at:
                self._sweep(now)
            window = self._windows[scope, caller] = _Window(now + self._rates[scope].seconds)
        return window

    def _sweep(self, now: float) -> None:
        self._windows = {caller: window for caller, window in self._windows.items() if window.end > now}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._windows))
