"""Which jobs want a core: the server starts no more of those at once than the machine has cores for."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable

from asyncsandbox.server.launcher.procfs import ProcessTable, Stat, read_stat
from asyncsandbox.server.launcher.timers import Timers

__all__ = ["Load", "LoadMeter"]

_INTERVAL = 0.025
_IDLE_INTERVAL = 0.1
_IDLE_LOOKS = 16
_CALM_SAMPLES = 2
_BUSY_SHARE = 0.2
_TREE_INTERVAL = 0.25
_WANTS_CORE = "RD"


class Load:
    """What was last seen of one job.

    Attributes:
        job_id: which.
        pid: its main process.
        busy: what the server was told last.
        over: set once the job's main process ended.
    """

    __slots__ = ("at", "busy", "calm", "cpu", "job_id", "over", "pid")

    def __init__(self, job_id: str, pid: int) -> None:
        self.job_id = job_id
        self.pid = pid
        self.busy = True
        self.over = False
        self.calm = 0
        self.cpu: int | None = None
        self.at = time.monotonic()


class LoadMeter:
    """Samples the busy jobs often and the idle ones in turns, and tells when one changes.

    A job is busy when some process of it is runnable or waits in the kernel, or used a fifth of a core since
    it was last looked at. It takes two calm looks in a row to become idle. Without /proc every job becomes
    idle at once: no job may hold back the others for ever.
    """

    def __init__(self, table: ProcessTable, timers: Timers, report: Callable[[str, bool], None]) -> None:
        self._table = table
        self._timers = timers
        self._report = report
        self._busy: dict[str, Load] = {}
        self._idle: deque[Load] = deque()
        self._armed = False
        self._tree_at = 0.0
        self._ticks = os.sysconf("SC_CLK_TCK")

    def add(self, load: Load) -> None:
        """Watch a job that has just begun."""
        self._busy[load.job_id] = load
        self._arm()

    def remove(self, load: Load) -> None:
        """Watch a job no longer."""
        load.over = True
        self._busy.pop(load.job_id, None)

    def _arm(self) -> None:
        if not self._armed and (self._busy or self._idle):
            self._armed = True
            self._timers.call_later(_INTERVAL if self._busy else _IDLE_INTERVAL, self._sample)

    def _sample(self) -> None:
        self._armed = False
        idle = self._next_idle()
        seen = [(load, read_stat(load.pid)) for load in (*self._busy.values(), *idle)]
        self._see_descendants(any(load.busy and not _wants_core(stat) for load, stat in seen))
        for load, stat in seen:
            self._judge(load, stat)
        self._idle.extend(load for load in idle if not load.busy)
        self._arm()

    def _next_idle(self) -> list[Load]:
        found: list[Load] = []
        while self._idle and len(found) < _IDLE_LOOKS:
            load = self._idle.popleft()
            if not load.over:
                found.append(load)
        return found

    def _see_descendants(self, urgent: bool) -> None:
        now = time.monotonic()
        if urgent or now - self._tree_at > _TREE_INTERVAL:
            self._tree_at = now
            self._table.refresh()

    def _judge(self, load: Load, stat: Stat | None) -> None:
        busy = sys.platform == "linux" and stat is not None and self._is_busy(load, stat)
        load.calm = 0 if busy else load.calm + 1
        if busy == load.busy or (load.busy and load.calm < _CALM_SAMPLES):
            return
        load.busy = busy
        if busy:
            self._busy[load.job_id] = load
        else:
            del self._busy[load.job_id]
            self._idle.append(load)
        self._report(load.job_id, busy)

    def _is_busy(self, load: Load, stat: Stat) -> bool:
        now = time.monotonic()
        if _wants_core(stat):
            load.at, load.cpu = now, None
            return True
        tree = [stat, *self._table.living(load.job_id)]
        cpu = sum(each.cpu for each in tree)
        used = 0.0 if load.cpu is None else (cpu - load.cpu) / self._ticks
        passed, load.at, load.cpu = now - load.at, now, cpu
        return any(map(_wants_core, tree)) or used >= _BUSY_SHARE * passed


def _wants_core(stat: Stat | None) -> bool:
    return stat is not None and stat.state in _WANTS_CORE
