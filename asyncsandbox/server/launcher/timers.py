"""What is to be done later: a heap of calls."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable

__all__ = ["Timer", "Timers"]

# Selectors count in ints of milliseconds; nothing is missed by looking once an hour.
_LONGEST_WAIT = 3600.0
_WORTH_CLEANING = 100


class Timer:
    """A call to come.

    Attributes:
        call: None once it was made or taken back.
    """

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call


class Timers:
    """Calls functions when their time has come.

    What was taken back is thrown out as soon as it is the greater part: most jobs end long before their time,
    and must not be remembered until then.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap)

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Call `call` once the monotonic clock has reached `when`."""
        timer = Timer(call)
        heapq.heappush(self._heap, (when, next(self._order), timer))
        return timer

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call `call` in `seconds`."""
        return self.call_at(time.monotonic() + seconds, call)

    def cancel(self, timer: Timer | None) -> None:
        """Make a call not happen. None, and one that was made or taken back already, are fine."""
        if timer is None or timer.call is None:
            return
        timer.call = None
        self._cancelled += 1
        if self._cancelled > max(_WORTH_CLEANING, len(self._heap) // 2):
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def until_next(self) -> float | None:
        """Return the seconds until something may be due; None when nothing ever is."""
        if not self._heap:
            return None
        return min(max(0.0, self._heap[0][0] - time.monotonic()), _LONGEST_WAIT)

    def run_due(self) -> None:
        """Make the calls that are due now, not those that they add."""
        now = time.monotonic()
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for timer in due:
            call, timer.call = timer.call, None
            if call is None:
                self._cancelled -= 1
            else:
                call()
