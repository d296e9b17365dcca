"""Where time comes from: one small protocol, so that tests can bring their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "LoopClock", "Timer", "sleep"]


class Timer(Protocol):
    """Something that will happen unless it is cancelled first."""

    def cancel(self) -> None:
        """Make it not happen. Cancelling twice, or too late, does nothing."""


class Clock(Protocol):
    """Monotonic seconds, and a way to be called at one of them."""

    def now(self) -> float:
        """Return monotonic seconds; only differences mean something."""

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` in the event loop once `now()` has reached `when`."""


class LoopClock:
    """The running event loop's own clock."""

    def now(self) -> float:
        """Return the loop's monotonic seconds."""
        return asyncio.get_running_loop().time()

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` once the loop's clock has reached `when`."""
        return asyncio.get_running_loop().call_at(when, callback)


async def sleep(clock: Clock, seconds: float) -> None:
    """Wait for `seconds` on `clock`; for no time at all, still let others run."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    over = asyncio.Event()
    timer = clock.call_at(clock.now() + seconds, over.set)
    try:
        await over.wait()
    finally:
        timer.cancel()
