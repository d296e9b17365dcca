"""What a server counts while it works, from its start on. No I/O, and next to no time.

What tables can tell (how many sandboxes, how many jobs in which state) is not counted here: whoever asks for
metrics looks there.
"""

from __future__ import annotations

import bisect
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

__all__ = ["BUCKETS", "RequestTally", "RouteTally", "RunTally", "SandboxRuns"]

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds of the buckets of the latency histogram, in seconds; one more has no bound."""

_RECENT: Final = 256
"""Runs of a sandbox whose durations are remembered."""


class RouteTally:
    """The requests of one route.

    Attributes:
        classes: requests by class of their status: 2 for 2xx.
        buckets: requests by latency, each in one bucket of `BUCKETS` or in the last.
        seconds: their latencies together.
    """

    __slots__ = ("buckets", "classes", "seconds")

    def __init__(self) -> None:
        self.classes = [0] * 6
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def note(self, status: int, seconds: float) -> None:
        """Count a request that was answered after `seconds`."""
        self.classes[status // 100] += 1
        self.buckets[bisect.bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


class RequestTally:
    """The requests of one server, by method and route."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, str], RouteTally] = {}

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            method: of HTTP.
            route: the pattern of its path, never the path itself: there are only so many patterns.
            status: of the answer.
            seconds: until the answer was there.
        """
        tally = self._routes.get((method, route))
        if tally is None:
            tally = self._routes[method, route] = RouteTally()
        tally.note(status, seconds)

    def __iter__(self) -> Iterator[tuple[str, str, RouteTally]]:
        """Every method and route that was asked for, with its tally."""
        return iter([(method, route, tally) for (method, route), tally in self._routes.items()])


@attrs.define
class SandboxRuns:
    """What ran in one sandbox: jobs, and executions that somebody waited for.

    Attributes:
        accepted: runs that were asked for.
        ended: those of them that are over.
        measured: those of them that ran at all, so that they have a duration.
        seconds: these durations together.
    """

    accepted: int = 0
    ended: int = 0
    measured: int = 0
    seconds: float = 0.0
    _recent: deque[float] = attrs.field(factory=lambda: deque(maxlen=_RECENT))

    @property
    def average(self) -> float:
        """The mean duration in seconds; 0 before the first end."""
        return self.seconds / self.measured if self.measured else 0.0

    @property
    def p95(self) -> float:
        """What 95 of 100 of the latest runs took at most, in seconds; 0 before the first end."""
        return _nearest_rank(sorted(self._recent), 95)

    def measure(self, seconds: float) -> None:
        """Take in the duration of a run that ended."""
        self.measured += 1
        self.seconds += seconds
        self._recent.append(seconds)


def _nearest_rank(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile that is one of the values: the smallest with so many percent at or below it."""
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else 0.0


class RunTally:
    """What ran on one server.

    Attributes:
        accepted: runs that were asked for, by kind.
        started: processes that were made.
        ended: runs that are over, by state.
        output_bytes: what the ended ones wrote.
    """

    def __init__(self) -> None:
        self.accepted: Counter[str] = Counter()
        self.started = 0
        self.ended: Counter[str] = Counter()
        self.output_bytes = 0
        self._sandboxes: dict[str, SandboxRuns] = {}

    def accept(self, sandbox_id: str, kind: str) -> None:
        """Count a run that was asked for."""
        self.accepted[kind] += 1
        self._of(sandbox_id).accepted += 1

    def end(self, sandbox_id: str, state: str, *, seconds: float | None, output: int) -> None:
        """Count an end.

        Args:
            sandbox_id: where.
            state: how it ended.
            seconds: how long it ran; None when it never did.
            output: bytes that it wrote.
        """
        self.ended[state] += 1
        self.output_bytes += output
        runs = self._of(sandbox_id)
        runs.ended += 1
        if seconds is not None:
            runs.measure(seconds)

    def of_sandbox(self, sandbox_id: str) -> SandboxRuns:
        """Return what ran in a sandbox."""
        return self._sandboxes.get(sandbox_id) or SandboxRuns()

    def drop(self, sandbox_id: str) -> None:
        """Forget a sandbox that is gone; the server's own counts stay."""
        self._sandboxes.pop(sandbox_id, None)

    def _of(self, sandbox_id: str) -> SandboxRuns:
        runs = self._sandboxes.get(sandbox_id)
        if runs is None:
            runs = self._sandboxes[sandbox_id] = SandboxRuns()
        return runs
