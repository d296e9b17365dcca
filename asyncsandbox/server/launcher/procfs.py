"""Which processes belong to which job, and how they are reached: the one place that reads /proc.

A job's main process leads a session of its own. Its descendants may leave that session, or outlive their
parents: those become children of the supervisor (a child subreaper), which tells whose they are by their
parents as seen earlier, by their session, or by the job's id in their environment.

Without /proc (macOS) a job is its process group, and what leaves the group is out of reach.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time

__all__ = [
    "JOB_VARIABLE",
    "SANDBOX_VARIABLE",
    "ProcessTable",
    "Stat",
    "become_subreaper",
    "let_go",
    "marked_processes",
    "read_stat",
    "signal_process",
]

SANDBOX_VARIABLE = "ASYNCSANDBOX_SANDBOX_ID"
JOB_VARIABLE = "ASYNCSANDBOX_JOB_ID"

_PR_SET_CHILD_SUBREAPER = 36
_PTRACE_DETACH = 17
# A number may be used again for another process; strangers are looked at anew that often.
_TRUST_STRANGERS = 2.0
# A process that shows no environment for so many seconds has none.
_BLANK_FOR = 0.05


class Stat:
    """A process as /proc/<pid>/stat shows it.

    Attributes:
        pid: its id.
        state: one letter: R running, S sleeping, D in the kernel, T stopped, Z over.
        parent: its parent's id.
        group: its process group.
        session: its session.
        cpu: clock ticks used by it and by the children that it has reaped.
        alive: False once nothing of it runs any more.
        start: when it began, in ticks since boot; with `pid` it is unique.
    """

    __slots__ = ("alive", "cpu", "group", "parent", "pid", "session", "start", "state")

    def __init__(self, pid: int, raw: bytes) -> None:
        fields = raw[raw.rindex(b")") + 2 :].split()
        self.pid = pid
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.group = int(fields[2])
        self.session = int(fields[3])
        self.cpu = sum(map(int, fields[11:15]))
        # A leader that has ended while other threads go on is shown as a zombie, too.
        self.alive = self.state not in "ZX" or int(fields[17]) > 1
        self.start = int(fields[19])


def read_stat(pid: int) -> Stat | None:
    """Return what /proc says of `pid`; None when there is no such process."""
    raw = _read_proc(pid, "stat")
    return Stat(pid, raw) if raw else None


def _read_proc(pid: int, name: str) -> bytes:
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        pieces = []
        while piece := os.read(fd, 64 * 1024):
            pieces.append(piece)
            if name == "stat":
                break
        return b"".join(pieces)
    except OSError:  # it ended meanwhile, or is somebody else's
        return b""
    finally:
        os.close(fd)


def _variable(environment: bytes, name: str) -> str:
    prefix = f"{name}=".encode()
    for entry in environment.split(b"\0"):
        if entry.startswith(prefix):
            return os.fsdecode(entry[len(prefix) :])
    return ""


def _all_pids() -> set[int]:
    try:
        return {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 - ten times as fast
    except FileNotFoundError:
        return set()


def marked_processes(sandbox_id: str) -> list[Stat]:
    """Return the living processes, this one left out, that carry the mark of that sandbox."""
    pids = _all_pids() - {os.getpid()}
    marked = [pid for pid in pids if _variable(_read_proc(pid, "environ"), SANDBOX_VARIABLE) == sandbox_id]
    return [stat for stat in map(read_stat, marked) if stat is not None and stat.alive]


def become_subreaper() -> bool:
    """Make orphans below this process its own children; return False where the system has no such thing."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def let_go(pid: int, number: int) -> None:
    """End the tracing that a child asked for (``PTRACE_TRACEME``) and give it the signal that stopped it.

    A job can make its parent, the supervisor, its tracer; as nobody would ever trace it, it stood still.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).ptrace(_PTRACE_DETACH, pid, None, ctypes.c_void_p(number))


def signal_process(stat: Stat, number: int) -> None:
    """Send a signal to exactly the process that `stat` describes, not to one that got its number since."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        fd = os.pidfd_open(stat.pid)
        try:
            now = read_stat(stat.pid)
            if now is not None and now.start == stat.start:
                signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)


