"""Which queued job may start now. Pure: told what happens, asked what to do, with the time given.

Busy jobs take a slot each, and there are only so many slots as the cores bear; a job that sleeps or waits
gives its slot back, so it holds up nobody and jobs that wait for each other all get to run. *Lanes* (a
sandbox's jobs, a sandbox's executions) take turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

__all__ = ["STALL_SECONDS", "Admission"]

STALL_SECONDS: Final = 2.0
"""When nothing starts or ends for so long although jobs are queued, one more is started: jobs may wait for
each other by burning their core."""


class Admission:
    """The queue of one server.

    Args:
        slots: busy jobs at once.
        max_running: running jobs at once, busy or not; None = no limit.
    """

    def __init__(self, *, slots: int, max_running: int | None = None) -> None:
        self._slots = slots
        self._max_running = max_running
        self._lanes: OrderedDict[Hashable, OrderedDict[str, None]] = OrderedDict()
        self._lane_of: dict[str, Hashable] = {}
        self._held: dict[Hashable, OrderedDict[str, None]] = {}
        self._running: set[str] = set()
        self._busy: set[str] = set()
        self._progress_at = 0.0

    def __repr__(self) -> str:
        waiting = sum(map(len, self._lanes.values()))
        return (
            f"<Admission waiting={waiting} running={len(self._running)} busy={len(self._busy)}/{self._slots}>"
        )

    @property
    def waiting(self) -> int:
        """Jobs that are queued, those of lanes on hold too."""
        return len(self._lane_of)

    @property
    def wanting(self) -> int:
        """Running jobs that want a core."""
        return len(self._busy)

    @property
    def slots(self) -> int:
        """Busy jobs that may run at once."""
        return self._slots

    def enqueue(self, process_id: str, *, lane: Hashable, now: float) -> None:
        """Take in a job that wants to run."""
        if not self._lanes:
            self._progress_at = now
        lanes = self._held if lane in self._held else self._lanes
        lanes.setdefault(lane, OrderedDict())[process_id] = None
        self._lane_of[process_id] = lane

    def withdraw(self, process_id: str) -> bool:
        """Forget a queued job. Returns whether it was queued here."""
        lane = self._lane_of.pop(process_id, None)
        if lane is None:
            return False
        lanes = self._held if lane in self._held else self._lanes
        del lanes[lane][process_id]
        if not lanes[lane] and lanes is self._lanes:
            del lanes[lane]
        return True

    def hold(self, lane: Hashable) -> None:
        """Start nothing of a lane until `release`; others go on."""
        self._held.setdefault(lane, self._lanes.pop(lane, OrderedDict()))

    def release(self, lane: Hashable) -> None:
        """Let a lane go on."""
        jobs = self._held.pop(lane, None)
        if jobs:
            self._lanes[lane] = jobs

    def take(self, now: float) -> list[str]:
        """Return the jobs to start now; each counts as running and busy from here on."""
        taken: list[str] = []
        while self._lanes and self._has_room():
            taken.append(self._take_one())
        if not taken and self._lanes and self._may_run_more() and now >= self._progress_at + STALL_SECONDS:
            taken.append(self._take_one())
        if taken:
            self._progress_at = now
        return taken

    def next_look(self) -> float | None:
        """Return when `take` might give more though nothing happened; None = not before something happens."""
        if not self._lanes or not self._may_run_more():
            return None
        return self._progress_at + STALL_SECONDS

    def busy(self, process_id: str, *, busy: bool) -> None:
        """Note that a running job began or ceased to want a core."""
        if process_id not in self._running:
            return
        if busy:
            self._busy.add(process_id)
        else:
            self._busy.discard(process_id)

    def ended(self, process_id: str, now: float) -> None:
        """Note that a job is over."""
        if process_id in self._running:
            self._running.discard(process_id)
            self._busy.discard(process_id)
            self._progress_at = now

    def _has_room(self) -> bool:
        return len(self._busy) < self._slots and self._may_run_more()

    def _may_run_more(self) -> bool:
        return self._max_running is None or len(self._running) < self._max_running

    def _take_one(self) -> str:
        lane, jobs = self._lanes.popitem(last=False)
        process_id, _ = jobs.popitem(last=False)
        if jobs:
            self._lanes[lane] = jobs  # at the end: the others have their turn first
        del self._lane_of[process_id]
        self._running.add(process_id)
        self._busy.add(process_id)
        return process_id
