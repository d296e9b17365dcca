"""How long to wait before the next look, and before the next try. Pure functions.

Looking and retrying are different problems. A *look* finds something out, so equal gaps are best and jitter
only keeps pollers from marching in step: a random phase once, then a few per cent. A *retry* meets a server
in trouble, so it is spread over the whole interval (full jitter).
"""

from __future__ import annotations

from collections.abc import Callable

from asyncsandbox.models import PollPolicy

__all__ = ["Uniform", "first_gap", "next_gap", "retry_delay"]

Uniform = Callable[[float, float], float]
"""Returns a random float between two bounds, as `random.uniform` does."""


def first_gap(policy: PollPolicy, uniform: Uniform) -> float:
    """Return the delay before the first look at a sandbox: its random phase.

    Formula: ``U(0, floor)``, so that many sandboxes polled by one client do not tick together.
    """
    return uniform(0.0, policy.floor)


def next_gap(
    policy: PollPolicy,
    gap: float,
    *,
    news: bool,
    youngest_age: float | None,
    cost: float = 0.0,
    uniform: Uniform,
) -> float:
    """Return the gap before the next look.

    Formula: ``g = gap / 2`` after news, else ``gap × factor``; no longer than ``cap`` nor than
    ``age_share × youngest_age``; no shorter than ``max(floor, 50 × cost)``, so that looking takes at most
    2 % of the time; then varied by ``±jitter``.

    Args:
        policy: the bounds.
        gap: the gap before the look that was just answered, seconds.
        news: whether that look found a job that had ended.
        youngest_age: seconds since the youngest unfinished job was accepted; None when there is none.
        cost: seconds of this machine's time that the look took.
        uniform: the source of randomness.
    """
    wanted = gap / 2 if news else gap * policy.factor
    bound = policy.cap if youngest_age is None else min(policy.cap, policy.age_share * youngest_age)
    bounded = max(policy.floor, 50.0 * cost, min(wanted, bound))
    return bounded * uniform(1.0 - policy.jitter, 1.0 + policy.jitter)


def retry_delay(
    attempt: int, *, floor: float, cap: float, uniform: Uniform, hint: float | None = None
) -> float:
    """Return the delay before trying a failed call again.

    Formula: ``U(0, min(cap, floor × 2^(attempt-1)))``; a server's hint wins and is only ever exceeded:
    ``hint + U(0, floor)``.

    Args:
        attempt: how often it has failed, from 1.
        floor: the first bound, seconds.
        cap: the last bound, seconds.
        uniform: the source of randomness.
        hint: seconds that the server asked for; None when it did not.
    """
    if hint is not None:
        return max(0.0, hint) + uniform(0.0, floor)
    return uniform(0.0, min(cap, floor * 2.0 ** min(attempt - 1, 60)))