class ProcessTable:
    """Whose the processes below the supervisor are.

    `refresh` reads the list of all processes but looks only at those that it has not seen, so that it stays
    cheap with a thousand jobs. Numbers are given out upwards and the list is read upwards, so a child made
    during the reading is seen as long as its parent was; one whose parent was missed shows itself through
    `unsure`.

    Attributes:
        unsure: whether the last `refresh` saw something whose children may have been missed.
    """

    def __init__(self) -> None:
        self.unsure = False
        self._own = os.getpid()
        self._mains: dict[int, str] = {}
        self._owners: dict[int, str] = {}
        self._members: dict[str, dict[int, int]] = {"": {}}
        self._blank: dict[int, float] = {}
        self._strangers: set[int] = set()
        self._strangers_since = 0.0

    def add(self, job_id: str, pid: int) -> None:
        """Note the main process of a new job."""
        self.reaped(pid)  # the number may have been that of a descendant of another job
        self._mains[pid] = job_id
        self._strangers.discard(pid)
        self._members[job_id] = {}

    def remove(self, job_id: str, pid: int) -> None:
        """Forget a job of which nothing is left."""
        self._mains.pop(pid, None)
        for member in self._members.pop(job_id, {}):
            self._owners.pop(member, None)

    def reaped(self, pid: int) -> None:
        """Note that `pid` is free for others."""
        owner = self._owners.pop(pid, None)
        if owner is not None:
            self._members[owner].pop(pid, None)

    def refresh(self) -> None:
        """Find out about processes that are new."""
        now = time.monotonic()
        if now - self._strangers_since > _TRUST_STRANGERS:
            self._strangers.clear()
            self._strangers_since = now
        self.unsure = False
        for pid in list(self._members[""]):
            self.reaped(pid)  # those without an owner get another chance
        listed = _all_pids()
        self._blank = {pid: since for pid, since in self._blank.items() if pid in listed}
        for pid in self._owners.keys() - listed:
            self.reaped(pid)
        self._strangers &= listed
        unseen = listed - self._owners.keys() - self._mains.keys() - self._strangers - {self._own}
        fresh = {stat.pid: stat for stat in map(read_stat, unseen) if stat is not None}
        for stat in fresh.values():
            self._classify(stat, fresh)

    def living(self, job_id: str) -> list[Stat]:
        """Return a job's living processes without its main one; "" stands for those of no known job."""
        members = self._members.get(job_id, {})
        found = []
        for pid, start in list(members.items()):
            stat = read_stat(pid)
            if stat is None or stat.start != start:
                self.reaped(pid)
            elif stat.alive:
                found.append(stat)
        return found

    def empty(self, job_id: str) -> bool:
        """Return whether nothing of a job is left but its main process, not even something to be reaped."""
        return not self.unsure and not self._members.get(job_id)

    def _classify(self, stat: Stat, fresh: dict[int, Stat]) -> None:
        chain = {stat.pid: stat}
        while (owner := self._owner_by_parent(stat)) is None:
            if stat.parent == 0 or stat.parent in self._strangers:
                self._strangers.update(chain)
                return
            parent = fresh.get(stat.parent)
            if parent is None or parent.pid in chain:
                self.unsure = True  # its parent has just ended: the next refresh sees the new one
                return
            chain[parent.pid] = stat = parent
        for member in chain.values():
            self._owners[member.pid] = owner
            self._members[owner][member.pid] = member.start

    def _owner_by_parent(self, stat: Stat) -> str | None:
        if stat.parent == self._own:
            return self._owner_of_orphan(stat)
        return self._mains.get(stat.parent, self._owners.get(stat.parent))

    def _owner_of_orphan(self, stat: Stat) -> str:
        owner = self._mains.get(stat.session)
        if owner is not None:
            return owner
        environment = _read_proc(stat.pid, "environ")
        if not environment:
            # It is ending, or in the middle of an exec; or somebody cleared it, and then it stays so.
            since = self._blank.setdefault(stat.pid, time.monotonic())
            self.unsure |= time.monotonic() - since < _BLANK_FOR
        marker = _variable(environment, JOB_VARIABLE)
        return marker if marker in self._members else ""
